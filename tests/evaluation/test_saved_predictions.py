"""Masks of anybody: every form that says what it is, and a refusal of what does not."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from reasonseg.evaluation.saved_predictions import PredictionError, SavedPredictions


SIZE = (6, 9)
MASK = np.zeros(SIZE, dtype=bool)
MASK[1:4, 2:7] = True


def uncompressed(mask: np.ndarray) -> dict:
    values, counts = mask.flatten(order="F"), [0]
    for previous, value in zip(np.r_[False, values], values, strict=False):
        counts = [*counts, 0] if value != previous else counts
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def compressed(mask: np.ndarray) -> dict:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


SOFT = np.where(MASK, 0.75, 0.25)
ARRAYS = {
    "bool": MASK,
    "0 and 1": MASK.astype(np.uint8),
    "0 and 255": MASK.astype(np.uint8) * 255,
    "0.0 and 1.0": MASK.astype(np.float32),
    "one axis more": MASK[None],
    "logits below 0": np.where(MASK, 3.5, -2.0),
    "whole logits": np.where(MASK, 2, -1).astype(np.int8),
    "column by column": np.asfortranarray(MASK),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays(kind, tmp_path):
    np.save(tmp_path / "a.npy", ARRAYS[kind])
    read = SavedPredictions(tmp_path).read("a", SIZE)
    np.testing.assert_array_equal(read.mask, MASK)
    assert not read.rejected


@pytest.mark.parametrize("mode", ["1", "L", "0 and 1", "P"])
def test_images(mode, tmp_path):
    image = Image.fromarray(MASK.astype(np.uint8) * (1 if mode == "0 and 1" else 255))
    image.convert("L" if mode == "0 and 1" else mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(SavedPredictions(tmp_path).read("a", SIZE).mask, MASK)


@pytest.mark.parametrize("wrap", [lambda rle: rle, lambda rle: [rle], lambda rle: {"segmentation": rle, "score": 1}])
@pytest.mark.parametrize("encode", [uncompressed, compressed])
def test_run_lengths(encode, wrap, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(wrap(encode(MASK))), encoding="utf-8")
    np.testing.assert_array_equal(SavedPredictions(tmp_path).read("a", SIZE).mask, MASK)


def test_a_rejection_is_stated_or_an_empty_mask(tmp_path):
    np.save(tmp_path / "empty.npy", ~MASK & MASK)
    (tmp_path / "stated.json").write_text(json.dumps({**compressed(MASK), "rejected": True}), encoding="utf-8")
    predictions = SavedPredictions(tmp_path)
    assert predictions.read("empty", SIZE).rejected
    assert predictions.read("stated", SIZE).rejected
    assert predictions.read("stated", SIZE).mask.any()


def test_numbers_that_may_mean_several_things_must_be_named(tmp_path):
    np.save(tmp_path / "soft.npy", SOFT)
    np.save(tmp_path / "raised.npy", SOFT + 3)
    for name in ("soft", "raised"):
        with pytest.raises(PredictionError, match=r"may be probabilities, logits or something else\. Say which"):
            SavedPredictions(tmp_path).read(name, SIZE)
    np.testing.assert_array_equal(SavedPredictions(tmp_path, "probabilities").read("soft", SIZE).mask, MASK)
    assert SavedPredictions(tmp_path, "logits").read("soft", SIZE).mask.all()
    with pytest.raises(PredictionError, match=r"values from 3.25 to 3.75; probabilities lie in 0 to 1"):
        SavedPredictions(tmp_path, "probabilities").read("raised", SIZE)
    with pytest.raises(PredictionError, match="a mask has 0 and 1, or 0 and 255"):
        SavedPredictions(tmp_path, "mask").read("soft", SIZE)
    np.save(tmp_path / "zeros.npy", np.zeros(SIZE, np.float32))
    assert not SavedPredictions(tmp_path, "logits").read("zeros", SIZE).mask.any()
    assert SavedPredictions(tmp_path, "logits", zero_is_foreground=True).read("zeros", SIZE).mask.all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (MASK[:4], "9 x 4 pixels, the image 9 x 6"),
        (MASK.T, "sides are swapped"),
        (np.stack([MASK, MASK]), "one mask per file"),
        (MASK[0], "one mask per file"),
        (MASK * np.uint8(7), "which may be probabilities, logits or something else"),
        (np.where(MASK, np.nan, 0), "not finite"),
        (MASK.astype(str), "numbers or bool are needed"),
        (np.array({"a": MASK}), "is not an array of numpy"),
    ],
)
def test_arrays_that_cannot_be_used(array, message, tmp_path):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(PredictionError, match=message):
        SavedPredictions(tmp_path).read("a", SIZE)


def test_other_files_that_cannot_be_used(tmp_path):
    predictions = SavedPredictions(tmp_path)
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "b.json").write_text("[1, 2]", encoding="utf-8")
    (tmp_path / "c.json").write_text("{", encoding="utf-8")
    (tmp_path / "d.png").write_bytes(b"PNG")
    (tmp_path / "e.json").write_text(json.dumps({"size": [2, 2], "counts": [4]}), encoding="utf-8")
    Image.fromarray(MASK.astype(np.uint8) * 100).save(tmp_path / "f.png")
    for name in "abcdef":
        with pytest.raises(PredictionError, match=rf"{name}\.(npy|json|png)"):
            predictions.read(name, SIZE)
    with pytest.raises(PredictionError, match="does not exist"):
        SavedPredictions(tmp_path / "nowhere")


def test_missing_files_are_listed_and_two_of_a_name_refused(tmp_path):
    np.save(tmp_path / "a.npy", MASK)
    predictions = SavedPredictions(tmp_path)
    assert predictions.check(["a"]) == []
    with pytest.raises(PredictionError, match=r"lacks 2 of 3 predictions: b, c\."):
        predictions.check(["a", "b", "c"])
    with pytest.raises(PredictionError, match="holds no prediction of this data set"):
        SavedPredictions(tmp_path, missing_is_empty=True).check(["b"])
    lenient = SavedPredictions(tmp_path, missing_is_empty=True)
    assert lenient.check(["a", "b"]) == ["b"]
    assert not lenient.read("b", SIZE).mask.any()
    Image.fromarray(MASK).save(tmp_path / "a.png")
    with pytest.raises(PredictionError, match="a has several predictions"):
        predictions.check(["a"])
