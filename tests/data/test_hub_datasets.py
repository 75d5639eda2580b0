"""Rows of ReasonSeg and RefCOCO as `datasets` gives them; for the last tests the library itself is needed."""

import io
import sys
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from reasonseg.data.data_files import DataFileError
from reasonseg.data.hub_datasets import HubImages
from reasonseg.data.lisa_mixture import LisaMixture


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
        (
            "ReasonSeg_val",
            reasoning_row(image={"bytes": b"no image", "path": None}),
            "image of 8 bytes cannot be opened",
        ),
        (
            "ReasonSeg_val",
            reasoning_row(image={"bytes": None, "path": None}),
            "an image must have `bytes` or a `path`",
        ),
        ("ReasonSeg_val", reasoning_row(mask={"size": [2, 2], "counts": [4]}), "`mask` is 2 x 2"),
        ("ReasonSeg_val", reasoning_row(mask=Image.new("1", (2, 2))), "`mask` is 2 x 2"),
        ("RefCOCO", referring_row(answer="cup"), "`answer` is 'cup'"),
        ("RefCOCO", referring_row(segmentation=[1.0, 2.0]), "has no area"),
        ("RefCOCO", referring_row(segmentation=[*SQUARE, float("nan"), 0.0]), "list of finite numbers"),
    ],
)
def test_rows_that_cannot_be_used(name, row, reason):
    with pytest.raises(DataFileError, match=f"{name}, val, row 0.*{reason}"):
        [target.mask() for target in HubImages(name, "val", rows=[row])[0].targets]


# What `datasets` reads from parquet files with the features of the published ones


def jpeg(size: tuple[int, int], mode: str = "RGB", orientation: int = 1) -> bytes:
    stored, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(stored, "JPEG", exif=exif)
    return stored.getvalue()


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    datasets = pytest.importorskip("datasets")
    text, number, image = datasets.Value("string"), datasets.Value("int64"), datasets.Image()
    folder = tmp_path_factory.mktemp("hub")
    texts = datasets.List(text)

    def write(name, features, rows):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(path)

    mask = datasets.List(datasets.List(datasets.Value("bool")))
    reasoning = {"image": image, "text": text, "mask": mask, "image_id": text, "ann_id": text}
    pictures = [jpeg((8, 6), "L"), jpeg((6, 8), orientation=6)]
    write(
        "ReasonSeg_val/data/test-00000-of-00001.parquet",
        {**reasoning, "img_height": number, "img_width": number},
        [reasoning_row(image={"bytes": picture, "path": "x.jpg"}) for picture in pictures],
    )
    numbers = datasets.List(datasets.Value("float32"))
    referring = {"question_id": text, "image": image, "question": text, "answer": texts}
    referring |= {"segmentation": numbers, "bbox": numbers, "iscrowd": datasets.Value("int8"), "file_name": text}
    for split in ("val", "testA"):
        row = referring_row(image={"bytes": jpeg((8, 6)), "path": None}, question_id=split)
        write(f"RefCOCO/data/{split}-00000-of-00001.parquet", referring, [row, row])
    drawn = Image.new("L", (8, 6))
    drawn.paste(255, (1, 1, 5, 4))
    other = [{"image": {"bytes": pictures[0], "path": None}, "text": "x", "image_id": "1", "mask": drawn}]
    write("mine/test.parquet", {"image": image, "text": text, "image_id": text, "mask": image}, other)
    runs = {"size": [6, 8], "counts": [7, 3, 38]}
    run_lengths = {"size": datasets.List(number), "counts": datasets.List(number)}
    other = [{"image": {"bytes": pictures[0], "path": None}, "text": "x", "image_id": "1", "mask": runs}]
    write("runs/test.parquet", {"image": image, "text": text, "image_id": text, "mask": run_lengths}, other)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    if "datasets" in sys.modules:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


def test_parquet_files_of_reason_seg(hub_folder):
    data = HubImages(str(hub_folder / "ReasonSeg_val"))
    assert [(item.name, item.image.mode, item.image.size) for item in map(data.__getitem__, range(len(data)))] == [
        ("12_a", "RGB", (8, 6)),
        ("12_a", "RGB", (8, 6)),  # turned upright, once
    ]
    (target,) = data[1].targets
    assert np.argwhere(target.mask()).tolist() == [[2, 3], [2, 4], [3, 3], [3, 4]]


@pytest.mark.parametrize("split", ["val", "testA"])
def test_parquet_files_of_refcoco(hub_folder, split):
    data = HubImages(str(hub_folder / "RefCOCO"), split)
    assert (len(data), data[0].name) == (2, split)
    assert [(target.wordings, int(target.mask().sum())) for target in data[1].targets] == [
        (("left cup",), 12),
        (("the red one",), 12),
    ]
    with pytest.raises(ValueError, match=r"RefCOCO cannot be read: Unknown split .*train.*testA"):
        HubImages(str(hub_folder / "RefCOCO"), "train")


def test_other_forms_of_a_mask_are_known_by_their_columns(hub_folder):
    image, runs = (HubImages(str(hub_folder / name))[0].targets[0].mask() for name in ("mine", "runs"))
    assert (image.sum(), image[1:4, 1:5].all()) == (12, True)
    assert np.argwhere(runs).tolist() == [[1, 1], [2, 1], [3, 1]]


def test_the_mixture_trains_on_them(hub_folder):
    referring, reasoning = f"{hub_folder / 'RefCOCO'}|val", f"{hub_folder / 'ReasonSeg_val'}|test"
    mixture = LisaMixture("none", "gsva", "refer_seg", [1], referring=referring)
    item = mixture[0]
    assert (item.data_set, sorted(item.names), item.masks.sum()) == (referring, ["left cup", "the red one"], 24)
    assert "[SEG]" in item.example().answers[0]
    mixture = LisaMixture("none", "lisa", "reason_seg", [1], reasoning=reasoning)
    assert ForkingPickler.dumps(mixture)  # what a worker that is started anew is given
    loader = DataLoader(mixture, batch_size=None, num_workers=1, sampler=range(3))
    for item, same in zip(loader, map(mixture.__getitem__, range(3)), strict=True):
        assert item.conversations == same.conversations
        assert "What could hold water? Please" in item.conversations[0][0]  # a sentence
        np.testing.assert_array_equal(item.masks, same.masks)
        assert item.masks.sum() == 4
