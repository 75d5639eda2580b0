"""LabelMe's files are read as they are meant, or refused by one sentence with file and object."""

import base64

import numpy as np
import pytest

from reasonseg.data.annotation_formats import FORMATS, ReadingOptions, guess_format
from tests.support.annotation_files import (
    CORNERS,
    HEIGHT,
    HOLE,
    MASK,
    SECOND,
    TWO,
    WIDTH,
    WITH_HOLE,
    check_mask,
    labelme,
    pairs,
    png,
    read,
    refused,
    save_image,
    shape,
)
from tests.support.labelled import SIZE, box_mask


MASK_SHAPE = {"mask": base64.b64encode(png(WITH_HOLE[3:12, 4:20].astype(np.uint8) * 255)).decode()}


@pytest.mark.parametrize(
    ("shapes", "mask"),
    [
        ([shape(pairs(CORNERS))], MASK),
        ([shape(pairs(CORNERS), None)], MASK),
        ([shape([[20, 12], [4, 3]], "rectangle")], MASK),
        ([shape(pairs(CORNERS), "oriented_rectangle")], MASK),
        ([shape(pairs(CORNERS), "rectangle")], MASK),  # this and the next: X-AnyLabeling
        ([shape(pairs(CORNERS), "rotation")], MASK),
        ([shape([[4, 3], [19, 11]], "mask", **MASK_SHAPE)], WITH_HOLE),
        ([shape(pairs(CORNERS), group_id=0.0), shape(pairs(SECOND), group_id=0), shape([], group_id=0)], TWO),
        ([shape(pairs(CORNERS), group_id=0), shape(pairs(HOLE), group_id=0)], MASK),
        ([shape([[4, 3], [19, 11]], "mask", group_id=3, **MASK_SHAPE), shape(pairs(SECOND), group_id=3)], None),
    ],
)
def test_shapes_of_labelme(tmp_path, shapes, mask):
    folder = labelme(tmp_path, *shapes)
    mask = WITH_HOLE | box_mask((25, 15, 30, 20)) if mask is None else mask
    (folder / "b.json").mkdir(exist_ok=True)
    for source in (folder, folder / "a.json"):
        check_mask(read("labelme", source), mask)
    assert guess_format(folder).name == "labelme"


def test_a_circle_has_the_area_of_one(tmp_path):
    (image,) = read("labelme", labelme(tmp_path, shape([[18, 12], [18, 4]], "circle")))
    assert image.objects[0].area == pytest.approx(np.pi * 8**2, rel=0.04)
    assert image.objects[0].box_xyxy == (10, 4, 26, 20)
    (image,) = read("labelme", labelme(tmp_path, shape([[18, 12], [1e300, 4]], "circle")))
    assert image.objects[0].area == HEIGHT * WIDTH, "no number is too large"


@pytest.mark.parametrize("kind", ["line", "linestrip", "point"])
def test_lines_have_no_area(tmp_path, kind):
    folder = labelme(tmp_path, shape([[3, 3], [9, 9]], kind), shape(pairs(CORNERS)))
    refused("labelme", folder, "a.json", "shape number 1 ('cup')", f"is a {kind}", "without_mask='skip'")
    check_mask(read("labelme", folder, without_mask="skip"), MASK)
    grouped = [shape([[3, 3], [9, 9]], kind, group_id=1), shape(pairs(CORNERS), group_id=1)]
    folder, options = labelme(tmp_path, *grouped), ReadingOptions(without_mask="skip")
    check_mask(list(FORMATS["labelme"].read(folder, options)), MASK)
    assert options.left_out == {"points and lines of objects that have an area": 1}
    refused("labelme", folder, "shape number 1 ('cup')", f"is a {kind}")
    folder = labelme(tmp_path, *grouped, shape([[4, 3], [19, 11]], "mask", group_id=1, **MASK_SHAPE))
    check_mask(read("labelme", folder, without_mask="skip"), MASK)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (shape([[1, 2], [3, 4, 5]]), ["shape number 1", "pairs of finite numbers"]),
        (shape([[1, 2], [10**400, 4], [5, 6]]), ["shape number 1", "pairs of finite numbers"]),
        (shape([[1, 2], [3, 4]]), ["shape number 1", "3 or more corners"]),
        (shape([[1, 2]], "rectangle"), ["rectangle of 1 points"]),
        (shape([[1, 2], [3, 4]], "ellipse"), ["'ellipse'", "polygon"]),
        (
            shape([[4, 3], [18, 11]], "mask", **MASK_SHAPE),
            ["shape number 1", "16 x 9", "the box between its points 15 x 9"],
        ),
        (shape([]), ["shape number 1", "3 or more corners", "without_mask='skip'"]),
        (shape([[30, 20], [45, 28]], "mask", **MASK_SHAPE), ["shape number 1", "no box"]),
        (shape([[4, 3], [19, 11]], "mask", mask="?"), ["shape number 1", "base64"]),
        (shape([[4, 3], [19, 11]], "mask", mask=None), ["shape number 1", "base64"]),
        (shape([[4, 3], [19, 11]], "mask", mask="AAAA"), ["shape number 1", "`mask` cannot be used", "image"]),
        ({"points": []}, ["shape number 1", "label"]),
        (shape(pairs(CORNERS), group_id=[1]), ["group_id"]),
    ],
)
def test_shapes_that_are_refused(tmp_path, given, words):
    refused("labelme", labelme(tmp_path, given), "a.json", *words)


