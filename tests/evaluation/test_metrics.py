"""Metrics against the recorded numbers of the original evaluations, against pycocotools, and by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from reasonseg.evaluation.metrics import PRECISION_THRESHOLDS, SegmentationMetrics
from tests.support.parity_data import PARITY, load_arrays, load_case, load_meta


NAMES_IN_RECORDING = {"giou": "giou", "ciou": "ciou", "N_acc": "n_acc", "T_acc": "t_acc"}


@pytest.fixture(scope="module")
def pairs() -> dict[str, torch.Tensor]:
    return load_arrays(PARITY / "gsva" / "eval_pairs.npz")


def assert_recorded(numbers: dict, recorded: dict) -> None:
    assert recorded
    for name, value in recorded.items():
        assert numbers[NAMES_IN_RECORDING[name]] == pytest.approx(value, abs=1e-6), name


def unpack(packed: torch.Tensor, width: int) -> torch.Tensor:
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1)[..., :width].astype(bool))


def read_target(system: str, name: str) -> torch.Tensor:
    with Image.open(PARITY / system / "gt_masks" / name) as image:
        return torch.from_numpy((np.array(image.convert("L")) > 0).astype(np.uint8))


@pytest.mark.parametrize("rule", ["grefcoco", "refzom"])
def test_eval_gres_equals_the_original(pairs, rule):
    metrics = SegmentationMetrics(rule)
    masks = metrics.binarise(pairs["gres/pred_logits"])
    metrics.update(masks, pairs["gres/gt_masks"], pairs["gres/pred_is_rej"])
    assert_recorded(metrics.compute(), load_meta("gsva")["eval"][f"eval_gres_{rule}"])


def test_validate_equals_the_original(pairs):
    metrics = SegmentationMetrics("reason")
    masks = metrics.binarise(pairs["validate/pred_logits"])
    metrics.update(masks, pairs["validate/gt_masks"])
    assert (pairs["validate/gt_masks"] == 255).any(), "the recording should hold ignored pixels"
    assert_recorded(metrics.compute(), load_meta("gsva")["eval"]["validate"])


def test_eval_gres_of_recorded_model_outputs():
    meta, metrics = load_meta("gsva"), SegmentationMetrics("grefcoco")
    for image in (0, 1):
        case = f"infer/refer_img{image}_reeval"
        decisions = meta[f"{case}/decisions"][0]["out"]
        targets = torch.stack([read_target("gsva", f"img{image}_r{r}.png") for r in range(len(decisions))])
        masks = unpack(load_case("gsva", case)["pred_masks0_packed"], targets.shape[-1])
        metrics.update(masks, targets, [decision == "REJ" for decision in decisions])
    assert_recorded(metrics.compute(), meta["eval"]["eval_gres_on_model_outputs_refer_img0_img1"])


@pytest.mark.parametrize("image", [0, 1])
def test_lisa_validate_equals_the_original(image):
    case = f"infer/img{image}"
    recorded = load_meta("lisa")[f"{case}/validate"]
    targets = torch.stack([read_target("lisa", f"img{image}_p{prompt}.png") for prompt in range(3)])
    masks = unpack(load_case("lisa", case)["pred_masks0_packed"], targets.shape[-1])
    metrics = SegmentationMetrics("reason")
    ious = metrics.update(masks, targets)
    numbers = metrics.compute()
    assert sum(ious) / len(ious) == pytest.approx(recorded["acc_iou"][1], abs=1e-6)
    assert numbers["ciou"] == pytest.approx(recorded["intersection"][1] / recorded["union"][1], abs=1e-9)
    assert numbers["n_acc"] is None
    assert numbers["t_acc"] is None


def test_iou_equals_pycocotools():
    rng = np.random.default_rng(0)
    masks = rng.random((40, 37, 23)) < rng.random((40, 1, 1))
    targets = rng.random((40, 37, 23)) < rng.random((40, 1, 1))
    encode = [[coco_mask.encode(np.asfortranarray(m, dtype=np.uint8)) for m in stack] for stack in (masks, targets)]
    expected = np.diag(coco_mask.iou(encode[0], encode[1], [0] * 40))
    assert targets.any((1, 2)).all()
    ious = SegmentationMetrics("grefcoco").update(masks, targets, [False] * 40)
    np.testing.assert_allclose(ious, expected, atol=1e-9)


def random_pairs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, 9, 7, generator=generator) < 0.5
    targets = torch.rand(count, 9, 7, generator=generator) < 0.5
    targets &= torch.rand(count, 1, 1, generator=generator) < 0.6
    rejected = torch.rand(count, generator=generator) < 0.4
    return masks, targets, rejected, ["colour" if i % 3 else "kind" for i in range(count)]


def test_parts_add_up_to_the_whole():
    masks, targets, rejected, types = random_pairs(30, seed=1)
    whole = SegmentationMetrics("grefcoco", ["colour", "kind"])
    whole.update(masks, targets, rejected, types)
    parts = []
    for part in (slice(0, 11), slice(11, 12), slice(12, 30)):
        parts.append(SegmentationMetrics("grefcoco", ["colour", "kind"]))
        parts[-1].update(masks[part], targets[part], rejected[part], types[part])
    gathered = SegmentationMetrics("grefcoco", ["colour", "kind"])
    gathered.load_state_tensor(sum(part.state_tensor() for part in parts))
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    assert whole.compute() == pytest.approx(gathered.compute())
    assert whole.compute() == pytest.approx(parts[0].compute())
    assert whole.compute()["masks"] == 30


def test_types_are_counted_on_their_own():
    masks, targets, rejected, types = random_pairs(30, seed=2)
    metrics = SegmentationMetrics("grefcoco", ["colour", "kind", "size"])
    metrics.update(masks, targets, rejected, types)
    chosen = [i for i, name in enumerate(types) if name == "kind"]
    alone = SegmentationMetrics("grefcoco")
    alone.update(masks[chosen], targets[chosen], rejected[chosen])
    by_type = metrics.compute_by_type()
    assert by_type["kind"] == pytest.approx(alone.compute())
    assert by_type["size"]["giou"] is None
    assert by_type["size"]["masks"] == 0


def test_rules_by_hand():
    """Two pixels drawn of which one is right, one absent target kept, one absent target rejected."""
    masks = torch.tensor([[[1, 1, 0]], [[1, 1, 1]], [[1, 0, 0]]], dtype=torch.bool)
    targets = torch.tensor([[[1, 0, 0]], [[0, 0, 0]], [[0, 0, 0]]])
    rejected = [False, False, True]
    grefcoco = SegmentationMetrics("grefcoco")
    assert grefcoco.update(masks, targets, rejected) == pytest.approx([0.5, 0.0, 1.0])
    assert grefcoco.compute()["ciou"] == pytest.approx(1 / (2 + 3))
    assert grefcoco.compute()["n_acc"] == 0.5
    assert grefcoco.compute()["t_acc"] == 1.0
    assert grefcoco.compute()["pr@0.5"] == 1.0
    assert grefcoco.compute()["pr@0.6"] == 0.0
    refzom = SegmentationMetrics("refzom")
    refzom.update(masks, targets, rejected)
    assert refzom.compute()["ciou"] == pytest.approx(1 / 2)
    reason = SegmentationMetrics("reason")
    assert reason.update(masks, targets) == pytest.approx([0.5, 0.0, 0.0], abs=1e-5)
    assert reason.compute()["ciou"] == pytest.approx(1 / (2 + 3 + 1))


def test_rejected_targets_are_scored_only_as_the_originals_do_unless_asked_otherwise():
    masks = torch.ones(1, 2, 2, dtype=torch.bool)
    original = SegmentationMetrics("grefcoco")
    assert original.update(masks, masks, [True]) == pytest.approx([1.0])
    honest = SegmentationMetrics("grefcoco", zero_rejected=True)
    assert honest.update(masks, masks, [True]) == [0.0]
    assert original.compute()["t_acc"] == honest.compute()["t_acc"] == 0.0
    assert honest.compute()["ciou"] == 0.0
    assert honest.compute()["pr@0.5"] == 0.0


def test_zero_logits_follow_the_rule():
    logits = torch.tensor([-1.0, 0.0, 1.0])
    assert SegmentationMetrics("grefcoco").binarise(logits).tolist() == [False, True, True]
    assert SegmentationMetrics("reason").binarise(logits).tolist() == [False, False, True]


def test_ignored_pixels_count_for_nothing():
    masks = torch.tensor([[[1, 1, 1, 0]]], dtype=torch.bool)
    targets = torch.tensor([[[1, 255, 0, 255]]], dtype=torch.uint8)
    metrics = SegmentationMetrics("reason")
    assert metrics.update(masks, targets) == pytest.approx([0.5], abs=1e-5)


def test_empty_update_and_empty_metrics():
    metrics = SegmentationMetrics("grefcoco")
    assert metrics.update(torch.zeros(0, 4, 4, dtype=torch.bool), torch.zeros(0, 4, 4), []) == []
    numbers = metrics.compute()
    assert numbers["masks"] == 0
    assert all(numbers[name] is None for name in ("giou", "ciou", "n_acc", "t_acc"))
    assert all(numbers[f"pr@{threshold}"] is None for threshold in PRECISION_THRESHOLDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"masks": torch.zeros(1, 2, 2)}, "masks must be bool"),
        ({"targets": torch.zeros(1, 2, 3)}, r"\(1, 2, 2\) and \(1, 2, 3\)"),
        ({"rejected": None}, "needs `rejected`"),
        ({"rejected": [True, False]}, "2 flags for 1 masks"),
        ({"types": None}, "got none for 1 masks"),
        ({"types": ["taste"]}, "no types taste; choose from colour, kind"),
    ],
)
def test_wrong_updates_are_explained(arguments, message):
    metrics = SegmentationMetrics("grefcoco", ["colour", "kind"])
    good = {
        "masks": torch.zeros(1, 2, 2, dtype=torch.bool),
        "targets": torch.zeros(1, 2, 2),
        "rejected": [False],
        "types": ["kind"],
    }
    metrics.update(**good)
    with pytest.raises(ValueError, match=message):
        metrics.update(**{**good, **arguments})


def test_wrong_settings_are_explained():
    with pytest.raises(ValueError, match="choose one of reason, grefcoco, refzom"):
        SegmentationMetrics("coco")
    with pytest.raises(ValueError, match="named twice"):
        SegmentationMetrics(types=["kind", "kind"])
    with pytest.raises(ValueError, match="Only like metrics"):
        SegmentationMetrics("refzom").merge(SegmentationMetrics("grefcoco"))
    with pytest.raises(ValueError, match=r"shape \(1, 14\), got \(2, 14\)"):
        SegmentationMetrics().load_state_tensor(torch.zeros(2, 14))
