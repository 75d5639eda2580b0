"""What the writers write, read by pycocotools, Pillow, the reader of our own data, and parsers of the test."""

import base64
import io
import json
import os
import re
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from reasonseg.data import annotation_writing
from reasonseg.data.annotation_formats import FORMATS, WritingOptions, Written, find_format
from reasonseg.data.annotation_writing import ExistingFolderError, is_written, write_annotations
from reasonseg.data.data_files import DataFileError
from reasonseg.data.format_voc import voc_palette
from reasonseg.data.labelled_images import LabelledImage, LabelledObject
from reasonseg.data.request_folder import read_request_folder
from reasonseg.processing.mask_reading import read_mask
from reasonseg.processing.regions import read_rle
from reasonseg.processing.segments import mask_to_rle
from tests.support.labelled import BOX, CORNERS, RING, SIZE, labelled_images


# What is meant, by the name of the image: (label, mask) of each object.
MEANT = {
    "upright.png": [("the ring", RING), ("object", BOX)],
    "turned.jpg": [("crème: brûlée", CORNERS), ("the ring", BOX)],
    "second split.png": [("a crowd", np.ones(SIZE, dtype=bool))],
    "nothing.png": [],
}
WRITERS = [
    (name, masks) for name, entry in FORMATS.items() if entry.writer and not entry.needs for masks in entry.masks
]


@pytest.fixture
def images(tmp_path) -> list[LabelledImage]:
    return labelled_images(tmp_path / "in")


def write(name: str, labelled, target: Path, **options) -> Written:
    entry = find_format(name)
    return write_annotations(entry, iter(labelled), target, WritingOptions(**{"masks": entry.masks[0], **options}))


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check(found: dict[str, list[tuple[str, np.ndarray]]], meant=MEANT) -> None:
    assert {name: [label for label, _ in objects] for name, objects in found.items()} == {
        name: [label for label, _ in objects] for name, objects in meant.items()
    }
    for name, objects in meant.items():
        for (_, wanted), (label, mask) in zip(objects, found[name], strict=True):
            np.testing.assert_array_equal(mask, wanted, err_msg=f"{name}: {label}")


# ---- COCO -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", ["exact", "polygons"])
def test_coco_as_pycocotools_reads_it(images, tmp_path, masks):
    written = write("coco", images, tmp_path / "out", masks=masks)
    assert (written.images, written.masks, written.rejected, written.left_out) == (4, 5, 2, Counter())
    assert written.least_iou == 1.0
    coco = COCO(tmp_path / "out" / "annotations" / "instances.json")
    assert sorted(coco.imgs) == [1, 2, 3, 4]
    assert sorted(coco.anns) == [1, 2, 3, 4, 5]
    names = {number: category["name"] for number, category in coco.cats.items()}
    assert names == {1: "the ring", 2: "a dog", 3: "object", 4: "crème: brûlée", 5: "a crowd"}
    found = {}
    for number, image in coco.imgs.items():
        rows = coco.loadAnns(coco.getAnnIds(imgIds=number))
        found[image["file_name"]] = [(names[row["category_id"]], coco.annToMask(row).astype(bool)) for row in rows]
        for row in rows:
            mask = coco.annToMask(row)
            assert row["area"] == mask.sum()
            assert row["bbox"] == coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask))).tolist()
            assert isinstance(row["segmentation"], dict) == (masks == "exact")
        with Image.open(tmp_path / "out" / "images" / image["file_name"]) as stored:
            assert (stored.height, stored.width) == (image["height"], image["width"]) == SIZE
            assert stored.getexif().get(0x0112, 1) == 1
    check(found)
    assert [row["iscrowd"] for row in coco.anns.values()] == [0, 0, 0, 0, 1]
    assert [image["neg_category_ids"] for image in coco.imgs.values()] == [[2], [], [], [2]]
    assert coco.imgs[1]["requests"] == [
        {"question": "What is round?", "answer": "the ring [SEG], a dog [REJ], [SEG]."}
    ]
    results = coco.loadRes(str(tmp_path / "out" / "annotations" / "results.json"))
    assert [(row["image_id"], row["category_id"], row["score"]) for row in results.anns.values()] == [
        (1, 1, 0.75),
        (1, 3, 0.5),
    ]
    np.testing.assert_array_equal(results.annToMask(results.anns[1]), RING)


def test_coco_without_scores_has_no_results(images, tmp_path):
    write("coco", images[1:3], tmp_path / "out", images="none")
    assert set(tree(tmp_path / "out")) == {".reasonseg-export", "annotations/instances.json"}


# ---- LabelMe --------------------------------------------------------------------------------------------------------


