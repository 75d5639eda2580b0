"""Annotations of other tools are read as they are meant, or refused by one sentence with file and object."""

import base64
import io
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from reasonseg.data.annotation_formats import FORMATS, ReadingOptions, WritingOptions, find_format, guess_format
from reasonseg.data.annotation_writing import write_annotations
from reasonseg.data.data_files import DataFileError
from reasonseg.data.labelled_images import LabelledImage, LabelledObject
from reasonseg.processing.segments import mask_to_polygons, mask_to_rle
from tests.support.labelled import RING, SIZE, box_mask, labelled_images


HEIGHT, WIDTH = SIZE
BOX = (4, 3, 20, 12)
MASK = box_mask(BOX)
CORNERS = [4, 3, 20, 3, 20, 12, 4, 12]
HOLE = [8, 5, 12, 5, 12, 9, 8, 9]
WITH_HOLE = box_mask(BOX, holes=((8, 5, 12, 9),))
TWO = box_mask(BOX, (25, 15, 30, 20))
SECOND = [25, 15, 30, 15, 30, 20, 25, 20]


def counts_of(mask: np.ndarray) -> list[int]:
    """Run lengths, column by column, that begin with the background."""
    flat = np.concatenate([[False], mask.T.ravel()])
    ends = np.flatnonzero(np.diff(flat.astype(int)))
    return np.diff([0, *ends.tolist(), mask.size]).tolist()


def save_image(path: Path, orientation: int = 1, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, exif=exif)
    return path


def png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def read(name: str, source: Path, **options) -> list[LabelledImage]:
    return list(find_format(name).read(source, ReadingOptions(**options)))


def masks_of(images: list[LabelledImage]) -> list[tuple[str, np.ndarray]]:
    return [(found.label, found.pixels()) for image in images for found in image.objects]


def check_mask(images: list[LabelledImage], mask: np.ndarray, label: str = "cup") -> None:
    ((found, pixels),) = masks_of(images)
    assert found == label
    np.testing.assert_array_equal(pixels, mask)


def refused(name: str, source: Path, *words: str, **options) -> None:
    """One error, one sentence or a few, that holds these words."""
    with pytest.raises(ValueError, match=r".") as error:
        read(name, source, **options)
    for word in words:
        assert word in str(error.value), str(error.value)


@pytest.mark.parametrize("name", [name for name, entry in FORMATS.items() if entry.reader and not entry.on_the_hub])
def test_a_path_that_does_not_exist(name, tmp_path):
    refused(name, tmp_path / "nothing", "There is no file and no folder", str(tmp_path / "nothing"))


# ---- COCO -----------------------------------------------------------------------------------------------------------


def coco(folder: Path, *annotations: dict, orientation: int = 1, size=SIZE, bom: bool = False, **image) -> Path:
    """A file of one image whose annotations lack what is usual, with ids from 0."""
    save_image(folder / "images" / "a.jpg", orientation)
    content = {
        "images": [{"id": 0, "file_name": "a.jpg", "height": size[0], "width": size[1], **image}],
        "categories": [{"id": 0, "name": "cup"}, {"id": 7, "name": "dog"}],
        "annotations": [{"image_id": 0, "category_id": 0, "id": 0, **each} for each in annotations],
    }
    path = folder / "annotations" / "instances.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + json.dumps(content).encode())
    return path


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
    skipped = ReadingOptions(skip_labels=("dog",))
    assert [each.label for each in next(FORMATS["coco"].read(path, skipped)).objects] == ["cup"]
    assert skipped.left_out["objects with a label to skip"] == 1


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
    ],
)
def test_annotations_that_are_refused(tmp_path, changes, words):
    refused("coco", coco(tmp_path, changes), "instances.json", *words)


def test_files_that_are_refused(tmp_path):
    path = coco(tmp_path, {"segmentation": [CORNERS]}, file_name="../images/a.jpg")
    refused("coco", path, "instances.json, image 0", "leads out", "../images/a.jpg")
    path = coco(tmp_path, {"segmentation": [CORNERS]}, file_name="b.jpg")
    refused("coco", path, "b.jpg", "images='FOLDER'")
    path = coco(tmp_path, {"segmentation": [CORNERS]}, size=(25, WIDTH))
    refused("coco", path, "36 x 25", "36 x 24")
    path.write_bytes(path.read_bytes().decode().encode("utf-16"))
    refused("coco", path, "instances.json", "UTF-8")
    path = coco(tmp_path, {"segmentation": [CORNERS]})
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


