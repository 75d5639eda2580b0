"""RefCOCO's kin against what the loaders of LISA and GSVA gave for a tiny data root in the original formats.

Images, sentences, masks, order, texts and random draws are equal to the recordings; bad files are refused in a
sentence.
"""

import copy
import json
import logging
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from reasonseg.data.data_files import DataFileError
from reasonseg.data.instruction_wording import SYSTEM_MESSAGE
from reasonseg.data.lisa_mixture import LisaMixture
from reasonseg.data.referring_expressions import (
    ORIGINALS,
    REFERRING_SETS,
    Annotation,
    Quirks,
    ReferringExpressions,
    paint,
    quirks_of,
)
from reasonseg.data.referring_questions import validation_sample
from reasonseg.processing.mask_reading import read_mask
from tests.support.mutations import mutations
from tests.support.recorded_data_sets import DATA_ROOT as ROOT
from tests.support.recorded_data_sets import FirstCalls, assert_same_image, recorded, recorded_arrays


def conversations(sample) -> list[str]:
    pairs = zip(sample.questions, sample.answers, strict=True)
    return [f"USER: <image>\n{question} ASSISTANT: {answer}</s>" for question, answer in pairs]


def check_image(item, record) -> None:
    assert item.path == ROOT / record["image"]
    if "rgb_sha256" in record:  # not where the original failed
        assert_same_image(item.load_image(), record)


def asked(root: Path, name: str, original: str, index: int, template: int = 0, fixed: bool = False):
    """All expressions of an image as training asks for them, or why the original takes another image."""
    mixture = LisaMixture(
        root, original, "refer_seg", [1], referring=name, classes_per_sample=1000, fixed=fixed, no_sampling=True
    )
    return mixture.groups["refer_seg"]._attempt(FirstCalls(template), index)


RECORDED_SETS = [(original, name) for original in ORIGINALS for name in recorded(f"{original}/referring_candidates")]
RECORDED_SPECIFICATIONS = [
    (original, name) for original in ORIGINALS for name in recorded(f"{original}/referring_validation")
]


@pytest.mark.parametrize(("original", "name"), RECORDED_SETS)
def test_all_that_can_be_drawn_is_as_recorded(original, name):
    data = ReferringExpressions(ROOT, name, original=original)
    records = recorded(f"{original}/referring_candidates")[name]
    arrays = recorded_arrays(f"{original}/referring_arrays")
    assert len(data) == records["count"] == len(records["items"])
    for item, record in zip(data, records["items"], strict=True):
        assert (item.image_id, item.path) == (record["image_id"], ROOT / record["image"])
        assert (item.source, item.split, item.original) == (name, "train", original)
        assert item.sentences == record["sentences"]
        assert [expression.ref_id for expression in item.targets] == record["ref_ids"]
        assert [expression.ann_ids for expression in item.targets] == record["ann_ids"]
        if record["outcome"] == "draws again":
            assert not item.masks().any()
            assert "expressions have empty masks" in asked(ROOT, name, original, record["index"])
            continue
        check_image(item, record)
        if record["outcome"] == "ok":
            drawn = asked(ROOT, name, original, record["index"], record["template"])
            assert drawn.prompts == [f"{SYSTEM_MESSAGE} {text}" for text in record["conversations"]]
            assert drawn.names == record["sampled_classes"]
            assert item.masks().dtype == np.uint8
            for masks in (item.masks(), drawn.masks):
                assert np.array_equal(masks, arrays[f"candidates/{record['masks_key']}"])
            continue
        assert record["outcome"] == "KeyError: 0"
        for index, outcome in enumerate(record["single"]):
            if outcome == "ok":
                mask = arrays[f"candidates/{name}/{record['index']}/{index}/masks"]
                assert np.array_equal(item.targets[index].mask()[None], mask)
            else:
                with pytest.raises(DataFileError, match=r"instances\.json: reference \d+ .*, annotation \d+: .*crowd"):
                    item.targets[index].mask()


