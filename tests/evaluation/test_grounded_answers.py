"""Answers with masks as files: what is kept, and whose files are read."""

import json

import numpy as np
import pytest

from reasonseg.data.annotated_images import AnnotatedImage
from reasonseg.evaluation.grounded_answers import GroundedAnswer, read_grounded_answers
from reasonseg.processing.phrase_segments import PhraseSegment, PhraseSegmentationResult
from reasonseg.processing.segments import mask_to_rle


IMAGES = [AnnotatedImage(name, f"{name}.jpg", (6, 8)) for name in ("img_a", "img_b")]
SQUARE = np.zeros((6, 8), dtype=bool)
SQUARE[1:4, 2:6] = True


def test_results_of_the_processor():
    segments = [
        PhraseSegment("a dog", (0, 5), SQUARE, 0.5, core_word="dog", point_xy=(3, 2)),
        PhraseSegment("a cat", (6, 9), None, 0.1, rejected=True, core_word="cat", point_xy=(3, 2)),
        PhraseSegment("a bus", (10, 15), ~SQUARE, 0.25, core_word="bus", point_xy=(0, 0)),
    ]
    answer = GroundedAnswer.from_result(PhraseSegmentationResult("a dog a cat a bus", segments, (6, 8)))
    assert answer == GroundedAnswer(
        caption="a dog a cat a bus",
        phrases=["a dog", "a bus"],
        masks=[mask_to_rle(SQUARE), mask_to_rle(~SQUARE)],
        points=[(3, 2), (0, 0)],
        boxes=None,
        core_words=["dog", "bus"],
        scores=[0.5, 0.25],
    )
    entry = json.loads(answer.to_bytes("img_a"))
    assert list(entry)[:5] == ["image_id", "caption", "phrases", "pred_masks", "points"]
    assert GroundedAnswer.from_dict(entry) == answer
    silent = GroundedAnswer.from_result(PhraseSegmentationResult("Nothing.", [], (6, 8)))
    assert GroundedAnswer.from_dict(json.loads(silent.to_bytes(1))) == silent


def test_files_of_all_three_kinds_are_read(tmp_path):
    answer = GroundedAnswer("a dog", ["a dog"], [mask_to_rle(SQUARE)], points=[(1, 2)])
    for entry in (answer.to_dict("img_a"), {"img_a.jpg": answer.to_dict("img_a")}):
        (tmp_path / "img_a.json").write_text(json.dumps(entry), encoding="utf-8")
        assert read_grounded_answers(tmp_path, IMAGES) == {"img_a": answer}
    (tmp_path / "img_a.json").write_text('{"caption": "x"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"img_a\.json cannot be read: An answer lacks phrases, pred_masks"):
        read_grounded_answers(tmp_path, IMAGES)
    with pytest.raises(FileNotFoundError, match="no answer to any of the 2 images"):
        read_grounded_answers(tmp_path / "nowhere", IMAGES)


def test_lists_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="There are 2 scores for 1 phrases"):
        GroundedAnswer("a dog", ["a dog"], [mask_to_rle(SQUARE)], scores=[1.0, 2.0])