# ---- LabelMe --------------------------------------------------------------------------------------------------------


def labelme(folder: Path, *shapes: dict, orientation: int = 1, name: str = "a.json", **content) -> Path:
    save_image(folder / "a.jpg", orientation)
    size = {} if orientation >= 5 else {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    given = {"version": "5.5.0", "flags": {}, "imagePath": "a.jpg", "imageData": None, **size}
    (folder / name).write_text(json.dumps({**given, "shapes": list(shapes), **content}), encoding="utf-8")
    return folder


def shape(points: list, kind: str | None = "polygon", label: str = "cup", **others) -> dict:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **others}


def pairs(numbers: list) -> list:
    return np.reshape(numbers, (-1, 2)).tolist()


MASK_SHAPE = {"mask": base64.b64encode(png(WITH_HOLE[3:12, 4:20].astype(np.uint8) * 255)).decode()}


@pytest.mark.parametrize(
    ("shapes", "mask"),
    [
        ([shape(pairs(CORNERS))], MASK),
        ([shape(pairs(CORNERS), None)], MASK),
        ([shape([[20, 12], [4, 3]], "rectangle")], MASK),
        ([shape(pairs(CORNERS), "oriented_rectangle")], MASK),
        ([shape([[4, 3], [19, 11]], "mask", **MASK_SHAPE)], WITH_HOLE),
        ([shape(pairs(CORNERS), group_id=0.0), shape(pairs(SECOND), group_id=0), shape([], group_id=0)], TWO),
        ([shape(pairs(CORNERS), group_id=0), shape(pairs(HOLE), group_id=0)], MASK),
        ([shape([[4, 3], [19, 11]], "mask", group_id=3, **MASK_SHAPE), shape(pairs(SECOND), group_id=3)], None),
    ],
)
def test_shapes_of_labelme(tmp_path, shapes, mask):
    folder = labelme(tmp_path, *shapes)
    mask = WITH_HOLE | box_mask((25, 15, 30, 20)) if mask is None else mask
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
    (image,) = read("labelme", inside)
    assert (image.file_name, image.pixels().shape) == ("a.png", (*SIZE, 3))
    labelme(tmp_path / "beside", shape(pairs(CORNERS)), imagePath="sub\\b.jpg", imageData=content)
    save_image(tmp_path / "beside" / "sub" / "b.jpg")
    (image,) = read("labelme", tmp_path / "beside")
    assert image.source == tmp_path / "beside" / "sub" / "b.jpg"
    assert image.file_name == "sub/b.jpg"
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


# ---- YOLO -----------------------------------------------------------------------------------------------------------


def yolo(folder: Path, text: str | bytes | None, orientation: int = 1, **content) -> Path:
    save_image(folder / "images" / "train" / "a.jpg", orientation)
    save_image(folder / "images" / "train" / "empty.jpg")
    (folder / "labels" / "train").mkdir(parents=True, exist_ok=True)
    if text is not None:
        data = text if isinstance(text, bytes) else text.encode()
        (folder / "labels" / "train" / "a.txt").write_bytes(data)
    described = {"names": ["cup", "dog"], "train": "images/train", **content}
    (folder / "data.yaml").write_text(yaml.safe_dump({name: value for name, value in described.items() if value}))
    return folder


def shares(corners: list, number: object = 0) -> str:
    return " ".join(
        [str(number), *(f"{value / (WIDTH, HEIGHT)[place % 2]:.9g}" for place, value in enumerate(corners))]
    )


