"""Rows of ReasonSeg and RefCOCO as `datasets` gives them; the library itself is not needed here."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from reasonseg.data.data_files import DataFileError
from reasonseg.data.hub_datasets import HubImages


SQUARE = [1.0, 1.0, 5.0, 1.0, 5.0, 4.0, 1.0, 4.0]


def reasoning_row(**changes):
    mask = np.zeros((6, 8), dtype=bool)
    mask[2:4, 3:5] = True
    row = {
        "image": Image.new("L", (8, 6), 9),
        "mask": mask.tolist(),
        "text": "What could hold water?",
        "image_id": "12_a",
        "ann_id": "12_a",
        "img_height": 6,
        "img_width": 8,
    }
    return {**row, **changes}


def referring_row(**changes):
    row = {
        "question_id": "469306",
        "image": Image.new("RGB", (8, 6)),
        "question": "Please describe the object.",
        "answer": ["left cup", "the red one"],
        "segmentation": SQUARE,
        "bbox": [1.0, 1.0, 4.0, 3.0],
        "iscrowd": 0,
        "file_name": "COCO_train2014_000000000001_0.jpg",
    }
    return {**row, **changes}


def test_a_row_of_reason_seg():
    item = HubImages("Ricky06662/ReasonSeg_val", rows=[reasoning_row()])[0]
    (target,) = item.targets
    assert (item.name, target.wordings, item.image.mode) == ("12_a", ("What could hold water?",), "RGB")
    assert np.argwhere(target.mask()).tolist() == [[2, 3], [2, 4], [3, 3], [3, 4]]


def test_a_row_of_refcoco():
    item = HubImages("lmms-lab/RefCOCOplus", "testA", rows=[referring_row()])[0]
    assert item.name == "469306"
    assert [target.wordings[0] for target in item.targets] == ["left cup", "the red one"]
    masks = [target.mask() for target in item.targets]
    np.testing.assert_array_equal(*masks)
    assert masks[0].sum() == 12


def test_rows_are_loaded_by_datasets(monkeypatch):
    asked = {}

    def load_dataset(name, **options):
        asked.update(name=name, **options)
        return [reasoning_row(), reasoning_row()]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert len(HubImages("Ricky06662/ReasonSeg_test", revision="abc")) == 2
    assert asked == {"name": "Ricky06662/ReasonSeg_test", "split": "test", "revision": "abc"}


def test_without_datasets_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install datasets"):
        HubImages("lmms-lab/RefCOCO", "val")


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="'lmms-lab/GQA' is read by nothing here"):
        HubImages("lmms-lab/GQA", rows=[])


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("ReasonSeg_val", {"image": Image.new("RGB", (2, 2))}, "has no column 'text'; it has image"),
        ("ReasonSeg_val", reasoning_row(text=["x"]), "`text` is .*must be a text"),
        ("ReasonSeg_val", reasoning_row(image="no such file.jpg"), "not an existing local image file"),
        ("ReasonSeg_val", reasoning_row(mask=[[True, False]]), r"the shape \(1, 2\), its upright image \(6, 8\)"),
        ("ReasonSeg_val", reasoning_row(mask=[[True], [True, False]]), r"the shape \(0,\)"),
        ("RefCOCO", referring_row(answer="cup"), "`answer` is 'cup'"),
        ("RefCOCO", referring_row(segmentation=[1.0, 2.0]), "has no area"),
        ("RefCOCO", referring_row(segmentation=[*SQUARE, float("nan"), 0.0]), "list of finite numbers"),
    ],
)
def test_rows_that_cannot_be_used(name, row, reason):
    with pytest.raises(DataFileError, match=f"{name}, val, row 0.*{reason}"):
        [target.mask() for target in HubImages(name, "val", rows=[row])[0].targets]
