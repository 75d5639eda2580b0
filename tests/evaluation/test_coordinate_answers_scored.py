"""ReasonSeg and RefCOCO for models that write coordinates: what is asked, read, drawn and counted by each protocol."""

import json

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from reasonseg.evaluation.image_results import NO_SLOT, REJECTED, SEGMENTED
from reasonseg.evaluation.referring_benchmarks import AskedImages, Rules
from reasonseg.evaluation.referring_segmentation import Answer, read_by_rules, rules_for, score_image
from reasonseg.evaluation.registry import BENCHMARKS, UnknownBenchmarkError
from reasonseg.processing.image_processing_reasoning_segmentation import SegmenterImageProcessor
from reasonseg.processing.processing_coordinates import CoordinatesProcessor
from tests.evaluation.test_referring_segmentation import Loaded
from tests.processing.test_processing_reasoning_segmentation import qwen_processor
from tests.support.recorded_data_sets import DATA_ROOT


LEFT_AND_RIGHT = (
    '<think>x</think><answer>[{"bbox_2d": [0, 0, 20, 56], "point_2d": [9, 9]}, '
    '{"bbox_2d": [40, 0, 56, 56], "point_2d": [49, 9]}]</answer>'
)
# Published code wants double quotes and a point.
READABLE = "<answer>[{'bbox_2d': [0, 0, 28, 56]}]</answer>"


def processor(coordinate_format: str = "vision_reasoner") -> CoordinatesProcessor:
    view = SegmenterImageProcessor(size={"height": 64, "width": 64})
    return CoordinatesProcessor(qwen_processor(), view, coordinate_format=coordinate_format, vlm_image_size=[56, 56])


class Scripted:
    """Answers every question with the same text, and draws the boxes that the reader finds in it."""

    device = torch.device("cpu")
    generation_config = GenerationConfig(max_new_tokens=1024)

    def __init__(self, own: CoordinatesProcessor, text: str):
        self.ids, self.asked = own.tokenizer(text)["input_ids"], []

    def eval(self):
        return self

    def encode_image(self, **inputs) -> dict:
        return inputs

    def generate_with_masks(self, coordinate_reader, input_ids, max_new_tokens, do_sample, **inputs) -> dict:
        self.asked.append(max_new_tokens)
        answers = [coordinate_reader(self.ids, row) for row in range(len(input_ids))]
        masks = []
        for answer, sizes in zip(answers, coordinate_reader.sizes, strict=True):
            row = torch.full((len(answer.objects), 64, 64), -1.0)
            for number, found in enumerate(answer.objects):
                edges = np.divide(found.box_xyxy, [sizes.image[1], sizes.image[0]] * 2) * 64
                left, top, right, bottom = edges.round().astype(int)
                row[number, top:bottom, left:right] = 1.0
            masks.append(row)
        return {
            "answers": answers,
            "pred_masks": masks,
            "mask_scores": [torch.ones(len(row)) for row in masks],
            "rejected": [torch.zeros(len(row), dtype=torch.bool) for row in masks],
        }


def evaluated(out, data_set: str, protocol: str, text: str, coordinate_format: str = "vision_reasoner"):
    own = processor(coordinate_format)
    model = Scripted(own, text)
    options = Loaded(
        dataset=data_set,
        out=out,
        model="tiny",
        data=DATA_ROOT,
        protocol=protocol,
        pair=(model, own),
        limit=2,
        given={"masks": "yes", "resamples": "0"},
    )
    outcome = BENCHMARKS[data_set].evaluate(options)
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    return outcome, model, [one for row in rows for one in row["expressions"]]


