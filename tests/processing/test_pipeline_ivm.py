"""`pipeline("reasoning-segmentation")` on IVM: the same calls as for every system, one segment per instruction."""

import numpy as np
import pytest
from transformers import pipeline

from tests.support.recorded_cases import recorded_image


INSTRUCTIONS = ["pick up the red cup and place it on the green plate", "Where can I sit?"]


@pytest.fixture(scope="module")
def pipe(ivm_repo):
    return pipeline("reasoning-segmentation", model=str(ivm_repo))


@pytest.fixture(scope="module")
def images():
    return [recorded_image("ivm", name) for name in ("img0", "img1")]


def areas(results) -> list[list[int]]:
    return [[int((np.asarray(found["mask"]) > 0).sum()) for found in result["segments"]] for result in results]


def test_text_phrases_and_batches_agree(pipe, images):
    phrases = pipe(images, phrases=INSTRUCTIONS, batch_size=2)
    assert [[found["label"] for found in result["segments"]] for result in phrases] == [INSTRUCTIONS] * 2
    assert all(result["generated_text"] == "" for result in phrases)
    texts = pipe(images, text=INSTRUCTIONS[0], batch_size=2)
    assert [len(result["segments"]) for result in texts] == [1, 1]
    several = pipe(images[0], text=INSTRUCTIONS, batch_size=2, max_new_tokens=4)
    # recorded logits are at least 1e-3 away from 0 almost everywhere, so areas differ by a few pixels at most
    counted = np.array(areas(phrases))
    assert np.abs(counted[:, 0] - np.array(areas(texts))[:, 0]).max() <= 3
    assert np.abs(counted[0] - np.array(areas(several))[:, 0]).max() <= 3
    assert counted.min() > 1000
    found = phrases[0]["segments"][0]
    assert found["mask"].size == images[0].size
    assert 0.9 < found["score"] <= 1.0
    assert not found["rejected"]
    assert found["span"] is None


def test_rows_and_thresholds(pipe, images):
    row = {"image": images[1], "text": INSTRUCTIONS[1]}
    (result,) = list(pipe(iter([row]), mask_format="rle"))
    assert result["segments"][0]["mask"]["size"] == [500, 333]
    low, high = (pipe(images[1], text=INSTRUCTIONS[1], mask_threshold=threshold) for threshold in (-2.0, 2.0))
    assert areas([low])[0][0] > areas([high])[0][0] > 0
    (nothing,) = pipe([images[1]], text=INSTRUCTIONS[1], mask_threshold=50.0)
    assert nothing["segments"][0]["box_xyxy"] is None


def test_bad_requests(pipe, images):
    with pytest.raises(ValueError, match="Exactly one of `text` and `phrases`"):
        pipe(images[0])
    with pytest.raises(ValueError, match="is empty"):
        pipe(images[0], phrases=["cup", " "])
    with pytest.raises(TypeError, match="Unknown options"):
        pipe(images[0], text="cup", treshold=0.5)