@pytest.mark.parametrize(("original", "name"), RECORDED_SPECIFICATIONS)
def test_validation_sets_are_as_recorded(original, name):
    record = recorded(f"{original}/referring_validation")[name]
    root = ROOT / "refer_seg" if original == "lisa" else ROOT
    if record["outcome"] == "SystemExit":
        with pytest.raises(ValueError, match="LISA has no validation on grefcoco"):
            ReferringExpressions.from_specification(root, name, original)
        return
    arrays = recorded_arrays(f"{original}/referring_arrays")
    data = ReferringExpressions.from_specification(root, name, original)
    assert (len(data), data.num_expressions) == (record["length"], record["expressions"])
    for item, expected in zip(data, record["items"], strict=True):
        check_image(item, expected)
        sample = validation_sample(item)
        assert conversations(sample) == expected["conversations"]
        assert np.array_equal(sample.masks, arrays[f"validation/{expected['masks_key']}"])


def test_recordings_cover_every_data_set():
    assert {name for _, name in RECORDED_SETS} == set(REFERRING_SETS)
    assert len(RECORDED_SPECIFICATIONS) == 41


# Painting, on one image of 6 x 8 pixels

SIZE = (6, 8)
SQUARE = [1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]
CORNER = [3.0, 3.0, 8.0, 3.0, 8.0, 6.0, 3.0, 6.0]
LINE = [0.0, 0.0, 7.0, 5.0]
CROWD = {"size": list(SIZE), "counts": [6, 12, 30]}
TEXT_CROWD = {"size": list(SIZE), "counts": coco_mask.frPyObjects(CROWD, *SIZE)["counts"].decode()}


def painted(*segmentations, quirks=None, what="x"):
    annotations = [Annotation(number, segmentation) for number, segmentation in enumerate(segmentations, start=1)]
    return paint(annotations, SIZE, quirks or Quirks(), what)


def outlined(part):
    return coco_mask.decode(coco_mask.frPyObjects([part], *SIZE))[..., 0]


@pytest.mark.parametrize("original", ORIGINALS)
@pytest.mark.parametrize("purpose", ["training", "validation"])
def test_overlapping_parts_count_in_lisa_alone(original, purpose):
    quirks = quirks_of(original, purpose, lists_targets=False)
    both = outlined(SQUARE) + outlined(CORNER)
    assert both.max() == 2
    mask = painted([SQUARE, CORNER], quirks=quirks)
    assert np.array_equal(mask, both if original == "lisa" else both > 0)
    # several targets are joined bit by bit: 2 | 1 = 3
    several = painted([SQUARE, SQUARE], [SQUARE], quirks=quirks)
    assert set(np.unique(several)) == ({0, 3} if original == "lisa" else {0, 1})
    assert np.array_equal(painted([SQUARE, CORNER]), both > 0)


def test_no_target_and_no_outline_are_empty():
    for quirks in (Quirks(), *(quirks_of(name, "validation", True) for name in ORIGINALS)):
        for segmentations in ([], [[]], [[], []]):
            mask = painted(*segmentations, quirks=quirks)
            assert mask.shape == SIZE
            assert mask.dtype == np.uint8
            assert not mask.any()


def test_crowds_are_refused_where_the_originals_fail():
    expected = np.zeros(SIZE, np.uint8)
    expected[:, 1:3] = 1
    for crowd in (CROWD, TEXT_CROWD, [CROWD], [TEXT_CROWD], [TEXT_CROWD, TEXT_CROWD]):
        assert np.array_equal(painted(crowd), expected)
    assert np.array_equal(painted(CROWD, quirks=quirks_of("gsva", "training", True)), expected)
    for quirks in (quirks_of("lisa", "training", True), quirks_of("gsva", "validation", False)):
        with pytest.raises(DataFileError, match=r"^x, annotation 2: it is a crowd.*KeyError: 0"):
            painted([SQUARE], CROWD, quirks=quirks)
    with pytest.raises(DataFileError, match="crowd of compressed run lengths"):
        painted(TEXT_CROWD, quirks=quirks_of("gsva", "validation", True))
    twice = painted([TEXT_CROWD, TEXT_CROWD], quirks=quirks_of("lisa", "training", False))
    assert np.array_equal(twice, 2 * expected)