def labelme_masks(folder: Path, name: str) -> list[tuple[str, np.ndarray]]:
    """What a file means, by the fields that LabelMe documents."""
    content = json.loads((folder / name).with_suffix(".json").read_text(encoding="utf-8"))
    assert (content["imagePath"], content["imageHeight"], content["imageWidth"]) == (name, *SIZE)
    found: dict[object, tuple[str, np.ndarray]] = {}
    for number, shape in enumerate(content["shapes"]):
        mask = np.zeros(SIZE, dtype=bool)
        if shape["shape_type"] == "mask":
            (x1, y1), (x2, y2) = np.array(shape["points"], dtype=int)
            mask[y1 : y2 + 1, x1 : x2 + 1] = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
        else:
            mask = coco_mask.decode(coco_mask.frPyObjects([np.ravel(shape["points"]).tolist()], *SIZE))[..., 0] > 0
        key = ("alone", number) if shape["group_id"] is None else shape["group_id"]
        label, others = found.setdefault(key, (shape["label"], np.zeros(SIZE, dtype=bool)))
        assert label == shape["label"]
        found[key] = (label, others | mask)
    return list(found.values())


@pytest.mark.parametrize("masks", ["exact", "polygons"])
def test_labelme(images, tmp_path, masks):
    write("labelme", images, tmp_path / "out", masks=masks)
    check({name: labelme_masks(tmp_path / "out", name) for name in MEANT})
    content = json.loads((tmp_path / "out" / "upright.json").read_text(encoding="utf-8"))
    assert content["flags"] == {"rejected: a dog": True}
    assert [shape["score"] for shape in content["shapes"]] == ([0.75, 0.5] if masks == "exact" else [0.75] * 3 + [0.5])
    crowd = json.loads((tmp_path / "out" / "second split.json").read_text(encoding="utf-8"))
    assert crowd["shapes"][0]["flags"] == {"iscrowd": True}


def test_labels_that_need_one_file_are_refused(images, tmp_path):
    twin = replace(images[0], file_name="upright.jpg")
    for name in ("labelme", "yolo", "voc"):
        with pytest.raises(DataFileError, match=r"Two images need a file 'upright\.(json|txt|png)' each"):
            write(name, [images[0], twin], tmp_path / name)
        assert not list(tmp_path.glob(f"*{name}*"))


# ---- YOLO -----------------------------------------------------------------------------------------------------------


def yolo_masks(folder: Path, split: str, name: str) -> list[tuple[str, np.ndarray]]:
    """What a label file means by ultralytics' description: class, then x y x y ... as shares of width and height."""
    names = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))["names"]
    found = []
    for line in (folder / "labels" / split / name).with_suffix(".txt").read_text().splitlines():
        number, *shares = line.split()
        corners = np.array(shares, dtype=np.float64).reshape(-1, 2)
        assert corners.min() >= 0
        assert corners.max() <= 1
        assert len(corners) >= 3
        rle = coco_mask.frPyObjects([(corners * SIZE[::-1]).ravel().tolist()], *SIZE)
        found.append((names[int(number)], coco_mask.decode(rle)[..., 0].astype(bool)))
    return found


def test_yolo(tmp_path):
    images = labelled_images(tmp_path / "in", splits=("train", "val"))
    written = write("yolo", images, tmp_path / "out")
    assert written.left_out == {"rejected phrases": 2, "scores": 2}
    found = {image.file_name: yolo_masks(tmp_path / "out", image.split, image.file_name) for image in images}
    check(found)
    content = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text(encoding="utf-8"))
    assert (content["train"], content["val"]) == ("images/train", "images/val")
    assert content["names"] == {0: "the ring", 1: "object", 2: "crème: brûlée", 3: "a crowd"}
    assert (tmp_path / "out" / "images" / "val" / "nothing.png").is_file()
    assert (tmp_path / "out" / "labels" / "val" / "nothing.txt").read_bytes() == b""


def test_polygons_that_leave_the_masks_say_how_far(images, tmp_path):
    rows, columns = np.indices((120, 160))
    disc = (rows - 60) ** 2 + (columns - 80) ** 2 < 50**2
    Image.new("RGB", (160, 120)).save(tmp_path / "disc.png")
    image = LabelledImage("disc.png", (120, 160), tmp_path / "disc.png", (LabelledObject("disc", mask_to_rle(disc)),))
    for name in ("coco", "labelme", "yolo"):
        written = write(name, [image], tmp_path / name, masks="polygons", tolerance=2.0)
        assert 0.9 < written.least_iou < 1.0
        assert f"IoU of {written.least_iou:.3f} or more" in written.sentence()


