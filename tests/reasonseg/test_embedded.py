"""The model in the package: it loads without being named, finds what is there and rejects what is not."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor, pipeline
from typer.testing import CliRunner

import reasonseg
from reasonseg.cli.app import app
from reasonseg.evaluation.reasoning_segmentation import evaluate
from reasonseg.model_names import EMBEDDED_MODEL
from reasonseg.processing.answer_stream import AnswerEnd, SegmentDrawn, TextPiece
from reasonseg.tabletop.questions import tabletop_questions
from reasonseg.tabletop.requests import make_requests
from reasonseg.tabletop.scenes import draw_scene


@pytest.fixture(scope="module")
def pipe():
    return pipeline("reasoning-segmentation")


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    return (mask & truth).sum() / max((mask | truth).sum(), 1)


@pytest.mark.parametrize("index", [1, 2, 3])
def test_three_scenes_through_the_pipeline(pipe, index):
    scene = draw_scene("test", index)
    (request,) = make_requests(
        scene, 1, several_rate=0.0, absent_rate=0.0, varied_rate=0.0, weights={"colour_kind": 1.0}
    )
    found = pipe(scene.image, text=request.question)
    assert found["generated_text"] == request.answer
    (segment,) = found["segments"]
    assert segment["label"] == request.phrases[0]
    assert not segment["rejected"]
    assert iou(np.asarray(segment["mask"]) > 0, request.masks[0]) > 0.7

    absent = pipe(scene.image, text="Where is the elephant?")
    (segment,) = absent["segments"]
    assert segment["rejected"]
    assert segment["mask"] is None


def test_phrases_read_as_was_decided(pipe):
    scene = draw_scene("test", 4)
    found = pipe(scene.image, phrases=["the yellow cup", "an elephant"])
    assert [segment["rejected"] for segment in found["segments"]] == [False, True]
    assert found["generated_text"] == "the yellow cup [SEG], an elephant [REJ]."
    assert [found["generated_text"][slice(*segment["span"])] for segment in found["segments"]] == ["[SEG]", "[REJ]"]
    assert all(0 <= segment["score"] <= 1 for segment in found["segments"])


def test_the_pipeline_streams_what_it_returns(pipe):
    scene = draw_scene("test", 4)
    question, options = "Where are the yellow cup and the elephant?", {"reject_threshold": 0.5, "max_new_tokens": 20}
    found = pipe(scene.image, text=question, **options)
    events = list(pipe.stream(scene.image, question, **options))
    assert "".join(event.text for event in events if isinstance(event, TextPiece)) == found["generated_text"]
    drawn = [event.segment for event in events if isinstance(event, SegmentDrawn)]
    for segment, expected in zip(drawn, found["segments"], strict=True):
        assert (segment.label, segment.span, segment.rejected) == tuple(
            expected[name] for name in ("label", "span", "rejected")
        )
        assert segment.rejected or np.array_equal(segment.mask, np.asarray(expected["mask"]) > 0)
    assert isinstance(events[-1], AnswerEnd)
    assert events.index(next(event for event in events if isinstance(event, SegmentDrawn))) < len(events) - 3
    for arguments, message in (((["a", "b"],), "one question is streamed"), (("a",), "mask_format is an option")):
        with pytest.raises(ValueError, match=message):
            pipe.stream(scene.image, *arguments, mask_format="rle")


def test_a_few_scenes_that_training_never_drew():
    model, processor = (kind.from_pretrained(EMBEDDED_MODEL) for kind in (AutoModel, AutoProcessor))
    result = evaluate(model.eval(), processor, tabletop_questions("test", 12), "free", batch_size=16)
    assert result.slots_missing == 0
    assert result.overall["giou"] > 0.7
    assert result.overall["n_acc"] > 0.7
    assert result.overall["t_acc"] > 0.85


def test_the_repository_is_small_and_has_no_code():
    assert reasonseg.EMBEDDED_MODEL == EMBEDDED_MODEL
    files = {path.name: path.stat().st_size for path in EMBEDDED_MODEL.iterdir()}
    assert sum(files.values()) < 12_000_000
    assert {"model.safetensors", "config.json", "processor_config.json", "tokenizer.json", "README.md"} <= set(files)
    assert not [name for name in files if name.endswith((".py", ".bin", ".pt"))]
    for name in files:
        if name.endswith(".json"):
            text = (EMBEDDED_MODEL / name).read_text(encoding="utf-8")
            assert "auto_map" not in text
            assert "custom_pipelines" not in text


def test_numbers_are_computed_in_single_precision():
    assert AutoModel.from_pretrained(EMBEDDED_MODEL, dtype="auto").dtype == torch.float32


def test_demo(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--seed", "1", "--out", str(tmp_path / "demo.png"), "--json"])
    assert result.exit_code == 0, result.output
    answers = json.loads(result.stdout)
    assert answers[0]["segments"] == 1
    assert (tmp_path / "demo.png").stat().st_size > 10_000
