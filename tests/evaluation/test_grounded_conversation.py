"""Grounded conversation generation: every number of the original's evaluation, and what `fixed` changes."""

import json
import shutil
import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from reasonseg.data.coco import run_lengths
from reasonseg.data.grandf import GroundedConversations
from reasonseg.evaluation.coco_scores import COCO_SCORES, iou_matrix
from reasonseg.evaluation.grounded_answers import GroundedAnswer, read_grounded_answers
from reasonseg.evaluation.grounded_conversation import (
    CaptionsUnavailableError,
    caption_scores,
    check_caption_scores,
    match_phrases,
    paired_ious,
    score_grounded_conversation,
)
from reasonseg.evaluation.phrase_similarity import EncodedPhrases, cosine_similarities
from reasonseg.evaluation.report import save_contact_sheet
from tests.support.parity_data import PARITY


EVAL = PARITY / "attend_and_segment" / "eval"
METRICS = json.loads((EVAL / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def data():
    return GroundedConversations(EVAL / "gcg_mask_gt.json")


@pytest.fixture(scope="module")
def answers(data):
    return read_grounded_answers(EVAL / "gcg_pred", data.images)


@pytest.fixture(scope="module")
def bert():
    return EncodedPhrases.load(EVAL / "bert-base-uncased")


def overlaps(data, answers, image):
    return iou_matrix(data.target(image).masks, [run_lengths(mask, image.size) for mask in answers[image.id].masks])


def test_every_number_is_the_original_one(data, answers, bert):
    result = score_grounded_conversation(data, answers, "paper", bert, score_captions=False)
    recorded = [None if value == -1 else value for value in METRICS["coco_stats"]]
    assert list(result.masks) == list(COCO_SCORES)
    assert list(result.masks.values()) == pytest.approx(recorded, abs=1e-12)
    assert result.miou == pytest.approx(METRICS["mean_miou"], abs=1e-12)
    assert result.recall == pytest.approx(METRICS["recall"], abs=1e-12)
    assert (result.matches, result.targets) == (METRICS["true_positives"], METRICS["actual_positives"])
    assert (result.images, result.unanswered) == (3, 0)
    json.dumps(result.to_dict())


def test_overlaps_similarities_and_pairs_of_every_image(data, answers, bert):
    for image in data.images:
        recorded = METRICS["per_image"][image.id]
        ious = overlaps(data, answers, image)
        np.testing.assert_allclose(ious, recorded["iou_matrix_gt_by_pred"], atol=1e-12)
        assert np.mean(paired_ious(ious)) == pytest.approx(recorded["miou"], abs=1e-12)
        alike = cosine_similarities(bert(data.target(image).phrases), bert(answers[image.id].phrases))
        np.testing.assert_allclose(alike, recorded["text_similarity_gt_by_pred"], atol=2e-6)
        assert match_phrases(ious, alike) == [tuple(pair) for pair in recorded["best_matches"]]
        for name, pairs in recorded["matches_at"].items():
            iou, text = (float(part.split(">=")[1]) for part in name.split(","))
            assert match_phrases(ious, alike, "paper", iou, text) == [tuple(pair) for pair in pairs], (image.id, name)


def test_captions_score_as_the_original(data, answers):
    try:
        check_caption_scores()
    except CaptionsUnavailableError as error:
        pytest.skip(str(error))
    result = score_grounded_conversation(data, answers, "paper")
    recorded = {name.lower(): value for name, value in METRICS["caption_metrics"].items() if name != "SPICE"}
    assert result.captions == pytest.approx(recorded, abs=1e-9)
    assert result.recall is None
    assert "no text encoder" in result.notes[0]


def test_captions_that_would_shift_the_lines(data):
    try:
        check_caption_scores()
    except CaptionsUnavailableError as error:
        pytest.skip(str(error))
    plain = caption_scores([["A cat."], ["A dog runs."]], ["a cat", "a dog"])
    assert caption_scores([["A\ncat."], ["A dog\n\n runs."]], ["a\ncat", " a dog\n"]) == plain
    silent = caption_scores([["A cat."], ["A dog runs."]], ["", "a dog"])
    assert silent["rouge_l"] == pytest.approx(plain["rouge_l"] - 0.5, abs=1e-6)


def test_missing_packages_are_named(data, answers, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "pycocoevalcap", ModuleType("pycocoevalcap"))
    result = score_grounded_conversation(data, answers)
    assert result.captions is None
    assert "need Java" in result.notes[-1]
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    result = score_grounded_conversation(data, answers)
    assert "pip install pycocoevalcap" in result.notes[-1]


def test_fixed_goes_on_after_a_pair_that_fails():
    ious = np.array([[0.9, 0.0, 0.0], [0.0, 0.8, 0.7], [0.0, 0.6, 0.0]])
    alike = np.array([[0.1, 0.0, 0.0], [0.0, 0.9, 0.9], [0.0, 0.9, 0.0]])
    assert match_phrases(ious, alike, "paper") == []
    assert match_phrases(ious, alike, "fixed") == [(1, 1)]
    alike[1, 1] = 0.2
    assert match_phrases(ious, alike, "fixed") == [(1, 2), (2, 1)]
    assert match_phrases(ious, alike, "fixed", iou_threshold=0.65) == [(1, 2)]


def test_masks_without_phrases_never_match():
    ious, alike = np.array([[0.9, 0.0], [0.0, 0.8]]), np.array([[0.9]])
    assert match_phrases(ious, alike, "paper") == [], "as where the original's error is caught"
    assert match_phrases(ious, alike, "fixed") == [(0, 0)]


def test_fixed_is_never_less_than_paper():
    random = np.random.default_rng(0)
    for _ in range(200):
        ious, alike = random.random((5, 4)), random.random((5, 4))
        paper, fixed = match_phrases(ious, alike, "paper"), match_phrases(ious, alike, "fixed")
        assert fixed[: len(paper)] == paper
        assert len({target for target, _ in fixed}) == len({prediction for _, prediction in fixed}) == len(fixed)


def test_targets_without_a_pair(data, answers):
    result = score_grounded_conversation(data, answers, score_captions=False)
    fewer = {**answers, "img_a": GroundedAnswer("a dog", answers["img_a"].phrases[:1], answers["img_a"].masks[:1])}
    less = score_grounded_conversation(data, fewer, score_captions=False)
    assert less.miou > result.miou, "the published mean does not mind"
    assert less.miou_all_targets < result.miou_all_targets


def test_an_unanswered_image(data, answers, bert):
    two = {image_id: answers[image_id] for image_id in ("img_a", "img_b")}
    with pytest.raises(ValueError, match=r"1 of 3 images have no answer, such as 'img_c'"):
        score_grounded_conversation(data, two, "paper")
    result = score_grounded_conversation(data, two, "fixed", bert, score_captions=False)
    assert result.unanswered == 1
    assert result.targets == METRICS["actual_positives"]
    nothing = score_grounded_conversation(data, {}, "fixed", bert, score_captions=False)
    assert (nothing.miou, nothing.recall, nothing.masks["ap"]) == (0, 0, 0)


def test_only_the_first_images(answers, bert):
    data = GroundedConversations(EVAL / "gcg_caption_gt.json", limit=1)
    result = score_grounded_conversation(data, answers, "paper", bert, score_captions=False)
    assert result.miou == pytest.approx(METRICS["per_image"]["img_a"]["miou"], abs=1e-12)
    assert (result.matches, result.targets) == (2, 3)
    assert result.masks["ap50"] < METRICS["coco_stats"][1] + 0.5


def test_files_by_split(tmp_path, data):
    for kind in ("mask", "caption"):
        shutil.copy(EVAL / f"gcg_{kind}_gt.json", tmp_path / f"test_gcg_coco_{kind}_gt.json")
    assert GroundedConversations(tmp_path, "test").images == data.images
    with pytest.raises(FileNotFoundError, match=r"val_gcg_coco_mask_gt\.json does not exist"):
        GroundedConversations(tmp_path, "val")


def test_sizes_may_stand_in_the_masks(tmp_path, data):
    for kind in ("mask", "caption"):
        content = json.loads((EVAL / f"gcg_{kind}_gt.json").read_text(encoding="utf-8"))
        content["images"] = [{"id": entry["id"]} for entry in content["images"]]
        (tmp_path / f"gcg_{kind}_gt.json").write_text(json.dumps(content), encoding="utf-8")
    assert GroundedConversations(tmp_path / "gcg_mask_gt.json").images == data.images
    (tmp_path / "gcg_mask_gt.json").write_text('{"images": [], "annotations": [], "categories": []}', "utf-8")
    with pytest.raises(ValueError, match="3 images have no height and width, such as 'img_a'"):
        GroundedConversations(tmp_path / "gcg_mask_gt.json")


def test_bad_annotation_files(tmp_path):
    bad = tmp_path / "x_mask_gt.json"
    bad.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a JSON file"):
        GroundedConversations(bad)
    bad.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="it has no list 'images', 'annotations', 'categories'"):
        GroundedConversations(bad)
    with pytest.raises(ValueError, match="must have mask_gt or caption_gt in its name"):
        GroundedConversations(tmp_path / "val.json")


def test_contact_sheet_reads_images_from_disk(tmp_path, data, answers):
    for image in data.images:
        Image.new("RGB", image.size[::-1], (128, 128, 128)).save(tmp_path / image.file_name)
    result = score_grounded_conversation(data, answers, score_captions=False, image_folder=tmp_path)
    assert len(result.cases) == 7
    sheet = Image.open(save_contact_sheet(result.cases, tmp_path / "cases.png"))
    colours = np.unique(np.array(sheet).reshape(-1, 3), axis=0).astype(int)
    green, pink = colours[:, 1] - colours[:, 0], colours[:, 0] - colours[:, 1]
    assert green.max() > 30
    assert pink.max() > 30