# ---- Pascal VOC -----------------------------------------------------------------------------------------------------


def test_voc(images, tmp_path):
    written = write("png", images, tmp_path / "out")
    hidden = int((RING & BOX).sum())
    assert written.left_out == {"rejected phrases": 2, "scores": 2, "pixels that a smaller mask hides": hidden}
    out = tmp_path / "out"
    assert (out / "ImageSets" / "Segmentation" / "train.txt").read_text(encoding="utf-8").splitlines() == [
        Path(name).stem for name in MEANT
    ]
    rows = [line.rsplit(":", 3) for line in (out / "labelmap.txt").read_text(encoding="utf-8").splitlines()[1:]]
    assert [row[0] for row in rows] == ["background", "the ring", "object", "crème: brûlée", "a crowd"]
    colors = [tuple(map(int, row[1].split(","))) for row in rows]
    classes, objects = (
        Image.open(out / folder / "upright.png") for folder in ("SegmentationClass", "SegmentationObject")
    )
    assert classes.mode == objects.mode == "P"
    assert BOX.sum() < RING.sum(), "the smaller one is seen"
    np.testing.assert_array_equal(np.asarray(objects), np.where(BOX, 2, RING))
    np.testing.assert_array_equal(np.asarray(classes), np.where(BOX, 2, RING))
    shown = np.asarray(classes.convert("RGB"))
    assert tuple(shown[1, 12].tolist()) == colors[2]
    np.testing.assert_array_equal(np.asarray(Image.open(out / "SegmentationClass" / "turned.png")) == 3, CORNERS)


