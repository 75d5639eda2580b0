"""Scoring a model: slots against phrases, both protocols, one process against two."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reasonseg.evaluation.benchmark import Question, evaluate
from reasonseg.evaluation.report import results_table, write_report
from reasonseg.processing.segments import Segment, SegmentationResult


SIZE = (8, 10)


def box(top: int, bottom: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[top:bottom] = True
    return mask


class Answers:
    """Stands for model and processor: answers each text as told, however the answer is asked for."""

    def __init__(self, answers: dict[str, list[np.ndarray | None]]):
        self.answers = answers
        self.config = SimpleNamespace(rej_token_id=1)
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
    assert model.image_counts == [1], "questions about one picture share it"


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
from reasonseg.evaluation.benchmark import evaluate
from reasonseg.questions import tabletop_questions
from reasonseg.training.recipe import load_recipe
from reasonseg.training.run import build_tabletop
from accelerate import PartialState
state = PartialState(cpu=True)
torch.set_num_threads(1)
model, processor = build_tabletop(load_recipe("tabletop"))
result = evaluate(model.eval(), processor, tabletop_questions("validation", 3), protocol="paper", batch_size=2)
if state.is_main_process:
    print("RESULT" + json.dumps({**result.to_dict(), "cases": len(result.cases)}))
"""


def test_two_processes_give_the_numbers_of_one(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT, encoding="utf-8")
    root = Path(__file__).parents[2]

    def run(*command: str) -> dict:
        finished = subprocess.run(
            [sys.executable, *command, str(script)],
            capture_output=True,
            text=True,
            cwd=root,
            timeout=300,
            env={**__import__("os").environ, "PYTHONPATH": str(root), "ACCELERATE_USE_CPU": "true"},
            check=False,
        )
        lines = [line for line in finished.stdout.splitlines() if line.startswith("RESULT")]
        assert len(lines) == 1, finished.stderr[-2000:]
        return json.loads(lines[0].removeprefix("RESULT"))

    one = run()
    two = run("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29733")
    assert one["overall"]["masks"] == two["overall"]["masks"] > 10
    assert one["cases"] == two["cases"]
    for name, value in one["overall"].items():
        assert two["overall"][name] == pytest.approx(value, abs=1e-9), name