LINE = shares(CORNERS)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"names": {0: "cup", 1: "dog"}},
        {"names": {"0": "cup", "1": "dog"}},
        {"train": "../images/train", "path": "/datasets/mine"},
        {"train": ["images/train"]},
        {"train": "images\\train", "val": "images/train"},
        {"train": "train.txt"},
        {"train": "{root}/images/train", "path": "{root}"},
        {"train": "{root}/all.txt"},
        {"train": "images/train", "test": None},
    ],
)
def test_data_sets_of_yolo(tmp_path, content):
    content = {name: text.format(root=tmp_path) if isinstance(text, str) else text for name, text in content.items()}
    folder = yolo(tmp_path, b"\xef\xbb\xbf" + f"{LINE}\r\n\r\n".encode(), **content)
    (folder / "all.txt").write_text("".join(f"{folder}/images/train/{name}.jpg\n" for name in ("a", "empty")))
    (folder / "train.txt").write_text("./images/train/a.jpg\nimages/train/empty.jpg\n")
    for source in (folder, folder / "data.yaml"):
        images = read("yolo", source)
        assert [Path(image.file_name).name for image in images] == ["a.jpg", "empty.jpg"]
        assert {image.split for image in images} == {"train"}
        check_mask(images, MASK)
    assert guess_format(folder).name == "yolo"


def test_splits_of_yolo(tmp_path):
    folder = yolo(tmp_path, LINE, val="images/val")
    refused("yolo", folder, "images/val")
    save_image(folder / "images" / "val" / "b.jpg")
    refused("yolo", folder, "splits train, val", "split='NAME'")
    assert len(read("yolo", folder, split="train")) == 2
    refused("yolo", folder, "'val' has a file of labels", split="val")
    refused("yolo", folder, "no split 'x'", split="x")
    # ultralytics wants both, also where there is one, which its folder names
    (folder / "images" / "train").rename(folder / "images" / "other")
    (folder / "labels" / "val").mkdir()
    (folder / "labels" / "val" / "b.txt").write_text(LINE)
    (folder / "data.yaml").write_text("names: [cup]\ntrain: images/val\nval: images/val\n")
    assert [read("yolo", folder, split=split)[0].split for split in (None, "train", "val")] == ["val"] * 3


def test_boxes_and_overshooting_corners_of_yolo(tmp_path):
    box = f"1 {12 / WIDTH:.9f} {7.5 / HEIGHT:.9f} {16 / WIDTH:.9f} {9 / HEIGHT:.9f}"
    refused("yolo", yolo(tmp_path, box), "a.txt, line 1", "without_mask='box'")
    check_mask(read("yolo", tmp_path, without_mask="box"), MASK, "dog")
    assert not masks_of(read("yolo", tmp_path, without_mask="skip"))
    check_mask(read("yolo", yolo(tmp_path, shares([-1, 3, 20, 3, 20, 12, -1, 12]))), box_mask((0, 3, 20, 12)))
    # ultralytics turns images upright
    folder = yolo(tmp_path / "turned", LINE, orientation=3)
    check_mask(read("yolo", folder), MASK)
    assert read("yolo", folder, mask_frame="stored")[0].objects[0].box_xyxy == (16, 12, 32, 21)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (shares(CORNERS, 2), ["line 1", "class 2", "0 to 1"]),
        (shares(CORNERS, 0.5), ["line 1", "class 0.5"]),
        (f"{LINE}\n{LINE} 0.9", ["line 2", "score"]),
        ("0 0.1 0.2 0.3", ["line 1", "3 numbers"]),
        ("0 4 3 20 3 20 12", ["line 1", "has 4", "from 0 to 1"]),
        ("0 nan 0.1 0.2 0.3 0.4 0.5", ["line 1", "nan"]),
        ("cup 0.1 0.2", ["line 1", "numbers alone"]),
        (b"\xff\xfe0", ["a.txt", "UTF-8"]),
        (None, ["no image", "labels"]),
    ],
)
def test_labels_of_yolo_that_are_refused(tmp_path, text, words):
    refused("yolo", yolo(tmp_path, text), *words)


def test_yaml_files_that_are_refused(tmp_path):
    refused("yolo", yolo(tmp_path, LINE, names="cup"), "data.yaml", "names")
    refused("yolo", yolo(tmp_path, LINE, train="../../elsewhere"), "data.yaml", "not below")
    refused("yolo", yolo(tmp_path, LINE, train=None), "names no folder")
    refused("yolo", yolo(tmp_path, LINE, kpt_shape=[17, 3]), "keypoints")
    (tmp_path / "data.yaml").write_bytes(b"a: [")
    refused("yolo", tmp_path, "data.yaml", "no YAML")
    (tmp_path / "data.yaml").write_bytes(b"a: [\xff")
    refused("yolo", tmp_path, "data.yaml", "not in UTF-8")


