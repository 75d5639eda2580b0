"""ReasonSeg: maps, queries, explanations and validation items equal to the originals'."""

import json
import logging
import shutil

import numpy as np
import pytest

from reasonseg.data.data_files import DataFileError
from reasonseg.data.instruction_wording import SYSTEM_MESSAGE
from reasonseg.data.mask_targets import load_image
from reasonseg.data.reason_seg import (
    VALIDATION_ANSWERS,
    Annotation,
    ReasonSeg,
    ReasonSegValidation,
    Shape,
    read_annotation,
)
from tests.support.recorded_data_sets import (
    DATA_ROOT,
    SYSTEMS,
    assert_same_image,
    prompts_of,
    recorded,
    recorded_arrays,
)


MAPS = [
    (system, item)
    for system in SYSTEMS
    for item in recorded(f"{system}/mixture_candidates")["ReasonSeg maps"]["items"]
]
SPECS = [(system, spec) for system in SYSTEMS for spec in recorded(f"{system}/reason_seg_validation")]
SQUARE = {"label": "target", "points": [[1, 1], [5, 1], [5, 5], [1, 5]]}


@pytest.fixture
def root(tmp_path):
    """A copy of the data root to damage."""
    shutil.copytree(DATA_ROOT / "reason_seg", tmp_path / "reason_seg")
    return tmp_path


def square(label: str, low: int, high: int) -> Shape:
    return Shape(label, np.array([[low, low], [high, low], [high, high], [low, high]]))


@pytest.mark.parametrize(("system", "item"), MAPS, ids=lambda value: str(value)[:60])
def test_annotations_give_the_recorded_maps(system, item):
    image = DATA_ROOT / item["image"]
    annotation = read_annotation(image.with_suffix(".json"))
    assert annotation.texts == item["text"]
    assert annotation.is_sentence == item["is_sentence"]
    map_ = annotation.paint(tuple(item["size"]))
    assert {str(value): int((map_ == value).sum()) for value in (0, 1, 255)} == item["counts"]
    name = item["image"]
    arrays = recorded_arrays(f"{system}/mixture_candidates")
    key = next(key for key in arrays if key.startswith("map/") and name.endswith(key.removeprefix("map/")))
    np.testing.assert_array_equal(map_, arrays[key])


@pytest.mark.parametrize("splits", ["train", "train_val", "test"])
def test_images_come_split_by_split_by_name(splits):
    reader = ReasonSeg(DATA_ROOT, splits)
    folder = DATA_ROOT / "reason_seg/ReasonSeg"
    expected = [path for split in splits.split("_") for path in sorted((folder / split).glob("*.jpg"))]
    assert [reader[index].path for index in range(len(reader))] == expected
    recordings = recorded("lisa/mixture_candidates").get(f"ReasonSeg|{splits} explanatory 0.1")
    if recordings:
        assert [DATA_ROOT / item["image"] for item in recordings["items"]] == expected
        assert [item["has_explanation"] for item in recordings["items"]] == [
            reader[index].explanation is not None for index in range(len(reader))
        ]


def test_the_last_explanation_of_a_name_counts():
    entries = json.loads((DATA_ROOT / "reason_seg/ReasonSeg/explanatory/train.json").read_text(encoding="utf-8"))
    last = {entry["image"]: entry["outputs"] for entry in entries}
    reader = ReasonSeg(DATA_ROOT, "train_val")
    assert {image.path.name: image.explanation for image in map(reader.__getitem__, range(len(reader)))} == {
        image.path.name: last.get(image.path.name) for image in map(reader.__getitem__, range(len(reader)))
    }
    assert not any(image.explanation for image in map(ReasonSeg(DATA_ROOT, explained=False).__getitem__, range(3)))


@pytest.mark.parametrize(("system", "spec"), SPECS)
def test_validation_items_are_the_recorded_ones(system, spec):
    recordings = recorded(f"{system}/reason_seg_validation")[spec]
    arrays = recorded_arrays(f"{system}/reason_seg_validation")
    items = ReasonSegValidation(DATA_ROOT, spec.split("|")[1])
    assert len(items) == recordings["length"] == recordings["expressions"]
    answer = VALIDATION_ANSWERS[system]
    for item, expected in zip(items, recordings["items"], strict=True):
        assert item.path == DATA_ROOT / expected["image"]
        image = load_image(item.path)
        assert_same_image(image, expected)
        assert [f"{SYSTEM_MESSAGE} USER: {item.question()} ASSISTANT: {answer}</s>"] == prompts_of(expected)
        target = item.target((image.height, image.width), ignored_is_target=system == "gsva")
        np.testing.assert_array_equal(target[None], arrays[expected["masks_key"]])


def test_short_and_long_queries_make_up_a_split():
    items = ReasonSegValidation(DATA_ROOT, "val")
    groups = {length: list(ReasonSegValidation(DATA_ROOT, "val", length)) for length in ("short", "long")}
    assert all(item.length == length for length, group in groups.items() for item in group)
    assert all(not item.annotation.is_sentence for item in groups["short"])
    assert sorted(item.path for group in groups.values() for item in group) == [item.path for item in items]
    with pytest.raises(ValueError, match="length is 'middle'"):
        ReasonSegValidation(DATA_ROOT, "val", "middle")


