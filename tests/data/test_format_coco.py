"""COCO's files are read as they are meant, or refused by one sentence with file and object."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from reasonseg.data.annotation_formats import FORMATS, ReadingOptions, guess_format
from reasonseg.processing.segments import mask_to_polygons, mask_to_rle
from tests.support.annotation_files import (
    CORNERS,
    HOLE,
    MASK,
    SECOND,
    TWO,
    WIDTH,
    WITH_HOLE,
    check_mask,
    coco,
    counts_of,
    read,
    refused,
)
from tests.support.labelled import RING, SIZE, box_mask


@pytest.mark.parametrize(
    ("segmentation", "mask"),
    [
        ([CORNERS], MASK),
        (CORNERS, MASK),
        ([CORNERS, SECOND], TWO),
        ([CORNERS, [1, 1, 2, 2]], MASK),
        ([[CORNERS, HOLE]], WITH_HOLE),
        ([CORNERS, HOLE[::-1]], None),
        (mask_to_rle(WITH_HOLE), WITH_HOLE),
        ({"size": list(SIZE), "counts": counts_of(WITH_HOLE)}, WITH_HOLE),
        ([ring.ravel().tolist() for ring in mask_to_polygons(RING)], RING),
        ([[-1, 3, 20, 3, 20, 12, -1, 12]], box_mask((0, 3, 20, 12))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_segmentations_of_coco(tmp_path, segmentation, mask):
    path = coco(tmp_path, {"segmentation": segmentation}, bom=True)
    if mask is None:  # x and y swapped: another shape inside the first, and the same way round
        refused("coco", path, "annotation 0", "inside another")
        return
    for source in (path, tmp_path):
        check_mask(read("coco", source), mask)
    assert guess_format(tmp_path).name == guess_format(path).name == "coco"


def test_a_polygon_inside_another_is_a_hole_only_where_that_is_known(tmp_path):
    path = coco(tmp_path, {"segmentation": [CORNERS, HOLE]})
    refused("coco", path, str(path), "annotation 0", "inside another")
    check_mask(read("coco", path, inner="hole"), WITH_HOLE)
    check_mask(read("coco", path, inner="fill"), MASK)
    turned = np.reshape(HOLE, (-1, 2))[::-1].ravel().tolist()
    check_mask(read("coco", coco(tmp_path, {"segmentation": [CORNERS, turned]})), WITH_HOLE)


@pytest.mark.parametrize("segmentation", [None, [], [[]], [[1, 2, 3, 4]], {"size": list(SIZE), "counts": [864]}])
def test_objects_without_a_mask(tmp_path, segmentation):
    path = coco(tmp_path, {"segmentation": segmentation, "bbox": [4, 3, 16, 9]})
    refused("coco", path, str(path), "annotation 0", "without_mask='skip'", "without_mask='box'")
    check_mask(read("coco", path, without_mask="box"), MASK)
    path = coco(tmp_path, {"segmentation": segmentation, "bbox": ["4", "3", "16", "9"]})
    refused("coco", path, "annotation 0", "four numbers", without_mask="box")
    left_out = ReadingOptions(without_mask="skip")
    assert next(FORMATS["coco"].read(path, left_out)).objects == ()
    assert left_out.left_out == {"objects without a mask": 1}


def test_crowds_scores_and_what_is_absent(tmp_path):
    path = coco(
        tmp_path,
        {"segmentation": [CORNERS], "iscrowd": 1, "score": 0.25},
        {"segmentation": [CORNERS], "image_id": 5},
        neg_category_ids=[7],
    )
    options = ReadingOptions()
    (image,) = FORMATS["coco"].read(path, options)
    cup, dog = image.objects
    assert (cup.is_crowd, cup.score, cup.rejected) == (True, 0.25, False)
    assert (dog.label, dog.mask, dog.rejected) == ("dog", None, True)
    assert image.image_id == 0
    assert sum(options.left_out.values()) == 1
    assert [each.label for each in read("coco", path, skip_labels=("cup",))[0].objects] == ["dog"]
    percent = coco(tmp_path / "percent", {"segmentation": [CORNERS], "score": 87.5})
    options = ReadingOptions()
    assert next(FORMATS["coco"].read(percent, options)).objects[0].score is None
    assert options.left_out == {"scores that are not from 0 to 1": 1}
    skipped = ReadingOptions(skip_labels=("dog",))
    assert [each.label for each in next(FORMATS["coco"].read(path, skipped)).objects] == ["cup"]
    assert skipped.left_out["objects with a label to skip"] == 1


def nested(numbers: list, levels: int) -> list:
    for _ in range(levels):
        numbers = [numbers]
    return numbers


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"segmentation": [CORNERS], "category_id": 3}, ["annotation 0", "category_id", "one of [0, 7]"]),
        ({"segmentation": [CORNERS], "image_id": "0"}, ["image_id", "same number or text"]),
        ({"segmentation": [CORNERS], "iscrowd": 2}, ["annotation 0", "iscrowd"]),
        ({"segmentation": "masks/a.png"}, ["annotation 0", "polygons"]),
        ({"segmentation": mask_to_rle(MASK.T)}, ["annotation 0", "24 x 36", "swapped"]),
        ({"segmentation": {"size": list(SIZE), "counts": [5, 5]}}, ["annotation 0", "864"]),
        ({"segmentation": [[4, 3, 200, 3, 200, 12]]}, ["annotation 0", "36 x 24"]),
        ({"segmentation": [[4, 3, float("nan"), 3, 20, 12]]}, ["annotation 0", "finite"]),
        ({"segmentation": [[4, 3, 20, 3, 20]]}, ["annotation 0", "even number"]),
        ({"segmentation": [[4, 3, 10**400, 3, 20, 12]]}, ["annotation 0", "even number"]),
        ({"segmentation": nested([], 900)}, ["annotation 0", "3 or more corners"]),
        ({"segmentation": nested(CORNERS, 900)}, ["annotation 0", "a list of 901 levels"]),
    ],
)
def test_annotations_that_are_refused(tmp_path, changes, words):
    refused("coco", coco(tmp_path, changes), "instances.json", *words)


def test_files_that_are_refused(tmp_path):
    path = coco(tmp_path, {"segmentation": [CORNERS]}, file_name="../images/a.jpg")
    refused("coco", path, "instances.json, image 0", "leads out", "../images/a.jpg")
    for elsewhere in ("../images/a.jpg", "/data/a.jpg", "C:\\data\\a.jpg", "https://host/a.jpg?size=1", "b\\a.jpg"):
        path = coco(tmp_path, {"segmentation": [CORNERS]}, file_name=elsewhere)
        assert read("coco", path, images=tmp_path / "images")[0].file_name == "a.jpg"
    for url in ("http://host/images/a.jpg", "http://host/val2017/a.jpg"):  # of LVIS
        path = coco(tmp_path, {"segmentation": [CORNERS]}, file_name=None, coco_url=url)
        chosen = {} if "images" in url else {"images": tmp_path / "images"}
        assert read("coco", path, **chosen)[0].source == tmp_path / "images" / "a.jpg"
    path = coco(tmp_path, {"segmentation": [CORNERS]}, file_name="b.jpg")
    refused("coco", path, "b.jpg", "images='FOLDER'")
    path = coco(tmp_path, {"segmentation": [CORNERS]}, size=(25, WIDTH))
    refused("coco", path, "36 x 25", "36 x 24")
    refused("coco", coco(tmp_path, {"segmentation": [CORNERS]}, size=(10**400, WIDTH)), "image 0", "give pixels")
    refused("coco", coco(tmp_path, {"bbox": [1, 1, 10**400, 3]}), "annotation 0", "four numbers", without_mask="box")
    path.write_bytes(path.read_bytes().decode().encode("utf-16"))
    refused("coco", path, "instances.json", "UTF-8")
    path = coco(tmp_path, {"segmentation": [CORNERS]})
    (path.parent / "a folder.json").mkdir()
    assert read("coco", tmp_path)[0].file_name == "a.jpg"
    refused("coco", path, "images/a.jpg", "pixels", max_image_pixels=100)
    refused("coco", path, "does not heed split", split="train")
    (path.parent / "empty.json").write_text('{"images": [], "annotations": [], "categories": []}')
    refused("coco", path.parent / "empty.json", "empty.json lists no image")
    (path.parent / "empty.json").unlink()
    (path.parent / "captions.json").write_bytes(path.read_bytes())
    refused("coco", tmp_path, "captions.json, instances.json", "name the file itself")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_frame_of_masks_is_known_or_asked_for(tmp_path, orientation):
    """Where sizes tell it, the frame follows from them; where they do not, nothing is guessed."""
    stored = coco(tmp_path / "stored", {"segmentation": mask_to_rle(MASK)}, orientation=orientation)
    swapped = orientation >= 5
    if orientation in (1, 5, 6, 7, 8):
        (image,) = read("coco", stored)
        assert image.size == (SIZE[::-1] if swapped else SIZE)
        # masks turn as the image does
        turned = Image.fromarray(MASK.astype(np.uint8) * 255).convert("L")
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned.save(tmp_path / "mask.png", exif=exif)

        with Image.open(tmp_path / "mask.png") as opened:
            expected = np.asarray(ImageOps.exif_transpose(opened)) > 0
        np.testing.assert_array_equal(image.objects[0].pixels(), expected)
    else:
        refused("coco", stored, "annotation 0", f"EXIF orientation {orientation}", "mask_frame='stored'")
        (upright,) = read("coco", stored, mask_frame="upright")
        np.testing.assert_array_equal(upright.objects[0].pixels(), MASK)
        (turned,) = read("coco", stored, mask_frame="stored")
        assert turned.objects[0].area == MASK.sum()
        assert (turned.objects[0].pixels() != MASK).any()
    if swapped:
        given = {"segmentation": mask_to_rle(MASK.T)}
        upright = coco(tmp_path / "upright", given, orientation=orientation, size=SIZE[::-1])
        np.testing.assert_array_equal(read("coco", upright)[0].objects[0].pixels(), MASK.T)
        refused("coco", upright, "not the stored frame", mask_frame="stored")
