"""Scoring a model: slots against phrases, both protocols, one process against two."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from reasonseg.evaluation.reasoning_segmentation import Question, check_questions, evaluate, results_table
from reasonseg.evaluation.report import write_report
from reasonseg.processing.image_loading import load_rgb_image
from reasonseg.processing.segments import Segment, SegmentationResult, mask_to_rle
from tests.support.forked_python import run_distributed


SIZE = (8, 10)


def box(top: int, bottom: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[top:bottom] = True
    return mask


class Answers:
    """Stands for model and processor: answers each text as told, however the answer is asked for."""

    answers_in_objects = False

    def __init__(self, answers: dict[str, list[np.ndarray | None]]):
        self.answers = answers
        self.config = SimpleNamespace(seg_token_id=0, rej_token_id=1)
        self.device = torch.device("cpu")
        self.image_counts = []

    def eval(self):
        return self

    def __call__(self, images=None, text=None, answer=None, image_index=None, return_tensors=None, **kwargs):
        if images is None:  # the model's forward
            kwargs["rejected"] = [torch.tensor([mask is None for mask in self.answers[t]]) for t in kwargs["text"]]
            return SimpleNamespace(**kwargs)
        self.image_counts.append(len(images))
        return Inputs(texts=text)

    def generate_with_masks(self, texts, max_new_tokens):
        return SimpleNamespace(text=texts, rejected=None)

    def post_process_segmentation(self, output, inputs):
        results = []
        for text in inputs["texts"]:
            segments = [
                Segment(label=None, span=None, mask=mask, score=1.0, slot_prob=1.0, rejected=mask is None)
                for mask in self.answers[text]
            ]
            results.append(SegmentationResult(text=text, segments=segments, image_size=SIZE))
        return results


class Inputs(dict):
    def to(self, device):
        return self


def question(text: str, masks: list[np.ndarray | None], image=None) -> Question:
    image = np.zeros((*SIZE, 3), dtype=np.uint8) if image is None else image
    names = [f"phrase {i}" for i in range(len(masks))]
    return Question(image, text, "", names, masks, ["plain"] * len(masks))


def test_free_answers_are_matched_to_phrases_in_order():
    shared = np.zeros((*SIZE, 3), dtype=np.uint8)
    model = Answers({"a": [box(0, 4), None], "b": [box(0, 2)]})
    result = evaluate(
        model,
        model,
        [question("a", [box(0, 4), None], shared), question("b", [box(0, 4)], shared)],
    )
    assert result.overall["giou"] == pytest.approx((1 + 1 + 0.5) / 3, abs=1e-4)
    assert result.overall["ciou"] == pytest.approx((40 + 20) / (40 + 40))
    assert result.overall["n_acc"] == 1
    assert result.overall["t_acc"] == 1
    assert result.slots_missing == 0
    assert model.image_counts == [1], "questions about one image share it"


def test_missing_slots_are_wrong_either_way():
    model = Answers({"a": []})
    result = evaluate(model, model, [question("a", [box(0, 4), None])])
    assert result.slots_missing == 2
    assert result.overall["giou"] == 0
    assert result.overall["n_acc"] == 0
    assert result.overall["t_acc"] == 0


def test_further_slots_are_ignored():
    model = Answers({"a": [box(0, 4), box(0, 8)]})
    result = evaluate(model, model, [question("a", [box(0, 4)])])
    assert result.overall["giou"] == pytest.approx(1, abs=1e-4)


def test_a_free_rejection_leaves_no_mask():
    model = Answers({"a": [None]})
    result = evaluate(model, model, [question("a", [box(0, 4)])])
    assert result.overall["giou"] == 0
    assert result.overall["t_acc"] == 0


def test_unknown_protocol():
    with pytest.raises(ValueError, match="no protocol 'both'; choose one of free, paper"):
        evaluate(Answers({}), Answers({}), [], protocol="both")


def test_report(tmp_path):
    model = Answers({"a": [box(0, 4), None]})
    result = evaluate(model, model, [question("a", [box(0, 4), None])])
    path = write_report(result, tmp_path, {"model": "m"})
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["model"] == "m"
    assert written["overall"]["masks"] == 2
    assert set(written["by_type"]) == {"plain"}
    assert (tmp_path / "cases.png").stat().st_size > 0
    assert not list(tmp_path.glob("*.partial"))
    assert results_table(result).row_count == 2


SCRIPT = """
import json, sys
import torch, reasonseg
from reasonseg.evaluation.reasoning_segmentation import evaluate
from reasonseg.tabletop.questions import tabletop_questions
from reasonseg.training.recipe import load_recipe
from reasonseg.tabletop.recipe import build_tabletop
from accelerate import PartialState
state = PartialState(cpu=True)
torch.set_num_threads(1)
model, processor = build_tabletop(load_recipe("tabletop"))
result = evaluate(model.eval(), processor, tabletop_questions("validation", 3), protocol="paper", batch_size=2)
if state.is_main_process:
    print("RESULT" + json.dumps({**result.to_dict(), "cases": len(result.cases)}))