# ---- Pascal VOC -----------------------------------------------------------------------------------------------------


def voc(folder: Path, classes: np.ndarray, objects: np.ndarray | None = None, palette: list | None = None) -> Path:
    save_image(folder / "JPEGImages" / "a.jpg")
    for kind, values in (("SegmentationClass", classes), ("SegmentationObject", objects)):
        if values is not None:
            (folder / kind).mkdir(exist_ok=True)
            image = Image.fromarray(values)
            if palette is not None:
                image.putpalette(palette)
            image.save(folder / kind / "a.png")
    return folder


CLASSES = (MASK * 5 + box_mask((25, 15, 30, 20)) * 15).astype(np.uint8)  # bottle, person
CLASSES[0, 0] = 255


def test_pngs_of_voc(tmp_path):
    folder = voc(tmp_path, CLASSES)
    assert guess_format(folder).name == "voc"
    assert [(label, mask.sum()) for label, mask in masks_of(read("voc", folder))] == [("bottle", 144), ("person", 25)]
    objects = np.where(CLASSES == 255, 255, CLASSES > 0).astype(np.uint8)
    objects[3:12, 10:20] = 2
    objects[15:20, 25:30] = 0
    found = [(label, mask.sum()) for label, mask in masks_of(read("voc", voc(tmp_path, CLASSES, objects)))]
    assert found == [("person", 25), ("bottle", 54), ("bottle", 90)]
    objects[15:20, 25:30] = 1
    refused("voc", voc(tmp_path, CLASSES, objects), "object 1", "'bottle' and 'person'")
    # of 0 and 255 nothing would be left, as 255 belongs to none
    refused("voc", voc(tmp_path / "white", MASK.astype(np.uint8) * 255), "a.png", "0 and 255", "belongs to none")


def test_colours_of_cvat(tmp_path):
    """Its labelmap names colours; the numbers of a palette are then any, and plain colours are read, too."""
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncup: red:250,50,83::\ndog:1,2,3::\n"
    )
    colors = np.zeros((*SIZE, 3), dtype=np.uint8)
    colors[MASK] = (250, 50, 83)
    colors[0, 0] = (224, 224, 192)
    check_mask(read("voc", voc(tmp_path, colors)), MASK, "cup: red")
    palette = [0, 0, 0, 1, 2, 3, 250, 50, 83]
    check_mask(read("voc", voc(tmp_path, (MASK * 2).astype(np.uint8), palette=palette)), MASK, "cup: red")
    colors[1, 1] = (9, 9, 9)
    refused("voc", voc(tmp_path, colors), "a.png", "(9, 9, 9)")
    (tmp_path / "labelmap.txt").write_text("cup:red\n")
    refused("voc", tmp_path, "labelmap.txt", "number 1")


def test_lists_of_voc(tmp_path):
    folder = voc(tmp_path, CLASSES)
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    assert read("voc", folder)[0].split == "train"
    (lists / "val.txt").write_text("../a\n")
    refused("voc", folder, "train, val", "split='NAME'")
    refused("voc", folder, "leads out", split="val")
    (lists / "val.txt").write_text("b\n")
    refused("voc", folder, "b.png does not exist", split="val")
    refused("voc", voc(folder, CLASSES.T.copy()), "36 x 24", "24 x 36", split="train")


XML = """<annotation><object><name>cup</name><bndbox><xmin>4</xmin><ymin>3</ymin><xmax>20</xmax><ymax>12</ymax>
</bndbox></object></annotation>"""


def test_xml_of_voc(tmp_path):
    save_image(tmp_path / "JPEGImages" / "a.jpg")
    path = tmp_path / "Annotations" / "a.xml"
    path.parent.mkdir()
    path.write_text(XML)
    assert guess_format(tmp_path).name == "voc"
    refused("voc", tmp_path, "a.xml", "object number 1 ('cup')", "without_mask='box'")
    check_mask(read("voc", tmp_path, without_mask="box"), MASK)
    path.write_text(f'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>{XML.replace("cup", "&x;")}')
    refused("voc", tmp_path, "a.xml", "DOCTYPE")
    path.write_text(XML[:-9])
    refused("voc", tmp_path, "a.xml", "no XML")
    path.write_text(XML.replace("<ymin>3</ymin>", ""))
    refused("voc", tmp_path, "a.xml", "bndbox", without_mask="box")


