"""Annotations of other tools are read as they are meant, or refused by one sentence with file and object."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from reasonseg.data.annotation_formats import FORMATS, ReadingOptions, WritingOptions, guess_format
from reasonseg.data.annotation_writing import write_annotations
from reasonseg.data.data_files import DataFileError
from reasonseg.data.labelled_images import LabelledImage, LabelledObject
from reasonseg.data.streamed_tables import StreamedTables, check_columns
from reasonseg.processing.segments import mask_to_rle
from tests.support.annotation_files import (
    CORNERS,
    HEIGHT,
    MASK,
    TWO,
    WIDTH,
    check_mask,
    coco,
    counts_of,
    labelme,
    masks_of,
    pairs,
    png,
    read,
    refused,
    save_image,
    shape,
)
from tests.support.labelled import SIZE, box_mask, labelled_images


@pytest.mark.parametrize("name", [name for name, entry in FORMATS.items() if entry.reader and not entry.on_the_hub])
def test_a_path_that_does_not_exist(name, tmp_path):
    refused(name, tmp_path / "nothing", "There is no file and no folder", str(tmp_path / "nothing"))


# ---- YOLO -----------------------------------------------------------------------------------------------------------


def yolo(folder: Path, text: str | bytes | None, orientation: int = 1, **content) -> Path:
    save_image(folder / "images" / "train" / "a.jpg", orientation)
    save_image(folder / "images" / "train" / "empty.jpg")
    (folder / "labels" / "train").mkdir(parents=True, exist_ok=True)
    if text is not None:
        data = text if isinstance(text, bytes) else text.encode()
        (folder / "labels" / "train" / "a.txt").write_bytes(data)
    described = {"names": ["cup", "dog"], "train": "images/train", **content}
    (folder / "data.yaml").write_text(
        yaml.safe_dump({name: value for name, value in described.items() if value is not None})
    )
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
        {"train": "data.txt"},
        {"train": None, "Train": "images/train"},
    ],
)
def test_data_sets_of_yolo(tmp_path, content):
    content = {name: text.format(root=tmp_path) if isinstance(text, str) else text for name, text in content.items()}
    folder = yolo(tmp_path, b"\xef\xbb\xbf" + f"{LINE}\r\n\r\n".encode(), **content)
    (folder / "all.txt").write_text("".join(f"{folder}/images/train/{name}.jpg\n" for name in ("a", "empty")))
    (folder / "train.txt").write_text("./images/train/a.jpg\nimages/train/empty.jpg\n")
    (folder / "images" / "train" / "._a.jpg").write_bytes(b"of macOS")
    (folder / "data.txt").write_text("data/images/train/a.jpg\ndata/images/train/empty.jpg\n")
    for source in (folder, folder / "data.yaml"):
        images = read("yolo", source)
        assert [Path(image.file_name).name for image in images] == ["a.jpg", "empty.jpg"]
        assert {image.split for image in images} == {"train"}
        check_mask(images, MASK)
    assert guess_format(folder).name == "yolo"


def test_classes_of_label_studio(tmp_path):
    folder = yolo(tmp_path, LINE)
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("cup\ndog\n")
    assert guess_format(folder).name == "yolo"
    images = read("yolo", folder)
    assert [image.file_name for image in images] == ["train/a.jpg", "train/empty.jpg"]
    check_mask(images, MASK)


def test_splits_of_yolo(tmp_path):
    folder = yolo(tmp_path, LINE, val="images/val")
    refused("yolo", folder, "images/val", "The split 'train' is there: split='train'")
    refused("yolo", folder, "images/val", split="val")
    assert len(read("yolo", folder, split="train")) == 2, "what is not asked for may be missing"
    save_image(folder / "images" / "val" / "b.jpg")
    refused("yolo", folder, "splits train, val", "split='NAME'")
    assert len(read("yolo", folder, split="train")) == 2
    refused("yolo", folder, "'val' has a file of labels", split="val")
    refused("yolo", folder, "no split 'x'", split="x")
    (folder / "data.yaml").write_text("names: [no, yes]\nvalidation: images/train\ntest: null\n")
    check_mask(read("yolo", folder), MASK, "no")
    (folder / "labels" / "train" / "b.txt").write_text(LINE)
    options = ReadingOptions(split="val")
    assert len(list(FORMATS["yolo"].read(folder, options))) == 2
    assert options.left_out == {"files of labels without an image": 1}
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
    refused("yolo", yolo(tmp_path, LINE, names=[]), "of the class 0", "names the classes of nothing")
    refused("yolo", yolo(tmp_path, LINE, names=None), "data.yaml", "names")
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
    (folder / "SegmentationClass" / "._a.png").write_bytes(b"of macOS")
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
    (tmp_path / "class_names.txt").write_text("cup\ndog\n")  # else each label would be that of its neighbour
    refused("voc", tmp_path, "class_names.txt begins with 'cup'", "the background")


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
    (lists / "val.txt").write_text("\n")
    refused("voc", folder, f"{folder} has no image", split="val")
    refused("voc", folder / "JPEGImages", f"{folder / 'JPEGImages'} is no folder of Pascal VOC")
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
    path.write_bytes(f"<?xml version='1.0' encoding='gb2312'?>{XML}".encode())
    refused("voc", tmp_path, "a.xml", "no XML file in UTF-8", "encoding")
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
    content = png(np.zeros((*SIZE, 3), dtype=np.uint8))
    for kind, image in (("large_binary", content), ("large_string", "a.jpg"), ("null", None)):
        features = datasets.Features({"image": datasets.Value(kind), "objects": {"bbox": [datasets.Value("int32")]}})
        table = datasets.Dataset.from_list([{"image": image, "objects": {"bbox": [1]}}], features=features)
        table = table.add_column("mask", [mask_to_rle(MASK)])
        table.to_parquet(str(tmp_path / "data" / "train.parquet"))
        if image == content:  # as other libraries write it, beside boxes, which are no masks
            check_mask(read("datasets", tmp_path / "data"), MASK, "")
            check_columns(next(StreamedTables(str(tmp_path / "data")).read(0)), "image", None, None)
        else:
            refused("datasets", tmp_path / "data", "row 0", "is not an existing" if image else "It has no image")
    datasets.Dataset.from_list([{"image": [1], "mask": mask_to_rle(MASK)}]).to_parquet(
        str(tmp_path / "data" / "train.parquet")
    )
    refused("datasets", tmp_path / "data", "row 0", "Its image is of type", "it must be one image")
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
    # a folder of this name in that of the images: YOLO's labels lie in the one beside it
    given_image = LabelledImage("images/a.png", SIZE, save_image(folder / "a.png"), objects)
    entry = FORMATS[name]
    write_annotations(entry, [given_image], folder / "out", WritingOptions(masks=masks))
    (back,) = entry.read(folder / "out")
    assert back.file_name == given_image.file_name
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