"""


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT, encoding="utf-8")

    def run(processes: int) -> dict:
        finished = run_distributed(script, processes=processes)
        lines = [line for done in finished for line in done.stdout.splitlines() if line.startswith("RESULT")]
        assert len(lines) == 1, [done.stderr[-2000:] for done in finished]
        return json.loads(lines[0].removeprefix("RESULT"))

    one, two = run(1), run(2)
    assert one["overall"]["masks"] == two["overall"]["masks"] > 10
    assert one["cases"] == two["cases"]
    for name, value in one["overall"].items():
        assert two["overall"][name] == pytest.approx(value, abs=1e-9), name


IMAGE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


class Watching(Answers):
    """Keeps the images that the processor was given."""

    def __call__(self, images=None, **kwargs):
        self.images = getattr(self, "images", []) + list(images or [])
        return super().__call__(images=images, **kwargs)


@pytest.mark.parametrize("kind", ["RGB", "L", "RGBA", "P", "1", "I;16", "float array", "tensor", "path", "string"])
def test_images_of_every_kind(kind, tmp_path):
    image = Image.fromarray(IMAGE)
    image.save(tmp_path / "a.png")
    given = {
        "I;16": lambda: Image.fromarray(IMAGE[..., 0].astype(np.uint16) * 256),
        "float array": lambda: IMAGE / 255,
        "tensor": lambda: torch.from_numpy(IMAGE).permute(2, 0, 1),
        "path": lambda: tmp_path / "a.png",
        "string": lambda: str(tmp_path / "a.png"),
    }.get(kind, lambda: image.convert(kind))()
    model = Watching({"a": [box(0, 4), None]})
    result = evaluate(model, model, [question("a", [box(0, 4), None], given)] * 2)
    assert result.overall["giou"] == pytest.approx(1, abs=1e-4)
    (seen,) = model.images
    np.testing.assert_array_equal(seen, np.asarray(load_rgb_image(given)))
    assert [case.image.shape for case in result.cases] == [(*SIZE, 3)] * 4
    assert write_report(result, tmp_path / "out", {}).with_name("cases.png").is_file()


def test_paths_of_one_file_share_its_image_and_keep_no_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(IMAGE).copy()).save(tmp_path / "a.png", exif=exif)
    path = str(tmp_path / "a.png")
    model = Watching({"a": [box(0, 4)]})
    result = evaluate(model, model, [question("a", [box(0, 4)], path), question("a", [box(0, 4)], "".join(path))])
    assert model.image_counts == [1]
    assert result.overall["giou"] == pytest.approx(1, abs=1e-4)
    for case in result.cases:
        assert not any(isinstance(value, np.ndarray) for value in vars(case).values())
        np.testing.assert_array_equal(case.image, IMAGE), "upright, as its masks are"
        np.testing.assert_array_equal(case.mask("target"), box(0, 4))


def test_masks_of_every_kind():
    model = Answers({"a": [box(0, 4)]})
    for mask in (box(0, 4) * 255, box(0, 4).astype(np.float64), mask_to_rle(box(0, 4)), [[0, 0, 10, 0, 10, 4, 0, 4]]):
        assert evaluate(model, model, [question("a", [mask])]).overall["giou"] == pytest.approx(1, abs=1e-4)


def test_masks_that_nobody_may_write_in_are_read_in_silence():
    """As Pillow's are. torch says once in a process that it cannot know them to be left alone."""
    model, warns = Answers({"a": [box(0, 4)]}), torch.is_warn_always_enabled()
    mask = box(0, 4)
    mask.flags.writeable = False
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(action="error"):
            result = evaluate(model, model, [question("a", [mask])])
    finally:
        torch.set_warn_always(warns)
    assert result.overall["giou"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (box(0, 4)[:1], "The mask of 'phrase 0' is 10 x 1 pixels, the image 10 x 8"),
        (box(0, 4).T, "sides are swapped"),
        (box(0, 4) * 7, r"2 different values \(0, 7\)"),
        (np.where(box(0, 4), 255, 1), r"2 different values \(1, 255\)"),
    ],
)
def test_masks_that_may_mean_several_things(mask, message):
    model = Answers({"a": [box(0, 4)]})
    with pytest.raises(ValueError, match=message):
        evaluate(model, model, [question("a", [mask])])


def test_nothing_to_evaluate():
    with pytest.raises(ValueError, match="no question to evaluate"):
        evaluate(Answers({}), Answers({}), [])


def test_a_rejection_that_is_given_must_be_known():
    model = Answers({"a": [None]})
    asked = question("a", [None])
    asked.answer = "A cup: [REJ]."
    with pytest.raises(ValueError, match=r"'A cup: \[REJ\]\.' holds \[REJ\], which this model does not know"):
        evaluate(model, model, [asked], "paper")
    evaluate(model, model, [asked], "free")
    model.rej_token = "[REJ]"
    check_questions(model, [asked], "paper")


def test_phrases_without_a_type_are_reported_once():
    model = Answers({"a": [box(0, 4), None]})
    asked = question("a", [box(0, 4), None])
    for types, names in (
        ([None, None], ["all"]),
        ([None, "cups"], ["cups", "all"]),
        (["all"] * 2, ["all", "all types"]),
    ):
        asked.types = types
        result = evaluate(model, model, [asked])
        assert list(results_table(result).columns[0].cells) == names
        assert result.overall["masks"] == 2
        assert {name: row["masks"] for name, row in result.by_type.items()} == {
            name: types.count(name) for name in types if name is not None
        }