def test_outlines_without_three_corners():
    training = quirks_of("gsva", "training", True)
    validation = quirks_of("gsva", "validation", True)
    square = outlined(SQUARE)
    assert np.array_equal(painted([SQUARE, LINE], quirks=training), square | outlined([*LINE, *LINE]))
    with pytest.raises(DataFileError, match=r"annotation 1: its first outline .* takes for a box"):
        painted([LINE, SQUARE], quirks=training)
    odd = [*SQUARE, 3.0]
    assert painted([odd], quirks=training).any()
    for segmentation in ([SQUARE, LINE], [LINE, SQUARE], [odd, SQUARE], [SQUARE, [], [1.0]]):
        assert np.array_equal(painted(segmentation, quirks=validation), square)
        assert np.array_equal(painted(segmentation), square)
    # one of several targets is left out; all of them stop GSVA's evaluation
    assert np.array_equal(painted([LINE], [SQUARE], quirks=validation), square)
    for segmentations in ([[LINE]], [[odd], [LINE]]):
        with pytest.raises(DataFileError, match="only outlines of fewer than three whole corners"):
            painted(*segmentations, quirks=validation)
        assert not painted(*segmentations).any()


def test_half_meant_segmentations_are_refused():
    cases = {
        "no outline": ["ab", 7, None, [[SQUARE]], [["x"] * 6], [[None] * 6], [{}], {}, [SQUARE, {"size": [6, 8]}]],
        "not a number": [[[float("nan")] * 6], [[float("inf")] * 6]],
        "longer than any image": [[[0, 0, 1e9, 0, 1e9, 1e9]], [[1e300, 0, 5, 5, 0, 5]], [[0, 0, 4e6, 0, 0, 0] * 3]],
        "another size": [{"size": [8, 6], "counts": [48]}, [{"size": [1, 1], "counts": "11"}]],
        "counts that lead out": [{"size": [6, 8], "counts": [6, 1000]}, {"size": [6, 8], "counts": "zzzz"}],
    }
    for segmentation in [segmentation for group in cases.values() for segmentation in group]:
        with pytest.raises(DataFileError, match=r"^x, annotation 1\b") as caught:
            painted(segmentation)
        assert len(str(caught.value)) < 500


# Files: a small data set of one's own, written in each form


def sentence(text: str, number: int) -> dict:
    return {"tokens": text.split(), "raw": text, "sent": text, "sent_id": number}


def reference(ref_id: int, image_id: int, ann_id, *texts: str, split: str = "train") -> dict:
    sentences = [sentence(text, ref_id * 10 + number) for number, text in enumerate(texts)]
    ids = {"ref_id": ref_id, "image_id": image_id, "ann_id": ann_id, "category_id": 1}
    return ids | {"split": split, "sentences": sentences, "file_name": f"{image_id}.jpg"}


REFERENCES = [
    reference(4, 7, 40, "the cat", "CAT."),
    reference(2, 9, 41, "a {dog}"),
    reference(3, 7, 42, " . "),
    reference(1, 8, 41, "x", split="val"),
]
LISTED = [
    reference(4, 7, [40, 42], "both cats", "BOTH."),
    reference(2, 9, [-1], "no SEGway"),
    reference(3, 7, [], "nothing"),
    reference(1, 8, [41], "x", split="val"),
]
INSTANCES = {
    "images": [{"id": image_id, "file_name": f"{image_id}.jpg", "height": 6, "width": 8} for image_id in (7, 8, 9)],
    "annotations": [
        {"id": ann_id, "image_id": 7, "category_id": 1, "segmentation": [SQUARE, LINE]} for ann_id in (40, 41, 42)
    ],
}


