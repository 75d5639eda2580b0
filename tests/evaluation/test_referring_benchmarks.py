"""What is asked about each image and how it is counted, against what the evaluations of LISA and GSVA recorded."""

import json

import numpy as np
import pytest
from transformers import AutoProcessor

from reasonseg.data.data_files import DataFileError
from reasonseg.data.instruction_wording import SYSTEM_MESSAGE
from reasonseg.evaluation.image_results import REJECTED, SEGMENTED, ImageResult
from reasonseg.evaluation.referring_benchmarks import AskedImages, DataSource, Rules, padded_counts
from reasonseg.evaluation.referring_protocols import ReferringMetrics
from reasonseg.evaluation.referring_segmentation import Answer, LoadedImage, score_image, summarise
from tests.support.recorded_data_sets import DATA_ROOT, SYSTEMS, prompts_of, recorded, recorded_arrays


def specifications(system: str) -> dict[str, dict]:
    sets = {**recorded(f"{system}/reason_seg_validation"), **recorded(f"{system}/referring_validation")}
    return {name: record for name, record in sets.items() if record["outcome"] == "ok"}


SPECIFICATIONS = [(system, name) for system in SYSTEMS for name in specifications(system)]


def opened(system: str, name: str, protocol: str = "paper") -> AskedImages:
    data_set, *split_by, split = name.split("|")
    # as it is written by LISA; GSVA has its own
    given = split_by[0] if split_by and system == "lisa" else None
    rules = Rules("reasonseg" if data_set == "ReasonSeg" else data_set, protocol, system)
    return AskedImages(DATA_ROOT, split, rules, given)


@pytest.fixture(scope="module")
def processors(lisa_repo, gsva_repo):
    return {"lisa": AutoProcessor.from_pretrained(lisa_repo), "gsva": AutoProcessor.from_pretrained(gsva_repo)}


@pytest.mark.parametrize(("system", "name"), SPECIFICATIONS)
def test_prompts_and_targets_are_the_recorded_ones(system, name, processors):
    record, images = specifications(system)[name], opened(system, name)
    assert len(images) == record["length"]
    arrays = recorded_arrays(f"{system}/{'reason_seg_validation' if 'Reason' in name else 'referring_arrays'}")
    for number, expected in enumerate(record["items"]):
        loaded = LoadedImage.load(number, images[number])
        assert loaded.asked.path == DATA_ROOT / expected["image"]
        inputs = processors[system](
            images=[np.asarray(loaded.image)],
            text=[one.question for one in loaded.conversations],
            answer=[one.answer for one in loaded.conversations],
            image_index=[0] * len(loaded.conversations),
        )
        prompts = [row.conversation.replace("<im_start><image><im_end>", "<image>") for row in inputs.rows]
        wanted = prompts_of(expected)
        assert prompts == [text if SYSTEM_MESSAGE in text else f"{SYSTEM_MESSAGE} {text}" for text in wanted]
        key = expected["masks_key"]
        np.testing.assert_array_equal(loaded.targets, arrays[key if key in arrays else f"validation/{key}"])


def recorded_results(system: str, name: str) -> tuple[list[ImageResult], dict, AskedImages]:
    """Recorded logits of every image, scored."""
    images, is_reasoning = opened(system, name), name.startswith("ReasonSeg")
    stem = "reason_seg" if is_reasoning else "referring"
    record = recorded(f"{system}/{stem}_metrics")[name]
    arrays = recorded_arrays(f"{system}/{'reason_seg_metrics' if is_reasoning else 'referring_arrays'}")
    results = []
    for number in range(len(images)):
        loaded = LoadedImage.load(number, images[number])
        key = f"{name}/{number}/logits"
        logits = arrays[key if is_reasoning else f"predictions/{key}"]
        # where the original drew nothing an arbitrary mask must not count
        count, whole = len(loaded.asked.texts), np.ones(loaded.targets.shape[1:], dtype=bool)
        drawn, rejected = range(count), None
        if not is_reasoning:
            item = record["items"][number]
            drawn, rejected = item["logits_of_expressions"], item["rejected"]
        answers = [Answer(whole, SEGMENTED)] * count
        binary = logits >= 0 if ReferringMetrics(images.rules.data_set).rule.zero_is_foreground else logits > 0
        for mask, expression in zip(binary, drawn, strict=True):
            is_rejected = rejected is not None and rejected[expression]
            answers[expression] = Answer(mask, REJECTED if is_rejected else SEGMENTED)
        size = (loaded.image.height, loaded.image.width)
        scored = score_image(loaded.asked.texts, loaded.targets, answers, images.rules)
        result = ImageResult(number, loaded.asked.name, loaded.asked.path.name, size, loaded.asked.group, scored)
        results.append(ImageResult.from_line(json.loads(result.to_line())))
    return results, record, images