# ---- the library `datasets` -----------------------------------------------------------------------------------------


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    library = pytest.importorskip("datasets", reason="The extra `data` is not installed.")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return library


def test_rows_with_masks_of_every_kind(datasets, tmp_path):
    image = {"bytes": png(np.zeros((*SIZE, 3), dtype=np.uint8)), "path": None}
    masks = {
        "rle": mask_to_rle(MASK),
        "counts": {"size": list(SIZE), "counts": counts_of(MASK)},
        "rows": MASK.tolist(),
        "numbers": np.asfortranarray(MASK[::-1].astype(np.uint8) * 255)[::-1].tolist(),
        "polygon": [CORNERS],
        "array": (MASK * 255).tolist(),
        "stack": [MASK.tolist()],
        "png": {"bytes": png(MASK.astype(np.uint8) * 255), "path": None},
    }
    features = {"png": datasets.Image(), "array": datasets.Array2D(SIZE, "uint8")}
    for name, mask in masks.items():
        rows = {"image": [image], name: [mask], "category": [1], "query": ["Where is it?"]}
        columns = datasets.Features(
            {
                "image": datasets.Image(),
                name: features.get(name) or datasets.Dataset.from_dict({name: [mask]}).features[name],
                "category": datasets.ClassLabel(names=["dog", "cup"]),
                "query": datasets.Value("string"),
            }
        )
        folder = tmp_path / name
        datasets.Dataset.from_dict(rows, features=columns).save_to_disk(str(folder))
        assert guess_format(folder).name == "datasets"
        named = {"mask": name, "label": "category", "text": "query"}
        (found,) = images = read("datasets", folder, columns=named)
        check_mask(images, MASK)
        assert found.requests[0].question == "Where is it?"
        assert found.file_name == "train-00000000.png"
    refused("datasets", folder, "no column 'x'", columns={"mask": "x"})
    for wrong in (np.pad(MASK, 1), np.pad(MASK, 1).astype(np.uint8)):
        data = datasets.Dataset.from_dict({"image": [image], "mask": [wrong.tolist()]})
        data.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / f"wrong {wrong.dtype}"))
        refused(
            "datasets", tmp_path / f"wrong {wrong.dtype}", "row 0, its mask", "38 x 26", "36 x 24", without_mask="skip"
        )
    refused("datasets", folder, "masks", "png")


def test_rows_with_several_masks_and_with_files(datasets, tmp_path):
    folder, parquet = tmp_path / "data", pytest.importorskip("pyarrow.parquet")
    save_image(folder / "images" / "a.jpg")
    (folder / "masks").mkdir()
    (folder / "masks" / "a.png").write_bytes(png(MASK.astype(np.uint8) * 255))
    kinds = datasets.ClassLabel(names=["dog", "cup"])
    run_lengths = {"size": datasets.List(datasets.Value("int32")), "counts": datasets.Value("string")}
    named = {"bytes": None, "path": "images/a.jpg"}
    for config, columns, row in (
        ("several", (datasets.List(run_lengths), datasets.List(kinds)), ([mask_to_rle(TWO), None], [1, 0])),
        ("files", (datasets.Image(), kinds), ({"bytes": None, "path": "masks/a.png"}, 1)),
        ("names", (datasets.Value("string"), kinds), ("masks/a.png", 1)),
        ("outside", (datasets.Value("string"), kinds), ("../masks/a.png", 1)),
    ):
        features = {"image": datasets.Image(), **dict(zip(("mask", "label"), columns, strict=True))}
        schema = datasets.Features(features).arrow_schema
        rows = [{"image": named, "mask": row[0], "label": row[1]}]
        parquet.write_table(
            pytest.importorskip("pyarrow").Table.from_pylist(rows, schema=schema), folder / f"{config}.parquet"
        )
    described = [{"config_name": path.stem, "data_files": path.name} for path in folder.glob("*.parquet")]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': described})}---\n")
    (image,) = read("datasets", folder, config="several")
    assert [(found.label, found.area, found.rejected) for found in image.objects] == [
        ("cup", TWO.sum(), False),
        ("dog", 0, True),
    ]
    assert image.source == folder / "images" / "a.jpg"
    assert [found.label for found in read("datasets", folder, config="several", skip_labels=("dog",))[0].objects] == [
        "cup"
    ]
    for config in ("files", "names"):
        check_mask(read("datasets", folder, config=config), MASK)
    refused("datasets", folder, "row 0, its mask", "none of the data set's own", config="outside")
    refused("datasets", folder, "cannot be read", "several")


