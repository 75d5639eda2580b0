"""Label maps: names, maps and masks equal to the originals', and sentences for files that cannot be used."""

import hashlib
import json
import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from reasonseg.data.data_files import DataFileError
from reasonseg.data.mask_targets import load_image
from reasonseg.data.semantic_segmentation import Ade20k, CocoStuff, MapillaryVistas, class_names
from tests.support.recorded_data_sets import DATA_ROOT, SYSTEMS, assert_same_image, recorded, recorded_arrays


READERS = {"ade20k": Ade20k, "cocostuff": CocoStuff, "mapillary": MapillaryVistas}
CANDIDATES = [
    (system, name, item)
    for system in SYSTEMS
    for name in READERS
    for item in recorded(f"{system}/mixture_candidates")[name]["items"]
]


@pytest.fixture
def root(tmp_path):
    """A copy of the data root to damage."""
    for folder in ("ade20k", "coco", "cocostuff", "mapillary"):
        shutil.copytree(DATA_ROOT / folder, tmp_path / folder)
    return tmp_path


def first_label_file(reader):
    return next(reader.label_path(index) for index in range(len(reader)) if reader[index].targets)


@pytest.mark.parametrize("data_set", ["ade20k", "cocostuff"])
def test_class_names_are_the_originals(data_set):
    hashes = [hashlib.sha256(name.encode()).hexdigest() for name in class_names(data_set)]
    assert hashes == recorded("class_names")[data_set]


@pytest.mark.parametrize(("system", "name", "item"), CANDIDATES, ids=lambda value: str(value)[:40])
def test_images_give_the_recorded_maps_names_and_masks(system, name, item):
    reader = READERS[name](DATA_ROOT)
    image = reader[item["index"]]
    assert image.path == DATA_ROOT / item["image"]
    assert reader.label_path(item["index"]) == DATA_ROOT / item["label_file"]
    if item["outcome"] == "draws again":
        assert not image.targets
        return
    arrays = recorded_arrays(f"{system}/mixture_candidates")
    names = [name if system == "lisa" else name[0] for name in item["sampled_classes"]]
    assert [target.wordings for target in image.targets] == [(name,) for name in names]
    np.testing.assert_array_equal(reader.label_map(item["index"]), arrays[item["label_key"]])
    np.testing.assert_array_equal(np.stack([target.mask() for target in image.targets]), arrays[item["masks_key"]])
    assert_same_image(load_image(image.path), item)


@pytest.mark.parametrize("name", READERS)
def test_all_images_are_listed(name):
    assert len(READERS[name](DATA_ROOT)) == recorded("lisa/mixture_candidates")[name]["count"]


def test_images_with_another_ending_are_counted_in_the_log(caplog):
    with caplog.at_level(logging.INFO, logger="reasonseg.data.mask_targets"):
        Ade20k(DATA_ROOT)
    assert "1 images in" in caplog.text
    assert "do not end in .jpg" in caplog.text


def test_equal_names_share_the_first_mask_unless_fixed(root):
    """The class is asked for twice, with one mask; `fixed` gives each its own."""
    (root / "mapillary/config_v2.0.json").write_text(
        json.dumps({"labels": [{"readable": name} for name in ("Fence", "Bird", "FENCE")]}), encoding="utf-8"
    )
    label_map = np.array([[0, 1, 2, 2]], dtype=np.uint8)
    path = MapillaryVistas(root).label_path(0)
    Image.fromarray(label_map).save(path)
    as_recorded, mended = (MapillaryVistas(root, fixed)[0].targets for fixed in (False, True))
    assert [target.wordings[0] for target in as_recorded] == ["fence", "bird", "fence"]
    assert as_recorded[2].mask().tolist() == [[True, False, False, False]]
    assert mended[2].mask().tolist() == [[False, False, True, True]]


def test_values_without_a_class(root):
    """ADE20K's 0 and 255 and COCO-Stuff's names with a dash are no classes; every other value counts."""
    path = first_label_file(Ade20k(root))
    Image.fromarray(np.array([[0, 1, 150, 255]], dtype=np.uint8)).save(path)
    reader = Ade20k(root)
    index = next(index for index in range(len(reader)) if reader.label_path(index) == path)
    assert reader.label_map(index).tolist() == [[255, 0, 149, 255]]
    stuff = CocoStuff(root)
    Image.fromarray(np.array([[0, class_names("cocostuff").index("wall-other"), 181, 255]], dtype=np.uint8)).save(
        stuff.label_path(0)
    )
    assert stuff.label_map(0).tolist() == [[0, 255, 181, 255]]
    assert [target.wordings[0] for target in stuff[0].targets] == ["person", "wood"]


@pytest.mark.parametrize(
    ("name", "value", "shown"), [("ade20k", 151, 151), ("cocostuff", 182, 182), ("mapillary", 200, 200)]
)
def test_an_unknown_class_is_named_with_its_pixel(root, name, value, shown):
    reader = READERS[name](root)
    path = reader.label_path(1)
    values = np.zeros((4, 5), dtype=np.uint8)
    values[2, 3] = value
    Image.fromarray(values).save(path)
    with pytest.raises(DataFileError, match=rf"{path.name} has the class {shown} at row 2, column 3; \d+ classes"):
        reader[1]


@pytest.mark.parametrize("name", READERS)
def test_damaged_label_maps_are_refused_by_name(root, name):
    reader = READERS[name](root)
    truncated, missing, coloured = (reader.label_path(index) for index in range(3))
    truncated.write_bytes(truncated.read_bytes()[:-60])
    missing.unlink()
    Image.new("RGB", (4, 4)).save(coloured)
    for index, path, reason in ((0, truncated, ""), (1, missing, "not an existing"), (2, coloured, "mode RGB")):
        with pytest.raises(DataFileError, match=f"{path.name}.*{reason}"):
            reader[index]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("ade20k", "ade20k/images/training"),
        ("ade20k", "ade20k/annotations/training"),
        ("cocostuff", "coco/train2017"),
        ("cocostuff", "cocostuff/train2017"),
        ("mapillary", "mapillary/training/images"),
        ("mapillary", "mapillary/training/v2.0/labels"),
    ],
)
def test_missing_folders_are_named(root, name, folder):
    shutil.rmtree(root / folder)
    with pytest.raises(DataFileError, match=rf"{name}: the folder .*{folder} does not exist"):
        READERS[name](root)


def test_empty_folders_are_named(root):
    for path in (root / "cocostuff/train2017").iterdir():
        path.unlink()
    with pytest.raises(DataFileError, match=r"cocostuff/train2017 has no file that ends in \.png"):
        CocoStuff(root)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist"),
        ("{}", "whose `labels` are a list"),
        ('{"labels": [{"readable": "Bird"}, {"name": "x"}]}', "label 1 must be .* `readable`"),
        ("{", "is not a JSON file"),
    ],
)
def test_a_list_of_classes_that_cannot_be_used(root, content, reason):
    path = root / "mapillary/config_v2.0.json"
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    with pytest.raises(DataFileError, match=reason):
        MapillaryVistas(root)