def test_smaller_shapes_stay_on_top_and_the_first_of_equal_ones():
    small, large = square("target", 4, 8), square("IGNORE this", 0, 20)
    for shapes in ([small, large], [large, small]):
        map_ = Annotation(["x"], True, shapes).paint((21, 21))
        assert (map_[5, 5], map_[15, 15]) == (1, 255)
    first, second = square("target", 4, 8), square("ignore", 4, 8)
    assert Annotation(["x"], True, [first, second]).paint((9, 9))[5, 5] == 1
    assert Annotation(["x"], True, [second, first]).paint((9, 9))[5, 5] == 255


def test_points_are_cut_towards_zero_and_flags_are_left_out(tmp_path):
    path = tmp_path / "a.json"
    shapes = [{"label": "Flag", "points": [[0, 0]]}, {"label": "flag_2", "points": [[1.9, -1.9], [3, 4]]}]
    path.write_text(json.dumps({"text": ["x"], "is_sentence": False, "shapes": shapes}), encoding="utf-8")
    (shape,) = read_annotation(path).shapes
    assert shape.corners.tolist() == [[1, -1], [3, 4]]
    assert shape.value == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_texts_are_read_in_either_encoding(tmp_path, encoding):
    path = tmp_path / "a.json"
    content = {"text": ["What’s on the café’s table – sweet?"], "is_sentence": True, "shapes": [SQUARE]}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
    assert read_annotation(path).texts == content["text"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not a JSON file"),
        (b"\xff\x81{", "is not UTF-8"),
        ({}, "`text` is a list"),
        ([], "`text` is a list"),
        ({"text": [], "is_sentence": True, "shapes": []}, "`text` is a list"),
        ({"text": "x", "is_sentence": True, "shapes": []}, "`text` is a list"),
        ({"text": ["x"], "shapes": []}, "`is_sentence` is None"),
        ({"text": ["x"], "is_sentence": True}, "`shapes` must be a list"),
        ({"text": ["x"], "is_sentence": True, "shapes": [SQUARE, {"points": [[1, 1]]}]}, "shape 2 .*`label`"),
        ({"text": ["x"], "is_sentence": True, "shapes": [{"label": "target"}]}, "shape 1 has the points None"),
        ({"text": ["x"], "is_sentence": True, "shapes": [{**SQUARE, "points": []}]}, "shape 1 has the points"),
        (
            {"text": ["x"], "is_sentence": True, "shapes": [{**SQUARE, "points": [[1, 2, 3]]}]},
            "shape 1 has the points",
        ),
        (
            {"text": ["x"], "is_sentence": True, "shapes": [{**SQUARE, "points": [[1, 1e300]]}]},
            "shape 1 has the points",
        ),
        (
            {"text": ["x"], "is_sentence": True, "shapes": [{**SQUARE, "points": [[1], [2, 3]]}]},
            "shape 1 has the points",
        ),
    ],
    ids=str,
)
def test_annotations_that_cannot_be_used(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(DataFileError, match=rf"a\.json.*{reason}"):
        read_annotation(path)


def test_points_that_are_no_numbers_are_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"text": ["x"], "is_sentence": true, "shapes": [{"label": "t", "points": [[NaN, 1]]}]}', "utf-8")
    with pytest.raises(DataFileError, match="shape 1 has the points"):
        read_annotation(path)


def test_missing_files_are_named(root):
    folder = root / "reason_seg/ReasonSeg"
    image = next((folder / "train").glob("*.jpg"))
    image.with_suffix(".json").unlink()
    reader = ReasonSeg(root)
    with pytest.raises(DataFileError, match=rf"{image.stem}\.json does not exist"):
        [reader[index] for index in range(len(reader))]
    with pytest.raises(DataFileError, match=r"'evening': the folder .*ReasonSeg/evening does not exist"):
        ReasonSeg(root, "train_evening")
    (folder / "explanatory/train.json").unlink()
    with pytest.raises(DataFileError, match=r"train\.json do not exist\. Add the file, or switch explanations off"):
        ReasonSeg(root)
    assert len(ReasonSeg(root, explained=False)) == len(reader)
    shutil.rmtree(folder / "val")
    with pytest.raises(DataFileError, match="ReasonSeg/val does not exist"):
        ReasonSegValidation(root, "val")


@pytest.mark.parametrize(
    ("content", "reason"), [("{}", "must be a list"), ('[{"image": "a.jpg"}]', "entry 1 .*`outputs`")]
)
def test_explanations_of_another_form(root, content, reason):
    (root / "reason_seg/ReasonSeg/explanatory/train.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataFileError, match=reason):
        ReasonSeg(root)


def test_explanations_that_are_not_used_are_counted_in_the_log(root, caplog):
    names = [path.name for path in (root / "reason_seg/ReasonSeg/train").glob("*.jpg")]
    entries = [{"image": name, "outputs": "x"} for name in (names[0], names[0], "none.jpg", names[1])]
    (root / "reason_seg/ReasonSeg/explanatory/train.json").write_text(json.dumps(entries), encoding="utf-8")
    with caplog.at_level(logging.INFO, logger="reasonseg.data.mask_targets"):
        ReasonSeg(root)
    assert caplog.records[-1].getMessage() == (
        f"ReasonSeg, train: {len(names)} images, 2 with an explanation; 1 explanations are replaced by a later one of "
        "their image; 1 explanations belong to no image of these splits."
    )