def write(folder: Path, references, instances=INSTANCES, name="refcoco", protocol=2, as_json=False) -> Path:
    """A data root with one data set."""
    kind = REFERRING_SETS[name]
    path = folder / "refer_seg" / kind.references.format(split_by=kind.split_by)
    path.parent.mkdir(parents=True, exist_ok=True)
    if as_json:
        path.with_suffix(".json").write_text(json.dumps(references), encoding="utf-8")
    else:
        path.write_bytes(pickle.dumps(references, protocol))
    (path.parent / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
    images = folder / "refer_seg" / kind.images
    images.mkdir(parents=True, exist_ok=True)
    for image_id in (7, 8, 9):
        Image.new("RGB", SIZE[::-1], (image_id, 0, 0)).save(images / f"{image_id}.jpg")
    return folder


def test_an_image_has_the_sentences_of_its_split_in_the_order_of_the_file(tmp_path):
    data = ReferringExpressions(write(tmp_path, REFERENCES), "refcoco")
    assert data.image_ids == list({7, 9})
    items = {item.image_id: item for item in data}
    assert items[7].sentences == ["the cat", "CAT.", " . "]
    assert items[9].sentences == ["a {dog}"]
    assert items[7].targets[0].mask() is items[7].targets[1].mask()
    assert items[7].targets[0].wordings == ("the cat",)
    (conversation,) = asked(tmp_path, "refcoco", "lisa", data.image_ids.index(9)).conversations
    assert conversation[0] == "<image>\nCan you segment the a {dog} in this image?"
    assert len(data) == 2
    assert data.num_expressions == 4
    with pytest.raises(IndexError):
        data[2]


def test_images_come_in_the_order_of_cpythons_hashes(tmp_path):
    ids = random.Random(3).sample(range(600_000), 5000)
    references = [reference(number, image_id, 40, "x") for number, image_id in enumerate(ids)]
    images = [{"id": image_id, "file_name": "7.jpg", "height": 6, "width": 8} for image_id in sorted(ids)]
    data = ReferringExpressions(write(tmp_path, references, INSTANCES | {"images": images}), "refcoco")
    assert data.image_ids == list(set(ids))
    assert data.image_ids != sorted(ids)
    assert data.image_ids != ids


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", {1}),
        ("val", {2}),
        ("test", {3, 4, 5, 6}),
        ("testA", {3, 5}),
        ("testB", {4, 5, 6}),
        ("testC", {6}),
        ("testAB", {5}),
        ("testBC", {6}),
        ("testAC", set()),
    ],
)
def test_splits_of_refer(tmp_path, split, expected):
    splits = ["train", "val", "testA", "testB", "testAB", "testBC"]
    references = [reference(number, 7, 40, "x", split=name) for number, name in enumerate(splits, start=1)]
    data = ReferringExpressions(write(tmp_path, references), "refcoco", split)
    assert {expression.ref_id for item in data for expression in item.targets} == expected


def test_splits_of_grefcoco_are_exact_and_unknown_ones_refused(tmp_path, caplog):
    references = [reference(number, 7, [40], "x", split=name) for number, name in enumerate(["testA", "testAB"])]
    write(tmp_path, references, name="grefcoco")
    assert ReferringExpressions(tmp_path, "grefcoco", "testA", "gsva")[0].sentences == ["x"]
    with caplog.at_level(logging.WARNING):
        assert len(ReferringExpressions(tmp_path, "grefcoco", "testB", "gsva")) == 0
    assert "grefcoco|testB: 0 images, 0 expressions" in caplog.text
    for name, split in (("grefcoco", "test"), ("refcoco", "valid"), ("refcoco", "testD")):
        write(tmp_path, references, name=name)
        with pytest.raises(DataFileError, match=rf"refs\(unc\)\.p has no split '{split}'; it has testA, testAB, and"):
            ReferringExpressions(tmp_path, name, split, "gsva")


def test_grefcoco_is_read_as_a_pickle_or_else_as_json(tmp_path):
    write(tmp_path, LISTED, name="grefcoco", as_json=True)
    as_json = ReferringExpressions(tmp_path, "grefcoco", original="gsva")
    write(tmp_path, copy.deepcopy(LISTED[:1]), name="grefcoco", protocol=4)
    as_pickle = ReferringExpressions(tmp_path, "grefcoco", original="gsva")
    assert (len(as_json), len(as_pickle)) == (2, 1)
    assert as_pickle[0].sentences == ["both cats", "BOTH."]


def test_who_made_the_splits(tmp_path):
    write(tmp_path, REFERENCES)
    folder = tmp_path / "refer_seg" / "refcoco"
    (folder / "refs(google).p").write_bytes(pickle.dumps(REFERENCES[:1]))
    assert len(ReferringExpressions(tmp_path, "refcoco")) == 2
    assert len(ReferringExpressions(tmp_path, "refcoco", split_by="google")) == 1
    # LISA's evaluation believes what is written, GSVA's does not
    train = "refcoco|google|train"
    assert len(ReferringExpressions.from_specification(tmp_path / "refer_seg", train, "lisa")) == 1
    assert len(ReferringExpressions.from_specification(tmp_path, train, "gsva")) == 2
    with pytest.raises(DataFileError, match=r"refs\(umd\)\.p does not exist"):
        ReferringExpressions.from_specification(tmp_path, "refcoco|umd|val", "lisa")
    with pytest.raises(ValueError, match="leads out of the folder"):
        ReferringExpressions(tmp_path, "refcoco", split_by="/../../x")


