"""What the writers write, read by the libraries of others; a test is skipped where its library is not installed."""

import importlib.metadata
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reasonseg.data.annotation_formats import WritingOptions, find_format
from reasonseg.data.annotation_writing import write_annotations
from reasonseg.data.format_datasets import write_datasets
from reasonseg.processing.regions import read_rle
from tests.data.test_annotation_writers import MEANT, check
from tests.support.labelled import BOX, RING, SIZE, labelled_images


def require_labelme() -> None:
    """LabelMe's reader, which is open to others up to version 6."""
    library("labelme")
    if int(importlib.metadata.version("labelme").split(".")[0]) > 6:
        pytest.skip("From version 7 on LabelMe keeps its reader to itself: pip install 'labelme<7'.")


def library(name: str):
    return pytest.importorskip(name, reason=f"`pip install {name}` to have it read what is written.")


def write(name: str, tmp_path: Path, splits=(None, None), **options) -> Path:
    entry = find_format(name)
    options = WritingOptions(**{"masks": entry.masks[0], **options})
    images = labelled_images(tmp_path / "in", splits)
    write_annotations(entry, iter(images), tmp_path / "out", options)
    return tmp_path / "out"


# ---- LabelMe --------------------------------------------------------------------------------------------------------

# It needs Qt, and in a process of its own as it changes Pillow's limit.
_LABELME = """
import json, sys
import numpy as np
from labelme import LabelFile
from labelme.utils import shapes_to_label
from loguru import logger

logger.remove()
found = {}
for path in sys.argv[1:]:
    file = LabelFile(path)
    names = {shape["label"]: number for number, shape in enumerate(file.shapes, start=1)}
    objects = {}
    for number, shape in enumerate(file.shapes):
        key = number if shape["group_id"] is None else -1 - shape["group_id"]
        _, painted = shapes_to_label((%d, %d), [shape], names)
        objects.setdefault(key, [shape["label"], np.zeros(painted.shape, dtype=bool)])[1] |= painted > 0
    found[file.image_path if hasattr(file, "image_path") else file.imagePath] = {
        "flags": file.flags,
        "bytes": len(file.image_data if hasattr(file, "image_data") else file.imageData),
        "objects": [[label, np.flatnonzero(mask).tolist()] for label, mask in objects.values()],
    }
print(json.dumps(found))
"""


@pytest.mark.parametrize("masks", ["exact", "polygons"])
def test_labelme_reads_what_is_written(tmp_path, masks):
    require_labelme()
    out = write("labelme", tmp_path, masks=masks)
    files = sorted(map(str, out.glob("*.json")))
    process = subprocess.run(
        [sys.executable, "-c", _LABELME % SIZE, *files],
        capture_output=True,
        text=True,
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen"},
        check=False,
    )
    assert process.returncode == 0, process.stderr
    read = json.loads(process.stdout)
    assert read["upright.png"]["flags"] == read["nothing.png"]["flags"] == {"rejected: a dog": True}
    assert all(image["bytes"] for image in read.values())
    found = {}
    for name, image in read.items():
        found[name] = []
        for label, pixels in image["objects"]:
            mask = np.zeros(SIZE, dtype=bool)
            mask.ravel()[pixels] = True
            found[name].append((label, mask))
    if masks == "exact":
        check(found)
        return
    # LabelMe paints polygons with their outline, half of which lies outside
    for name, objects in MEANT.items():
        for (label, wanted), (read_label, mask) in zip(objects, found[name], strict=True):
            padded = np.pad(wanted, 1)
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
            assert label == read_label
            assert not (wanted & ~mask).any()
            assert not (mask & ~windows.any(axis=(2, 3))).any()


# ---- datasets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    datasets = library("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    return datasets