@pytest.mark.parametrize(("system", "name"), [case for case in SPECIFICATIONS if not case[1].endswith("Seg|train")])
def test_numbers_are_those_of_the_originals(system, name):
    results, record, images = recorded_results(system, name)
    numbers = summarise(results, images.rules, images.rules.has_absent_targets, resamples=0).overall
    for key, expected in record["result"].items():
        if expected is None:
            assert numbers[key] is None
        else:  # the originals add in float32 after the last image
            assert numbers[key] == pytest.approx(expected, abs=2e-6, rel=0)
    meters = {meter["name"]: meter["before_all_reduce"] for meter in record["meters"]}
    ciou = meters["Intersec"]["sum"][1] / (meters["Union"]["sum"][1] + 1e-10)
    giou = meters["gIoU"]["sum"][1] / (meters["gIoU"]["count"] + 1e-5)
    assert (numbers["giou"], numbers["ciou"]) == pytest.approx((giou, ciou), abs=1e-6, rel=0)


def test_the_mended_rules_count_otherwise_and_say_so():
    assert Rules("reasonseg", "paper", "gsva").mends() == Rules("reasonseg", "fixed", "lisa").mends() == []
    assert "ignore" in Rules("reasonseg", "fixed", "gsva").mends()[0]
    assert any("parts" in mend for mend in Rules("refcoco", "fixed", "lisa").mends())
    assert any("own mask" in mend for mend in Rules("refcoco", "fixed", "gsva").mends())
    assert not any("own mask" in mend for mend in Rules("grefcoco", "fixed", "gsva").mends())
    target = np.array([[[0, 0, 0]], [[1, 1, 0]]], np.uint8)
    answers = [Answer(np.ones((1, 3), bool), REJECTED), Answer(target[1] == 1, SEGMENTED)]
    paper, fixed = (score_image("ab", target, answers, Rules("refcoco", one, "gsva")) for one in ("paper", "fixed"))
    assert [one.iou for one in paper] == [0, 0], "the mask of b goes to a, and b has none"
    assert [one.iou for one in fixed] == pytest.approx([1, 1], abs=1e-4)
    parts = np.array([[[0, 1, 2]]], np.uint8)
    whole = [Answer(np.array([[False, True, True]]), SEGMENTED)]
    assert score_image("a", parts, whole, Rules("refcoco", "paper", "lisa"))[0].union == 2
    assert score_image("a", parts, whole, Rules("refcoco", "fixed", "lisa"))[0].intersection == 2


def test_questions_of_the_mended_and_the_free_protocol():
    loaded = {}
    for protocol in ("fixed", "free"):
        images = opened("gsva", "refcoco|unc|val", protocol)
        loaded[protocol] = LoadedImage.load(0, images[0])
    (together,) = loaded["fixed"].conversations
    assert together.question == " What are the red cup, kid: smallest in this image? Please output segmentation masks."
    assert together.answer == "Sure,the red cup:[REJ], kid: smallest:[SEG]."
    assert [one.answer for one in loaded["free"].conversations] == [None, None]
    assert [one.expressions for one in loaded["free"].conversations] == [(0,), (1,)]
    assert loaded["free"].conversations[0].question.startswith(" What are the red cup in this image?")


def test_either_folder_may_be_the_root():
    for system, name in (("lisa", "refcoco"), ("gsva", "grefcoco")):
        rules = Rules(name, "paper", system)
        assert len(AskedImages(DATA_ROOT, "val", rules)) == len(AskedImages(DATA_ROOT / "refer_seg", "val", rules))
    rules = Rules("reasonseg", "paper", "lisa")
    assert len(AskedImages(DATA_ROOT / "reason_seg", "val", rules)) == len(AskedImages(DATA_ROOT, "val", rules))
    with pytest.raises(DataFileError, match="no split 'testX'"):
        AskedImages(DATA_ROOT, "testX", Rules("refcoco", "paper", "lisa"))
    with pytest.raises(DataFileError, match="does not exist"):
        DataSource(DATA_ROOT / "nowhere", "refcoco", "val")
    with pytest.raises(DataFileError, match="ReasonSeg/never does not exist; --dataset reasonseg reads it"):
        DataSource(DATA_ROOT, "reasonseg", "never")


def test_padding_of_several_processes_is_the_recorded_one():
    for name, per_process in recorded("lisa/reason_seg_metrics")["DistributedSampler"].items():
        images, processes = (int(word) for word in name.split() if word.isdecimal())
        expected = np.bincount(np.concatenate(per_process), minlength=images)
        np.testing.assert_array_equal(padded_counts(images, processes), expected)


def test_images_that_are_repeated_count_again():
    results, _, images = recorded_results("lisa", "ReasonSeg|val")
    repeats = padded_counts(len(results), 4)
    assert repeats.tolist() == [2, 2, 1, 1, 1, 1]
    padded = summarise(results, images.rules, False, repeats, resamples=0).overall
    again = summarise([*results, *results[:2]], images.rules, False, resamples=0).overall
    assert padded["giou"] == pytest.approx(again["giou"], abs=1e-12)
    assert padded["masks"] == 8