def test_what_is_mended(tmp_path, caplog):
    write(tmp_path, LISTED, name="grefcoco")
    settings = {"original": "gsva", "purpose": "validation"}
    data = [ReferringExpressions(tmp_path, "grefcoco", as_original=whole, **settings) for whole in (True, False)]
    original, mended = (validation_sample(next(item for item in each if item.image_id == 9)) for each in data)
    assert original.questions == [" What are no segwayin this image? Please output segmentation masks."]
    assert mended.questions == [" What are no segway in this image? Please output segmentation masks."]
    assert original.answers == mended.answers == ["Sure,no segway:[REJ]."]
    write(tmp_path, REFERENCES)
    with caplog.at_level(logging.INFO):
        mended = ReferringExpressions(tmp_path, "refcoco", as_original=False)
    assert [text for item in mended for text in item.sentences if item.image_id == 7] == ["the cat", "CAT."]
    assert "1 sentences without a word left out; 3 outlines without three whole corners left out" in caplog.text
    # each quirk by itself
    only = ReferringExpressions(tmp_path, "refcoco", quirks=Quirks(keeps_wordless=True))
    assert only.num_expressions == 4
    assert not only.quirks.counts_parts


def test_gsvas_training_passes_over_images_without_a_target(tmp_path, caplog):
    write(tmp_path, LISTED, name="grefcoco")
    with caplog.at_level(logging.INFO):
        data = ReferringExpressions(tmp_path, "grefcoco", original="gsva")
    assert "grefcoco|train: 2 images, 4 expressions; 1 images without any target" in caplog.text
    passed_over = [isinstance(asked(tmp_path, "grefcoco", "gsva", index), str) for index in range(len(data))]
    assert passed_over == [item.image_id == 9 for item in data]


def test_gsvas_training_stops_at_a_sentence_without_a_word(tmp_path):
    write(tmp_path, [reference(4, 7, 40, "the cat", "  ")])
    with pytest.raises(DataFileError, match=r"refcoco, .*7\.jpg has the text ''; it must not be empty"):
        asked(tmp_path, "refcoco", "gsva", 0)
    assert asked(tmp_path, "refcoco", "lisa", 0, template=2).conversations[1][0] == (
        "<image>\nWhat is  in this image? Please respond with segmentation mask."
    )


def test_samples_as_examples(tmp_path):
    write(tmp_path, LISTED, name="grefcoco")

    def example_of(original):
        data = ReferringExpressions(tmp_path, "grefcoco", original=original, purpose="validation")
        item = next(item for item in data if item.image_id == 7)
        return item, validation_sample(item).example()

    item, example = example_of("gsva")
    assert example.image == item.path
    assert len(example.questions) == len(example.answers) == len(example.masks) == 1
    assert [mask is None for mask in example.masks[0]] == [False, False, True]
    _, example = example_of("lisa")
    assert len(example.questions) == len(example.answers) == 3
    assert [[mask.any() for mask in masks] for masks in example.masks] == [[True], [True], [False]]
    for conversation in example.masks:
        assert read_mask(conversation[0], item.size).shape == item.size


def test_masks_are_painted_when_asked_for_and_items_travel_to_other_processes(tmp_path, monkeypatch):
    write(tmp_path, REFERENCES)
    calls = []
    monkeypatch.setattr(
        "reasonseg.data.referring_expressions.paint", lambda *args: calls.append(args) or np.zeros(SIZE)
    )
    item = ReferringExpressions(tmp_path, "refcoco")[0]
    assert not calls
    item.masks()
    item.masks()
    assert len(calls) == len({expression.ref_id for expression in item.targets})
    monkeypatch.undo()
    data = ReferringExpressions(tmp_path, "refcoco")
    for copied in (copy.deepcopy(data), copy.copy(data)):
        assert np.array_equal(copied[0].masks(), data[0].masks())
    assert len(pickle.dumps(data[0])) < 20_000