def test_images_of_labelme(tmp_path):
    """Separators of Windows, images inside the file, and images elsewhere."""
    content = base64.b64encode(png(np.zeros((*SIZE, 3), dtype=np.uint8))).decode()
    inside = labelme(tmp_path / "inside", shape(pairs(CORNERS)), imagePath="..\\x\\b.jpg", imageData=content)
    assert read("labelme", inside)[0].file_name == "a.png"
    # as other tools write it: the text in lines, whole numbers with a point
    others = {"imageData": f"{content[:40]}\r\n{content[40:]}", "imageHeight": float(HEIGHT)}
    inside = labelme(tmp_path / "inside", shape(pairs(CORNERS)), imagePath="..\\x\\b.jpg", **others)
    (image,) = read("labelme", inside)
    assert (image.file_name, image.pixels().shape) == ("a.png", (*SIZE, 3))
    labelme(tmp_path / "beside", shape(pairs(CORNERS)), imagePath="sub\\b.jpg", imageData=content)
    save_image(tmp_path / "beside" / "sub" / "b.jpg")
    (image,) = read("labelme", tmp_path / "beside")
    assert image.source == tmp_path / "beside" / "sub" / "b.jpg"
    assert image.file_name == "sub/b.jpg"
    save_image(tmp_path / "beside" / "sub\\b.jpg")  # such a name is a file's own elsewhere than on Windows
    assert read("labelme", tmp_path / "beside")[0].source == tmp_path / "beside" / "sub\\b.jpg"
    elsewhere = labelme(tmp_path / "json", shape(pairs(CORNERS)), imagePath="../beside/sub/b.jpg")
    refused("labelme", elsewhere, "a.json", "leads out", "images='FOLDER'")
    (image,) = read("labelme", elsewhere, images=tmp_path / "beside" / "sub")
    assert image.source == tmp_path / "beside" / "sub" / "b.jpg"
    damaged = labelme(tmp_path / "damaged", shape(pairs(CORNERS)), imagePath="b.jpg", imageData="AAAA")
    refused("labelme", damaged, "a.json", "`imageData` cannot be used")
    labelme(tmp_path / "json", imagePath="nothing.jpg")
    refused("labelme", tmp_path / "json", "nothing.jpg does not exist")
    labelme(tmp_path / "twice", name="a.json")
    refused("labelme", labelme(tmp_path / "twice", name="b.json"), "Two images are called 'a.jpg'")


def test_labelme_counts_in_the_upright_frame(tmp_path):
    """As it shows images; a size of stored pixels, of old versions, is heeded."""
    folder = labelme(tmp_path, shape(pairs(CORNERS)), orientation=3)
    check_mask(read("labelme", folder), MASK)
    (image,) = read("labelme", folder, mask_frame="stored")
    np.testing.assert_array_equal(image.objects[0].pixels(), np.rot90(MASK, 2))
    old = labelme(tmp_path, shape(pairs(CORNERS)), orientation=6, imageHeight=HEIGHT, imageWidth=WIDTH)
    np.testing.assert_array_equal(read("labelme", old)[0].objects[0].pixels(), np.rot90(MASK, 3))


def test_flags_of_labelme_name_what_is_absent(tmp_path):
    folder = labelme(tmp_path, flags={"rejected: a dog": True, "rejected: a cat": False, "blurred": True})
    assert [(found.label, found.rejected) for found in read("labelme", folder)[0].objects] == [("a dog", True)]
    assert read("labelme", folder, skip_labels=("a dog",))[0].objects == ()
