"""The examples that come with LabelMe: photographs, in its own format and as its scripts convert them to COCO and VOC.

They are fetched from the package index, and are not part of this repository.
"""

import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from reasonseg.data.annotation_formats import FORMATS, ReadingOptions, WritingOptions, guess_format
from reasonseg.data.annotation_writing import write_annotations
from reasonseg.data.data_files import DataFileError
from reasonseg.data.label_requests import AskingOptions, with_requests
from reasonseg.data.labelled_images import LabelledImage
from reasonseg.training.recipe import load_recipe
from reasonseg.training.run import run_recipe
from tests.support.tiny_training import write_tiny_recipe


pytestmark = pytest.mark.rare
IGNORED = "__ignore__"


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelme")
    asked = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", folder, "labelme"]
    try:
        result = subprocess.run(asked, capture_output=True, text=True, timeout=400)
    except subprocess.TimeoutExpired:
        pytest.skip("LabelMe's source distribution could not be fetched in time.")
    if result.returncode:
        pytest.skip(f"LabelMe's source distribution cannot be fetched: {result.stderr.strip().splitlines()[-1]}")
    (archive,) = folder.glob("labelme-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz") / "examples"


def read(folder: Path, **options) -> list[LabelledImage]:
    images = guess_format(folder).read(folder, ReadingOptions(**options))
    return sorted(images, key=lambda image: Path(image.file_name).name)


def masks_of(images: list[LabelledImage]) -> list[tuple[str, np.ndarray]]:
    return [(found.label, found.pixels()) for image in images for found in image.objects]


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


def test_all_formats_of_the_same_photographs_say_the_same(examples):
    folder = examples / "instance_segmentation"
    drawn = masks_of(read(folder / "data_annotated", skip_labels=(IGNORED,)))
    assert len(drawn) == 12
    for (label, mask), (other_label, other) in zip(drawn, masks_of(read(folder / "data_dataset_coco")), strict=True):
        assert label == other_label
        np.testing.assert_array_equal(mask, other)
    # LabelMe paints outlines, too, which adds half a pixel all around, and hides what lies under another object
    painted = masks_of(read(folder / "data_dataset_voc"))
    assert [label for label, _ in painted] == [label for label, _ in drawn]
    assert all(iou(mask, other) > 0.9 for (_, mask), (_, other) in zip(drawn, painted, strict=True))


def test_shapes_and_boxes(examples):
    with pytest.raises(DataFileError, match=r"primitives\.json, shape number 5 \('line'\) is a line"):
        read(examples / "primitives")
    shapes = masks_of(read(examples / "primitives", without_mask="skip"))
    assert [label for label, _ in shapes] == ["rectangle", "circle", "rectangle", "polygon", "octagon"]
    with pytest.raises(DataFileError, match=r"2011_000003\.xml, object number 1 \('person'\) has no mask"):
        read(examples / "bbox_detection" / "data_dataset_voc")
    boxes = masks_of(read(examples / "bbox_detection" / "data_dataset_voc", without_mask="box"))
    rectangles = masks_of(read(examples / "bbox_detection" / "data_annotated"))
    assert len(boxes) == len(rectangles) == 9
    assert all(iou(box, other) > 0.98 for (_, box), (_, other) in zip(boxes, rectangles, strict=True))
    (inside,) = read(examples / "tutorial")
    assert isinstance(inside.source, bytes)
    assert inside.pixels().shape == (907, 1210, 3)


def test_what_is_exported_is_what_was_drawn(examples, tmp_path):
    given = read(examples / "instance_segmentation" / "data_annotated")
    for name, entry in FORMATS.items():
        for masks in entry.masks:
            if name in ("datasets", "voc"):  # needs an extra; hides what lies under another object
                continue
            write_annotations(entry, given, tmp_path / name / masks, WritingOptions(masks=masks))
            for before, after in zip(masks_of(given), masks_of(read(tmp_path / name / masks)), strict=True):
                assert before[0] == after[0]
                np.testing.assert_array_equal(before[1], after[1])
    write_annotations(FORMATS["labelme"], given, tmp_path / "fewer", WritingOptions(masks="polygons", tolerance=0.5))
    for before, after in zip(masks_of(given), masks_of(read(tmp_path / "fewer")), strict=True):
        assert iou(before[1], after[1]) >= 0.98


def test_a_model_learns_from_it(examples, tmp_path):
    given = read(examples / "instance_segmentation" / "data_annotated", skip_labels=(IGNORED,))
    write_annotations(FORMATS["reasonseg"], with_requests(given, AskingOptions()), tmp_path / "in", WritingOptions())
    recipe = write_tiny_recipe(tmp_path / "tiny", max_steps=1)
    settings = [f"data.path={tmp_path / 'in'}", "arguments.report_to=none"]
    out = run_recipe(load_recipe(recipe, settings), tmp_path / "out")
    assert (out / "model.safetensors").is_file()