# Bad files


def broken(entries, change):
    entries = copy.deepcopy(entries)
    change(entries)
    return entries


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda refs: refs[1].update(ann_id=99), r"reference 2 of image 9 refers to annotation 99, which .* not have"),
        (lambda refs: refs[3].update(ann_id=99), "reference 1 of image 8 refers to annotation 99"),
        (lambda refs: refs[1].update(image_id=77), r"reference 2 is about image 77, which .*instances\.json does not"),
        (lambda refs: refs[1].pop("sentences"), r"reference number 2 has no 'sentences'; it needs ref_id, image_id"),
        (lambda refs: refs[1]["sentences"][0].pop("sent"), "reference number 2 has no 'sent'"),
        (
            lambda refs: refs[1]["sentences"][0].update(sent=5),
            "reference number 2 has the sentences .5.; each must be",
        ),
        (lambda refs: refs[1].update(sentences=7), "reference number 2 is {"),
        (lambda refs: refs[1].update(ref_id="2"), "reference number 2 has .*'ref_id': '2'.*whole numbers"),
        (lambda refs: refs[1].update(image_id=True), "reference number 2 has .*whole numbers"),
        (lambda refs: refs[1].update(split=None), "reference number 2 has .*the split a text"),
        (lambda refs: refs[1].update(ann_id="41"), "reference number 2 has the ann_id '41'"),
        (lambda refs: refs[1].update(ann_id=[41, 2.5]), r"reference number 2 has the ann_id \[41, 2.5\]"),
        (lambda refs: refs[1].update(ann_id=[-1, 41]), "reference number 2 has the ann_id .*-1 says that there is no"),
        (lambda refs: refs.insert(0, "x"), "reference number 1 is 'x'"),
    ],
)
def test_references_that_cannot_be_used(tmp_path, change, message):
    write(tmp_path, broken(REFERENCES, change))
    with pytest.raises(DataFileError, match=message) as caught:
        ReferringExpressions(tmp_path, "refcoco")
    assert "refs(unc).p" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("images"), "has no list 'images'"),
        (lambda file: file.update(annotations={}), "has no list 'annotations'"),
        (lambda file: file["annotations"][1].pop("segmentation"), "annotation 41, which .* gives no segmentation"),
        (lambda file: file["annotations"].insert(0, {"id": "x"}), "entry 1 of 'annotations' is {'id': 'x'}"),
        (lambda file: file["images"][0].update(height=0), "image 7: .*at least 1"),
        (lambda file: file["images"][0].update(height=10**9), "image 7: .*pixels, more than"),
        (lambda file: file["images"][0].update(width="8"), "image 7: its height and width are"),
        (lambda file: file["images"][0].update(file_name="../7.jpg"), "image 7: .*leads out of the folder"),
        (lambda file: file["images"][0].update(file_name="/etc/passwd"), "image 7: .*leads out of the folder"),
        (lambda file: file["images"][0].pop("file_name"), "image 7: None is not a file name"),
        (lambda file: file["annotations"][0].update(segmentation="x"), "reference 4 of image 7, annotation 40: "),
    ],
)
def test_annotations_that_cannot_be_used(tmp_path, change, message):
    write(tmp_path, REFERENCES, broken(INSTANCES, change))
    with pytest.raises(DataFileError, match=message) as caught:
        [item.masks() for item in ReferringExpressions(tmp_path, "refcoco")]
    assert "instances.json" in str(caught.value)


def test_missing_files_and_names(tmp_path):
    with pytest.raises(DataFileError, match=r"refer_seg does not exist"):
        ReferringExpressions(tmp_path, "refcoco")
    write(tmp_path, REFERENCES)
    folder = tmp_path / "refer_seg"
    for path in (folder / "images", folder / "refcoco" / "instances.json", folder / "refcoco" / "refs(unc).p"):
        moved = path.rename(tmp_path / "moved")
        with pytest.raises(DataFileError, match="does not exist") as caught:
            ReferringExpressions(tmp_path, "refcoco")
        assert path.name in str(caught.value)
        moved.rename(path)
    with pytest.raises(
        ValueError, match=r"'cocoref' is not a data set of referring expressions; choose one of refclef,"
    ):
        ReferringExpressions(tmp_path, "cocoref")
    with pytest.raises(ValueError, match="'llava' is not an original"):
        ReferringExpressions(tmp_path, "refcoco", original="llava")
    with pytest.raises(ValueError, match="LISA does not read refzom; GSVA does"):
        ReferringExpressions(tmp_path, "refzom")
    with pytest.raises(ValueError, match="no validation set"):
        ReferringExpressions.from_specification(tmp_path, "ReasonSeg|val")