def test_rows_that_are_refused(datasets, tmp_path):
    outside = save_image(tmp_path / "outside.jpg")
    rows = [{"image": {"bytes": None, "path": str(outside)}, "mask": mask_to_rle(MASK)}]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "data" / "train.parquet"))
    refused("datasets", tmp_path / "data", "row 0", "outside.jpg", "none of the data set's own", "images='FOLDER'")
    assert read("datasets", tmp_path / "data", images=tmp_path)[0].source == outside
    rows = [{"image": {"bytes": b"no image", "path": None}, "mask": mask_to_rle(MASK)}]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "data" / "train.parquet"))
    refused("datasets", tmp_path / "data", "row 0", "8 bytes")
    rows = [{"image": {"bytes": png(np.zeros((5, 5, 3), dtype=np.uint8)), "path": None}, "mask": mask_to_rle(MASK)}]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "data" / "train.parquet"))
    refused("datasets", tmp_path / "data", "row 0", "5 x 5")
    for request in (-1, 2**31 - 1):
        mask = {"label": "cup", "rle": mask_to_rle(MASK), "request": request}
        image = {"bytes": png(np.zeros((*SIZE, 3), dtype=np.uint8)), "path": None}
        rows = [{"image": image, "requests": [{"question": "Where?", "answer": None}], "objects": [mask]}]
        datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "data" / "train.parquet"))
        refused("datasets", tmp_path / "data", "row 0", "object number 1", f"its request is {request}")


# ---- formats in common ----------------------------------------------------------------------------------------------


def test_what_looks_like_nothing_or_like_two_is_asked_for(tmp_path):
    with pytest.raises(DataFileError, match="none of the formats"):
        guess_format(tmp_path)
    with pytest.raises(DataFileError, match="There is no file"):
        guess_format(tmp_path / "nothing")
    yolo(tmp_path, LINE)
    coco(tmp_path, {"segmentation": [CORNERS]})
    with pytest.raises(DataFileError, match=r"coco and yolo; say format=NAME"):
        guess_format(tmp_path)


def test_the_first_faults_are_told_together(tmp_path):
    for number in range(7):
        labelme(tmp_path, shape([[1, 2]]), name=f"{number}.json", imagePath=f"{number}.jpg")
        save_image(tmp_path / f"{number}.jpg")
    refused("labelme", tmp_path, "0.json", "4.json", "In all 7 images")


ROUND_TRIPS = [(name, masks) for name, entry in FORMATS.items() for masks in entry.masks if name != "datasets"]


@pytest.mark.parametrize(("name", "masks"), [*ROUND_TRIPS, ("datasets", "exact")])
def test_what_was_written_comes_back(tmp_path, name, masks):
    """What a format keeps, says its entry in the table."""
    entry = FORMATS[name]
    if entry.needs:
        pytest.importorskip(entry.needs[0], reason="The extra `data` is not installed.")
    given = labelled_images(tmp_path / "in")
    write_annotations(entry, given, tmp_path / "out", WritingOptions(masks=masks))
    assert guess_format(tmp_path / "out") == entry
    unnamed = "" if "text" in entry.keeps else "object"
    back = list(entry.read(tmp_path / "out"))
    given, back = (sorted(images, key=lambda image: image.file_name) for images in (given, back))
    assert [image.file_name for image in back] == [image.file_name for image in given]
    for before, after in zip(given, back, strict=True):
        assert after.size == before.size
        assert [found.label for found in after.drawn] == [found.label or unnamed for found in before.drawn]
        if "overlaps" in entry.keeps:
            assert [found.mask for found in after.drawn] == [found.mask for found in before.drawn]
        if "scores" in entry.keeps:
            assert [found.score for found in after.drawn] == [found.score for found in before.drawn]
            assert [found.is_crowd for found in after.drawn] == [found.is_crowd for found in before.drawn]
        if "rejected" in entry.keeps:
            assert [found.label for found in after.rejected] == [found.label for found in before.rejected]
        if "text" in entry.keeps:
            wanted = [(asked.question, asked.answer) for asked in before.requests if asked.question and asked.answer]
            assert set(wanted) <= {(asked.question, asked.answer) for asked in after.requests}