def test_the_palette_of_voc():
    """The first colours of VOC2012, as its documentation shows them; 255 is the cream of its borders."""
    palette = np.array(voc_palette()).reshape(-1, 3).tolist()
    assert palette[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert palette[15] == [192, 128, 128]
    assert palette[255] == [224, 224, 192]


def test_what_a_png_cannot_hold_is_refused(images, tmp_path):
    many = replace(images[0], objects=tuple(LabelledObject(f"cup {n}", mask_to_rle(BOX)) for n in range(255)))
    with pytest.raises(DataFileError, match="has 255 objects, and a PNG of Pascal VOC holds 254"):
        write("voc", [many], tmp_path / "out")
    rows = [replace(many, file_name=f"{n}.png", objects=many.objects[n : n + 1]) for n in range(255)]
    with pytest.raises(DataFileError, match="more than 254 labels"):
        write("voc", rows, tmp_path / "out")
    for name in ("a\nb.png", "a .png"):
        with pytest.raises(DataFileError, match="cannot stand in a list of names"):
            write("voc", [replace(images[0], file_name=name)], tmp_path / "out")


def test_what_is_lost_in_a_png_is_told(images, tmp_path):
    twice = LabelledObject("cup", mask_to_rle(BOX))
    empty = LabelledObject("cup", mask_to_rle(np.zeros(SIZE, dtype=bool)))
    written = write("voc", [replace(images[0], objects=(twice, twice, empty))], tmp_path / "out")
    assert written.masks == 1
    assert written.left_out == {
        "pixels that a smaller mask hides": BOX.sum(),
        "masks that others hide wholly": 1,
        "empty masks, which have no pixel": 1,
    }
    for label in ("background", "_background_", "# cup"):
        named = replace(images[0], objects=(replace(twice, label=label),))
        with pytest.raises(DataFileError, match=f"'upright.png' has an object '{label}'"):
            write("voc", [named], tmp_path / "other")
    assert not (tmp_path / "other").exists()
    write("voc", [replace(images[0], objects=(replace(twice, label="  "),))], tmp_path / "other")
    (image,) = FORMATS["voc"].read(tmp_path / "other")
    assert [found.label for found in image.objects] == ["object"], "as what has no label"


# ---- our own folder -------------------------------------------------------------------------------------------------


def test_reasonseg_as_training_reads_it(images, tmp_path):
    assert write("reasonseg", images, tmp_path / "out").left_out == {"scores": 2}
    read = {image.source.name: image for image in read_request_folder(tmp_path / "out")}
    check(
        {
            name: [
                (phrase.text or "object", read_mask(phrase.mask))
                for request in image.requests
                for phrase in request.phrases
                if phrase.mask is not None
            ]
            for name, image in read.items()
        }
    )
    asked = {name: [(request.question, request.answer) for request in image.requests] for name, image in read.items()}
    assert asked == {
        "upright.png": [("What is round?", "the ring [SEG], a dog [REJ], [SEG].")],
        "turned.jpg": [
            (
                "Please segment crème: brûlée, the ring in this image.",
                "Sure, crème: brûlée: [SEG], the ring: [SEG].",
            )
        ],
        "second split.png": [("Please segment a crowd in this image.", "Sure, a crowd: [SEG].")],
        "nothing.png": [("Please segment a dog in this image.", "a dog [REJ].")],
    }


def test_images_without_anything_to_ask_are_left_out(images, tmp_path):
    plain = replace(images[3], objects=(), requests=())
    written = write("reasonseg", [images[0], plain], tmp_path / "out")
    assert written.sentence() == (
        "1 image, 2 masks, 1 rejected phrase; left out: images about which nothing is asked (1), scores (2)"
    )
    with pytest.raises(DataFileError, match="no image with an object or a question"):
        write("reasonseg", [plain], tmp_path / "other")


# ---- folders and images ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "masks"), WRITERS)
def test_the_same_is_written_again(images, tmp_path, name, masks):
    for folder in ("first", "second"):
        write(name, images, tmp_path / folder, masks=masks)
    assert tree(tmp_path / "first") == tree(tmp_path / "second")
    assert tree(tmp_path / "first"), "something is written"


@pytest.mark.parametrize("name", [name for name, _ in WRITERS])
def test_no_images_still_make_a_folder(name, tmp_path):
    if name == "reasonseg":
        pytest.skip("A folder to learn from must hold something; see the test of its writer.")
    assert write(name, [], tmp_path / "out").sentence() == "0 images, 0 masks"
    assert len(tree(tmp_path / "out")) > 1 or name == "labelme"


def test_images_are_copied_but_for_the_turned_one(images, tmp_path):
    write("coco", images, tmp_path / "copied")
    write("coco", images, tmp_path / "linked", images="link")
    write("coco", images, tmp_path / "none", images="none")
    for image in images:
        copied, linked = (tmp_path / folder / "images" / image.file_name for folder in ("copied", "linked"))
        is_turned = image.file_name == "turned.jpg"
        assert (copied.read_bytes() == image.source.read_bytes()) == (not is_turned)
        assert linked.is_symlink() == (not is_turned)
        assert linked.read_bytes() == copied.read_bytes()
        difference = np.asarray(Image.open(copied).convert("RGB")).astype(int) - image.pixels()
        assert np.abs(difference).mean() < (8 if is_turned else 0.01), "the pixels are those of the upright image"
    assert not list((tmp_path / "none" / "images").iterdir())


def test_images_in_memory(images, tmp_path):
    write("coco", images, tmp_path / "files")
    write("coco", [replace(image, source=image.source.read_bytes()) for image in images], tmp_path / "bytes")
    assert tree(tmp_path / "files") == tree(tmp_path / "bytes")
    np.testing.assert_array_equal(replace(images[0], source=images[0].content()).pixels(), images[0].pixels())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": None}, "is not at hand"),
        ({"size": SIZE[::-1]}, r"is 36 x 24 pixels, its masks are 24 x 36 \(width x height\)"),
        ({"file_name": "../upright.png"}, "leads out of the folder"),
    ],
)
def test_an_image_that_cannot_be_written_leaves_what_was_there(images, tmp_path, change, message):
    target = tmp_path / "out"
    write("coco", images[:1], target)
    before = tree(target)
    with pytest.raises(ValueError, match=message):
        write("coco", [images[1], replace(images[0], **change)], target)
    assert tree(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_folders_of_others_are_not_replaced(images, tmp_path):
    target = tmp_path / "photos"
    target.mkdir()
    write("coco", images, target)
    write("coco", images[:1], target)
    (target / ".reasonseg-export").unlink()
    with pytest.raises(ExistingFolderError, match="is not a folder that an export has written"):
        write("coco", images, target)
    assert (target / "images" / "upright.png").is_file()


def test_links_and_the_folder_one_is_in(images, tmp_path, monkeypatch):
    """A link to a folder stands for it; `.` is a folder like others."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write("coco", images[:1], tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    monkeypatch.chdir(tmp_path / "real")
    write("coco", images, Path())
    assert len(json.loads((tmp_path / "link" / "annotations" / "instances.json").read_text())["images"]) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "link", "real"]
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(ExistingFolderError, match="is not a folder that an export has written"):
        write("coco", images, tmp_path / "link")


@pytest.mark.parametrize("name", ["coco", "labelme"])
def test_a_phrase_that_is_rejected_twice_is_written_once_and_told(images, tmp_path, name):
    dog = LabelledObject("a dog", None, rejected=True)
    written = write(name, [replace(images[0], objects=(dog, dog))], tmp_path / "out")
    assert written.rejected == 1
    assert written.left_out == {"rejected phrases that another one of their image repeats": 1}
    (image,) = FORMATS[name].read(tmp_path / "out")
    assert [found.label for found in image.rejected] == ["a dog"]


@pytest.mark.parametrize("name", ["coco", "labelme", "yolo", "voc"])
def test_a_run_that_found_nothing_is_read_back(images, tmp_path, name):
    dog = LabelledObject("a dog", None, rejected=True)
    assert write(name, [replace(images[0], objects=(dog,))], tmp_path / "out").masks == 0
    (image,) = FORMATS[name].read(tmp_path / "out")
    assert (image.size, [found.label for found in image.objects]) == (
        images[0].size,
        ["a dog"] if name in ("coco", "labelme") else [],
    )


@pytest.mark.parametrize(("name", "masks"), [("coco", "polygons"), ("labelme", "polygons"), ("yolo", "polygons")])
def test_masks_of_images_larger_than_the_limit(images, tmp_path, monkeypatch, name, masks):
    """Who let in a larger image may write it, too, and learn from it."""
    monkeypatch.setattr("reasonseg.processing.regions.MAX_IMAGE_PIXELS", 100)
    assert write(name, images[:1], tmp_path / name, masks=masks).masks == 2
    write("reasonseg", images[:1], tmp_path / "out")
    (image,) = read_request_folder(tmp_path / "out")
    np.testing.assert_array_equal(image.example().masks[0][0], RING)


def test_a_folder_knows_what_it_was_made_of(images, tmp_path):
    entry, options = find_format("coco"), WritingOptions()
    made_of = {"results_sha256": "1234"}
    assert not is_written(entry, tmp_path / "out", options, made_of)
    write_annotations(entry, images, tmp_path / "out", options, made_of)
    assert is_written(entry, tmp_path / "out", options, made_of)
    assert not is_written(entry, tmp_path / "out", options, {"results_sha256": "5678"})
    assert not is_written(entry, tmp_path / "out", replace(options, masks="polygons"), made_of)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Without fork there is no process to kill.")
@pytest.mark.parametrize("step", ["mkdir", "write_bytes", "rename", "second rename", "rmtree"])
def test_a_kill_at_any_step_leaves_the_old_folder_or_the_new_one(images, tmp_path, step, monkeypatch):
    target = tmp_path / "out"
    write("coco", images[:1], target)
    old = tree(target)
    write("coco", images, tmp_path / "new")
    new = tree(tmp_path / "new")
    if not (child := os.fork()):
        calls = Counter()

        def die(*_, **__):
            os.kill(os.getpid(), signal.SIGKILL)

        def die_at_the_second(path, other, rename=Path.rename):
            calls["rename"] += 1
            return rename(path, other) if calls["rename"] == 1 else die()

        if step == "rmtree":
            monkeypatch.setattr(Path, "rename", lambda path, other: os.rename(path, other))
            monkeypatch.setattr(annotation_writing.shutil, "rmtree", lambda path, **_: path.exists() and die())
        else:
            monkeypatch.setattr(Path, step.split()[-1], die_at_the_second if " " in step else die)
        write("coco", images, target)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    if step == "second rename":
        assert not target.exists(), "the old folder waits beside it"
    else:
        assert tree(target) in (old, new)
    write("coco", images, target)
    assert tree(target) == new
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "new", "out"]


def test_formats_by_their_names():
    assert find_format("png") is find_format("voc")
    with pytest.raises(ValueError, match="There is no format 'xml'; choose one of coco, labelme, yolo, voc"):
        find_format("xml")
    for entry in FORMATS.values():
        assert set(entry.keeps) <= {"pixels", "holes", "parts", "overlaps", "scores", "rejected", "text"}


def test_the_readme_lists_what_is_written():
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| `--format` |") :].split("\n\n")[0].splitlines()[2:]
    named = [tuple(re.findall(r"`(\w+)`", line.split("|")[1])) for line in table]
    assert named == [(entry.name, *entry.other_names) for entry in FORMATS.values() if entry.writer]


def test_a_record_knows_its_box_and_area():
    found = LabelledObject("ring", mask_to_rle(RING))
    assert (found.area, found.box_xyxy) == (RING.sum(), (2, 2, 30, 20))
    np.testing.assert_array_equal(found.pixels(), read_rle(found.mask))
    absent = LabelledObject("dog", None, rejected=True)
    assert (absent.area, absent.box_xyxy) == (0, None)
    with pytest.raises(ValueError, match="'dog' has no mask"):
        absent.pixels()