def test_datasets_loads_what_is_written(datasets, tmp_path):
    out = write("datasets", tmp_path, splits=("train", "test"))
    loaded = datasets.load_dataset(str(out))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 2, "test": 2}
    assert isinstance(loaded["train"].features["image"], datasets.Image)
    found = {}
    for row in [*loaded["train"], *loaded["test"]]:
        assert row["image"].size == SIZE[::-1]
        assert (row["height"], row["width"]) == SIZE
        drawn = [found for found in row["objects"] if found["rle"] is not None]
        found[row["file_name"]] = [(one["label"] or "object", read_rle(one["rle"])) for one in drawn]
        for one in drawn:
            assert one["area"] == read_rle(one["rle"]).sum()
    check(found)
    row = loaded["train"][0]
    assert row["requests"] == [{"question": "What is round?", "answer": "the ring [SEG], a dog [REJ], [SEG]."}]
    assert (row["model"], row["revision"]) == ("org/model", "main")
    ring, dog, box = row["objects"]
    assert (ring["score"], ring["span"], ring["rejected"], ring["box_xyxy"]) == (0.75, [9, 14], False, [2, 2, 30, 20])
    assert (dog["label"], dog["rle"], dog["rejected"], dog["score"], dog["span"]) == (
        "a dog",
        None,
        True,
        0.25,
        [22, 27],
    )
    assert (box["label"], box["is_crowd"]) == ("", False)
    crowd = loaded["test"][0]["objects"][0]
    assert (crowd["is_crowd"], crowd["score"], crowd["span"]) == (True, None, None)
    # as the file is named where its library is not told about folders
    (file,) = (out / "data").glob("train-00000-of-00001.parquet")
    alone = datasets.load_dataset("parquet", data_files=str(file), split="train", streaming=True)
    assert next(iter(alone))["image"].size == SIZE[::-1]


def test_shards_of_a_size_with_all_rows_in_order(datasets, tmp_path):
    images = labelled_images(tmp_path / "in")
    (tmp_path / "out").mkdir()
    write_datasets(images * 5, tmp_path / "out", WritingOptions(), shard_bytes=20_000)
    files = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert files == [f"train-{number:05d}-of-{len(files):05d}.parquet" for number in range(len(files))]
    assert len(files) > 2
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert loaded["file_name"][:] == [image.file_name for image in images * 5]


def test_images_by_their_paths_and_none(datasets, tmp_path):
    images = labelled_images(tmp_path / "in")[:2]
    for choice in ("link", "none"):
        write_annotations(find_format("datasets"), images, tmp_path / choice, WritingOptions(images=choice))
    row = datasets.load_dataset(str(tmp_path / "link"), split="train")[0]
    np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(Image.open(images[0].source)))
    assert "image" not in datasets.load_dataset(str(tmp_path / "none"), split="train").features
    linked = datasets.load_dataset(str(tmp_path / "link"), split="train")
    stored = linked.cast_column("image", datasets.Image(decode=False))["image"][:]
    assert [one["bytes"] is None for one in stored] == [True, False], "one that is to be turned is no link"
    with Image.open(io.BytesIO(stored[1]["bytes"])) as turned:
        assert (turned.size, turned.getexif().get(0x0112, 1)) == (SIZE[::-1], 1)


# ---- supervision ----------------------------------------------------------------------------------------------------


@pytest.fixture
def supervision():
    return library("supervision")


def masks_of(dataset, labels: list[str]) -> dict[str, list[tuple[str, np.ndarray]]]:
    return {
        Path(path).name: [
            (labels[number], mask) for number, mask in zip(detections.class_id, detections.mask, strict=True)
        ]
        if len(detections)
        else []
        for path, _, detections in dataset
    }


@pytest.mark.parametrize("masks", ["exact", "polygons"])
def test_supervision_reads_coco(supervision, tmp_path, masks):
    out = write("coco", tmp_path, masks=masks)
    dataset = supervision.DetectionDataset.from_coco(
        images_directory_path=str(out / "images"),
        annotations_path=str(out / "annotations" / "instances.json"),
        force_masks=True,
    )
    found = masks_of(dataset, dataset.classes)
    if masks == "exact":
        check(found)
    np.testing.assert_array_equal(found["upright.png"][1][1][:6, 10:20], BOX[:6, 10:20])


def test_supervision_reads_yolo(supervision, tmp_path):
    out = write("yolo", tmp_path)
    dataset = supervision.DetectionDataset.from_yolo(
        images_directory_path=str(out / "images" / "train"),
        annotations_directory_path=str(out / "labels" / "train"),
        data_yaml_path=str(out / "data.yaml"),
        force_masks=True,
    )
    found = masks_of(dataset, dataset.classes)
    assert {name: [label for label, _ in objects] for name, objects in found.items()} == {
        name: [label for label, _ in objects] for name, objects in MEANT.items()
    }
    ring = found["upright.png"][0][1]
    # cv2 paints outlines and bridges as well
    assert not (RING & ~ring).any()
    assert (ring & ~RING).sum() < 80