masks_strategy = st.lists(
    st.tuples(
        st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1), st.integers(1, 12), st.integers(1, 9), st.booleans()
    ),
    min_size=1,
    max_size=6,
)


def drawn_mask(parts) -> np.ndarray:
    """Boxes, of which some are taken away again."""
    mask = np.zeros(SIZE, dtype=bool)
    for x, y, width, height, is_set in parts:
        mask[y : y + height, x : x + width] = is_set
    return mask


@pytest.mark.parametrize(("name", "masks"), ROUND_TRIPS)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(masks_strategy, min_size=1, max_size=3))
def test_masks_of_any_shape_come_back(tmp_path_factory, name, masks, parts):
    drawn = [mask for mask in map(drawn_mask, parts) if mask.any()]
    if name == "voc":  # a pixel belongs to one object there
        drawn = drawn[:1]
    if not drawn:
        return
    folder = tmp_path_factory.mktemp("round")
    objects = tuple(LabelledObject(f"label {number}", mask_to_rle(mask)) for number, mask in enumerate(drawn))
    given_image = LabelledImage("a.png", SIZE, save_image(folder / "a.png"), objects)
    entry = FORMATS[name]
    write_annotations(entry, [given_image], folder / "out", WritingOptions(masks=masks))
    (back,) = entry.read(folder / "out")
    assert [(found.label, found.mask) for found in back.objects] == [(found.label, found.mask) for found in objects]


@pytest.fixture(scope="module")
def whole_folders(tmp_path_factory) -> dict[str, tuple[Path, list[Path]]]:
    """A folder of each format, and the files in it that can be damaged."""
    folder, found = tmp_path_factory.mktemp("whole"), {}
    given_images = labelled_images(folder / "in")
    for name, entry in FORMATS.items():
        if name != "datasets":
            write_annotations(entry, given_images, folder / name, WritingOptions(masks=entry.masks[0]))
            found[name] = (folder / name, sorted(path for path in (folder / name).rglob("*") if path.is_file()))
    return found


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "datasets"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files_never_give_a_traceback(whole_folders, name, data):
    """Whatever the bytes are, the files are read or a ValueError says why not."""
    folder, files = whole_folders[name]
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    place, length = data.draw(st.integers(0, max(0, len(whole) - 1))), data.draw(st.integers(0, 8))
    put = data.draw(
        st.one_of(st.binary(max_size=8), st.sampled_from([b"null", b"-1", b'"', b"[]", b"{}", b"1e999", b"\0"]))
    )
    try:
        path.write_bytes(whole[:place] + put + whole[place + length :])
        for image in FORMATS[name].read(folder, ReadingOptions(split="train" if name in ("yolo", "voc") else None)):
            for found in image.drawn:
                assert found.pixels().shape == image.size
    except (ValueError, FileNotFoundError):
        pass
    finally:
        path.write_bytes(whole)


def test_json_of_other_types_never_gives_a_traceback(tmp_path):
    """Each value of a whole file in turn becomes one of another type."""
    for name, folder in (
        ("coco", coco(tmp_path / "coco", {"segmentation": [CORNERS], "iscrowd": 0, "bbox": [1, 2, 3, 4]}).parents[1]),
        ("labelme", labelme(tmp_path / "labelme", shape(pairs(CORNERS)), flags={"rejected: x": True})),
    ):
        path = next(folder.rglob("*.json"))
        content = json.loads(path.read_text())
        for keys in places(content):
            for value in (None, True, -1, 1e300, "", "x", [], {}, [[]], {"size": 1, "counts": 2}):
                changed = json.loads(json.dumps(content))
                inner = changed
                for key in keys[:-1]:
                    inner = inner[key]
                inner[keys[-1]] = value
                path.write_text(json.dumps(changed))
                with suppress(ValueError, FileNotFoundError):
                    read(name, folder)


def places(value, keys=()):
    if keys:
        yield keys
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*keys, key))
