"""The numbers of `validate` and `eval_gres` on recorded logits, targets and rejections of each data set."""

import numpy as np
import pytest
import torch

from reasonseg.evaluation.referring_protocols import ReferringMetrics
from tests.support.recorded_data_sets import SYSTEMS, recorded, recorded_arrays


CASES = [
    (system, name, record) for system in SYSTEMS for name, record in recorded(f"{system}/referring_metrics").items()
]


def parts(original: str, name: str, record: dict):
    for item in record["items"]:
        index, arrays = item["index"], recorded_arrays(f"{original}/referring_arrays")
        logits = arrays[f"predictions/{name}/{index}/logits"]
        yield logits, arrays[f"validation/{name}/{index}/masks"], item["rejected"], item["logits_of_expressions"]


@pytest.mark.parametrize(("original", "name", "record"), CASES, ids=[f"{case[0]} {case[1]}" for case in CASES])
def test_numbers_are_those_of_the_originals(original, name, record):
    halves = [ReferringMetrics(name.split("|")[0]) for _ in range(2)]
    for number, (logits, targets, rejected, _) in enumerate(parts(original, name, record)):
        scores = halves[number % 2]
        assert scores.rule.uses_rejection == (record["protocol"] == "eval_gres")
        scores.update(scores.binarise(torch.as_tensor(logits)), targets, rejected)
    halves[0].merge(halves[1])
    numbers = halves[0].compute()
    for key, expected in record["result"].items():
        if expected is None:
            assert numbers[key] is None
        else:  # the originals add in float32
            assert numbers[key] == pytest.approx(expected, abs=2e-6, rel=0)


def test_the_recorded_meters_are_met_more_closely():
    """Before they are cast to float32, sums differ by what float32 drops alone."""
    compared = 0
    for original, name, record in CASES:
        meters = {meter["name"]: meter["before_all_reduce"] for meter in record["meters"]}
        if record["protocol"] == "validate":
            scores = ReferringMetrics(name.split("|")[0])
            for logits, targets, _, _ in parts(original, name, record):
                scores.update(scores.binarise(torch.as_tensor(logits)), targets)
            giou = meters["gIoU"]["sum"][1] / (meters["gIoU"]["count"] + 1e-5)
            ciou = meters["Intersec"]["sum"][1] / (meters["Union"]["sum"][1] + 1e-10)
            assert scores.compute()["giou"] == pytest.approx(giou, abs=1e-7, rel=0)
            assert scores.compute()["ciou"] == pytest.approx(ciou, abs=1e-7, rel=0)
            compared += 1
    assert compared == sum(record["protocol"] == "validate" for _, _, record in CASES) > 20


def test_gsvas_mispairing_changes_numbers_and_is_not_followed_unasked():
    changed = 0
    for original, name, record in CASES:
        if not record["fewer_predictions_than_targets"]:
            continue
        scores = ReferringMetrics(name.split("|")[0], as_original=False)
        for logits, targets, _, expressions in parts(original, name, record):
            masks = np.zeros(targets.shape, bool)
            masks[expressions] = scores.binarise(torch.as_tensor(logits))
            if len(logits) < len(targets):
                with pytest.raises(ValueError, match="give one each, empty for what is absent"):
                    scores.update(scores.binarise(torch.as_tensor(logits)), targets)
            scores.update(masks, targets)
        changed += abs(scores.compute()["giou"] - record["result"]["giou"]) > 0.01
    assert changed >= 2


def test_a_target_of_two_is_neither_hit_nor_background():
    target = np.array([[[0, 1, 2, 255]]], np.uint8)
    mask = np.ones((1, 1, 4), bool)
    scores = ReferringMetrics("refcoco")
    scores.update(mask, target)
    assert scores.compute()["ciou"] == pytest.approx(1 / 3)  # 1 hit; drawn on 0 and on 2 as well
    scores = ReferringMetrics("refcoco")
    scores.update(~mask, target)
    assert scores.compute()["ciou"] == 0
    mended = ReferringMetrics("refcoco", as_original=False)
    mended.update(mask, target)
    assert mended.compute()["ciou"] == pytest.approx(2 / 3)
    empty = ReferringMetrics("refclef")
    empty.update(~mask, np.zeros((1, 1, 4), np.uint8))
    numbers = empty.compute()
    assert (numbers["giou"], numbers["ciou"]) == (pytest.approx(1, abs=1e-4), 0.0)
    numbers = ReferringMetrics("refcocog").compute()
    assert numbers["giou"] is numbers["ciou"] is None


def test_shapes_and_rejections_are_checked():
    target = np.zeros((2, 3, 4), np.uint8)
    scores = ReferringMetrics("grefcoco")
    for masks in (np.zeros((3, 3, 4), bool), np.zeros((2, 4, 3), bool), np.zeros((2, 3, 4)), np.zeros((3, 4), bool)):
        with pytest.raises(ValueError, match=r"masks (and targets )?must|masks were given"):
            scores.update(masks, target, [True, True])
    with pytest.raises(ValueError, match="1 masks were given for 2 expressions"):
        scores.update(np.zeros((1, 3, 4), bool), target, [True])
    with pytest.raises(ValueError, match="needs `rejected`"):
        scores.update(np.zeros((2, 3, 4), bool), target)