@pytest.mark.parametrize("data_set", ["reasonseg", "refcoco"])
@pytest.mark.parametrize("protocol", ["paper", "free", "fixed"])
def test_all_objects_of_an_answer_are_one_mask(data_set, protocol, tmp_path):
    outcome, model, expressions = evaluated(tmp_path, data_set, protocol, LEFT_AND_RIGHT)
    assert set(model.asked) == {1024}
    about = json.loads((tmp_path / "settings.json").read_text(encoding="utf-8"))
    assert about["reading"] == ("paper" if protocol == "paper" else "fixed")
    assert {one["decision"] for one in expressions} == {SEGMENTED}
    images = AskedImages(DATA_ROOT, "val", Rules(data_set, protocol, "vision_reasoner"))
    asked = images[0]
    size = (asked.load().height, asked.load().width)
    target = asked.paint(size)[0]
    x = np.arange(size[1]) / size[1]
    near_an_edge = 2 * size[0] * 4
    drawn = np.broadcast_to((x < 20 / 56) | (x > 40 / 56), size) & (target != 255)
    assert abs(expressions[0]["union"] - np.count_nonzero(drawn | (target == 1))) < near_an_edge
    assert 0 < outcome.result.overall["giou"] < 1
    assert (protocol == "paper") == (outcome.result.mends == [])


def test_published_code_reads_less(tmp_path):
    """Nothing that can be read is an IoU of 0, whose union is the target."""
    _, _, paper = evaluated(tmp_path / "paper", "reasonseg", "paper", READABLE)
    outcome, _, _fixed = evaluated(tmp_path / "fixed", "reasonseg", "fixed", READABLE)
    assert [one["iou"] for one in paper] == [0.0] * len(paper)
    assert [one["decision"] for one in paper] == [NO_SLOT] * len(paper)
    assert all(one["union"] > 0 for one in paper)
    assert outcome.result.overall["giou"] > 0
    assert any("published code drops" in mend for mend in outcome.result.mends)


@pytest.mark.parametrize(
    ("original", "protocol", "expected"),
    [("vision_reasoner", "paper", 0.0), ("star", "paper", 1.0), ("vision_reasoner", "fixed", 0.0)],
)
def test_nothing_drawn_where_nothing_is(original, protocol, expected):
    """VisionReasoner counts an empty union as 0, StAR as 1; a model that does not answer says nothing right."""
    empty = np.zeros((1, 4, 5), dtype=np.uint8)
    (result,) = score_image(["x"], empty, [Answer(None, NO_SLOT)], Rules("reasonseg", protocol, original))
    assert result.iou == expected


def test_regions_to_ignore_are_targets_of_published_code():
    target = np.array([[[1, 255, 0, 0]]], dtype=np.uint8)
    assert Rules("reasonseg", "paper", "star").ignored_is_target
    assert not Rules("reasonseg", "fixed", "star").ignored_is_target
    mask = np.array([[True, True, False, False]])
    (result,) = score_image(["x"], target, [Answer(mask, SEGMENTED)], Rules("reasonseg", "fixed", "star"))
    assert (result.intersection, result.union) == (1, 1)
    (exact,) = score_image(
        ["x"], np.uint8([[[1, 1, 1, 0]]]), [Answer(mask, SEGMENTED)], Rules("reasonseg", "paper", "star")
    )
    assert exact.iou == 2 / 3


def test_an_answer_without_objects_rejects_where_targets_may_be_absent(tmp_path):
    _, _, expressions = evaluated(tmp_path, "grefcoco", "fixed", "<answer>[]</answer>")
    assert {one["decision"] for one in expressions} == {REJECTED}
    with pytest.raises(UnknownBenchmarkError, match=r"have no evaluation on it. It can run --protocol free or fixed"):
        evaluated(tmp_path / "paper", "grefcoco", "paper", "<answer>[]</answer>")


def test_whose_rules_are_followed():
    for name, original in (("star_qwen3", "star"), ("qwen2_5_vl", "vision_reasoner")):
        own = processor(name)
        paper, free = (rules_for(own, "reasonseg", protocol) for protocol in ("paper", "free"))
        assert (paper.original, free.protocol) == (original, "free")
        assert read_by_rules(own, paper).reading == "paper"
        own.reading = own._format.published[-1]
        assert read_by_rules(own, free).reading == "fixed"
        assert read_by_rules(own, paper).reading == own.reading, "a published reader that was chosen stays"
        assert own.reading == own._format.published[-1], "what is measured stays as it was"


def test_expressions_of_refcoco_are_worded_as_star_words_them():
    asked = processor("star").word_expression("the left cup.")
    assert asked.count("the left cup") == 1
    assert "Compare the difference between object(s)" in asked
    assert "Return ALL matching instances. double-check" in asked
    assert processor("star").word_expression(asked) == asked