def test_files_that_are_damaged_or_hostile(tmp_path):
    write(tmp_path, REFERENCES)
    folder = tmp_path / "refer_seg" / "refcoco"
    (folder / "refs(unc).p").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataFileError, match=r"refs\(unc\)\.p is not read: .* it names 'os\.system'"):
        ReferringExpressions(tmp_path, "refcoco")
    (folder / "refs(unc).p").write_bytes(pickle.dumps({"refs": REFERENCES}))
    with pytest.raises(DataFileError, match=r"refs\(unc\)\.p holds a dict; a list of references is needed"):
        ReferringExpressions(tmp_path, "refcoco")
    write(tmp_path, REFERENCES)
    (folder / "instances.json").write_text('{"images": [', encoding="utf-8")
    with pytest.raises(DataFileError, match=r"instances\.json is not a JSON file"):
        ReferringExpressions(tmp_path, "refcoco")


def test_images_that_are_missing_truncated_or_of_another_size(tmp_path):
    write(tmp_path, REFERENCES)
    item = next(item for item in ReferringExpressions(tmp_path, "refcoco") if item.image_id == 7)
    assert item.load_image().size == (8, 6)
    Image.new("RGB", (6, 8)).save(item.path)
    with pytest.raises(DataFileError, match=r"instances\.json: image 7 is 8 x 6 pixels .* its image .*7\.jpg 6 x 8"):
        item.load_image()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 8)).save(item.path, exif=exif)
    assert item.load_image().size == (8, 6)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).save(item.path, "PNG")
    item.path.write_bytes(item.path.read_bytes()[:-40])
    with pytest.raises(DataFileError, match=r"refcoco, image 7: .*7\.jpg' cannot be decoded"):
        item.load_image()
    item.path.unlink()
    with pytest.raises(DataFileError, match=r"refcoco, image 7: .*7\.jpg' is not an existing local image"):
        item.load_image()


@pytest.mark.parametrize("name", ["refcoco", "grefcoco"])
def test_any_damage_gives_data_or_a_sentence(tmp_path, name):
    references, original = (REFERENCES, "lisa") if name == "refcoco" else (LISTED, "gsva")
    write(tmp_path, references, name=name)
    kind = REFERRING_SETS[name]
    path = tmp_path / "refer_seg" / kind.references.format(split_by=kind.split_by)
    instances = path.parent / "instances.json"
    usable = 0
    for number in range(200):
        if number % 2:
            path.write_bytes(pickle.dumps(mutations(references, 1, number)[0], 2))
            instances.write_text(json.dumps(INSTANCES), encoding="utf-8")
        else:
            path.write_bytes(pickle.dumps(references, 2))
            instances.write_text(json.dumps(mutations(INSTANCES, 1, number)[0]), encoding="utf-8")
        try:
            for item in ReferringExpressions(tmp_path, name, original=original):
                validation_sample(item)
            usable += 1
        except DataFileError:
            pass
    assert 20 < usable < 180


def test_two_references_of_one_id_are_both_the_last(tmp_path):
    """REFER keeps references by their id."""
    write(tmp_path, [reference(4, 7, 40, "first"), reference(4, 9, 41, "second")])
    data = ReferringExpressions(tmp_path, "refcoco")
    assert [item.sentences for item in data] == [["second", "second"]]


def test_the_recorded_root_may_lie_anywhere(tmp_path):
    """Neither the folder's name nor links matter: only what lies below `refer_seg`."""
    shutil.copytree(ROOT / "refer_seg", tmp_path / "images" / "refcoco" / "refer_seg")
    data = ReferringExpressions(tmp_path / "images" / "refcoco", "refclef")
    assert data[0].load_image().size == data[0].size[::-1]
