"""`reasonseg segment --dataset` with the library `datasets`: what it reads, what `datasets` loads of it, and kills."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from reasonseg.cli.app import app
from reasonseg.cli.inputs import DataSetOptions
from reasonseg.cli.labelled_shards import FolderShards, part_name
from reasonseg.cli.segment_dataset import Labelling, make_request
from reasonseg.cli.shards import Shard
from reasonseg.data.annotation_formats import FORMATS, ReadingOptions
from reasonseg.data.data_files import DataFileError
from reasonseg.data.label_requests import read_labelled_requests
from reasonseg.data.labelled_rows import PartWriter, error_columns, result_columns
from reasonseg.data.streamed_tables import StreamedTables
from reasonseg.evaluation.reasoning_segmentation import image_folder_questions
from reasonseg.processing.segments import Segment, SegmentationResult
from tests.support.forked_python import fork_server, run_distributed
from tests.support.hub_server import HubServer, allow_only_this_machine
from tests.support.installed import EXECUTABLE
from tests.support.written_results import Page


datasets = pytest.importorskip("datasets", reason="The extra `data` (pip install datasets) is not installed.")
pyarrow = pytest.importorskip("pyarrow")
pyarrow_parquet = pytest.importorskip("pyarrow.parquet")
ROOT = Path(__file__).parents[2]
ASKED = ("-p", "the red cup", "--reject-threshold", 0, "-m", "embedded", "--workers", 0)
KILLS = 6


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        yield


def image(number: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(number: int) -> bytes:
    file = io.BytesIO()
    image(number).save(file, "PNG")
    return file.getvalue()


def rows_of(count: int, size: tuple[int, int] = (60, 40)):
    features = {
        "id": datasets.Value("int64"),
        "picture": datasets.Image(),
        "kind": datasets.ClassLabel(names=["cup", "bowl"]),
        "question": datasets.Value("string"),
        "phrases": datasets.List(datasets.Value("string")),
        "grid": datasets.Array2D((2, 2), "int32"),
    }
    numbers = list(range(count))
    columns = {
        "id": numbers,
        "picture": [image(number, size) for number in numbers],
        "kind": [number % 2 for number in numbers],
        "question": [f"Where is cup {number}?" for number in numbers],
        "phrases": [["a cup", "a bowl"][: 1 + number % 2] for number in numbers],
        "grid": [[[number, 1], [2, 3]] for number in numbers],
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture(scope="module")
def rows():
    return rows_of(11)


@pytest.fixture(scope="module")
def parquet(rows, tmp_path_factory) -> Path:
    """Files of 5, 4 and 2 rows."""
    folder = tmp_path_factory.mktemp("parquet")
    (folder / "data").mkdir()
    for number, (start, end) in enumerate(((0, 5), (5, 9), (9, 11))):
        rows.select(range(start, end)).to_parquet(folder / f"data/train-{number:05}-of-00003.parquet")
    return folder


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def label(source: object, out: object, *more: object, asked=ASKED, code: int = 0):
    return run("segment", "--dataset", source, "--out", out, *asked, *more, code=code)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def alone(parquet, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    result = label(parquet, out, "--rows-per-shard", 2, "--batch-size", 2)
    assert "All 11 rows are in" in result.stderr
    return out


def assert_same_objects(found, expected) -> None:
    """Scores move in their last digits where batches are others."""
    for row, other in zip(found["objects"], expected["objects"], strict=True):
        for one, same in zip(row, other, strict=True):
            assert {**one, "score": 0} == {**same, "score": 0}
            assert one["score"] == pytest.approx(same["score"], abs=1e-5)


def test_datasets_loads_the_rows_with_their_masks(rows, alone):
    parts = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0))
    names = [f"train-{source:05}-of-00003-{part:05}.parquet" for source, part in parts]
    assert sorted(path.name for path in (alone / "data").iterdir()) == names
    for loaded in (
        datasets.load_dataset(str(alone), split="train"),
        list(datasets.load_dataset(str(alone), split="train", streaming=True)),
    ):
        assert len(loaded) == 11
        for row, before in zip(loaded, rows, strict=True):
            for column, value in before.items():
                same = np.array_equal if column in ("picture", "grid") else lambda one, other: one == other
                assert same(row[column], value), column
            (found,) = row["objects"]
            mask = coco_mask.decode(found["rle"])
            assert mask.shape == (40, 60)
            assert (found["label"], found["area"], found["rejected"]) == ("the red cup", mask.sum(), False)
            assert row["answer"][slice(*found["span"])] == "[SEG]"
            assert (row["model"], row["revision"], row["error"]) == ("embedded", None, None)
    loaded = datasets.load_dataset(str(alone), split="train")
    assert loaded.features["kind"].names == ["cup", "bowl"]
    assert "| train | " in (alone / "README.md").read_text(encoding="utf-8")


def test_the_masks_are_those_of_the_pipeline(rows, alone):
    from transformers import pipeline

    import reasonseg  # noqa: F401 - so that the pipeline is known

    pipe = pipeline("reasoning-segmentation")
    answers = pipe(rows["picture"], phrases=["the red cup"], reject_threshold=0.0, batch_size=2, mask_format="rle")
    loaded = datasets.load_dataset(str(alone), split="train")
    for row, answer in zip(loaded, answers, strict=True):
        (found,), (segment,) = row["objects"], answer["segments"]
        np.testing.assert_array_equal(coco_mask.decode(found["rle"]), coco_mask.decode(segment["mask"]))
        assert found["score"] == pytest.approx(segment["score"], abs=1e-4)


def test_a_second_run_has_nothing_to_do(parquet, alone, tmp_path, monkeypatch):
    out = Path(shutil.copytree(alone, tmp_path / "out"))
    monkeypatch.setattr("reasonseg.cli.segment.load_checkpoint", None)
    (out / ".reasonseg/train/.00000-of-00003-00000.lock").touch()  # of a run that was killed when the part was whole
    result = label(parquet, out, "--rows-per-shard", 2)
    assert "11 rows are done already" in result.stderr
    assert content(out) == content(alone)
    refused = label(parquet, out, "--rows-per-shard", 3, code=1)
    assert "with another rows_per_shard (2, now 3)" in " ".join(refused.stderr.split())
    assert content(out) == content(alone)


def test_what_is_missing_is_made_again(parquet, alone, tmp_path):
    out = Path(shutil.copytree(alone, tmp_path / "out"))
    for name in ("00000-of-00003-00001", "00002-of-00003-00000"):
        (out / ".reasonseg/train" / f"{name}.json").unlink()
    (out / "data/train-00000-of-00003-00001.parquet").write_bytes(b"half")
    (out / "data" / f".train-00000-of-00003-00001.parquet.{2**22 + 1}.partial").write_bytes(b"left by a kill")
    result = label(parquet, out, "--rows-per-shard", 2, "--batch-size", 2)
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
        "data/train-00000-of-00003-00001.parquet",
        "data/train-00002-of-00003-00000.parquet",
    ]
    assert content(out) == content(alone)


def test_overwrite_begins_again(parquet, alone, tmp_path):
    out = Path(shutil.copytree(alone, tmp_path / "out"))
    label(parquet, out, "--rows-per-shard", 100, "--overwrite")
    assert len(list((out / "data").iterdir())) == 3
    assert label(parquet, out, "--rows-per-shard", 100, "--overwrite", "--json").stdout.count('"rows"') == 3


def saved_to_disk(rows, folder: Path) -> Path:
    rows.save_to_disk(folder)
    return folder


def saved_with_splits(rows, folder: Path) -> Path:
    datasets.DatasetDict({"kitchen": rows, "test": rows.select([0])}).save_to_disk(folder)
    return folder


def image_folder(rows, folder: Path) -> Path:
    (folder / "train").mkdir(parents=True)
    lines = []
    for row in rows:
        row["picture"].save(folder / "train" / f"{row['id']:02}.png")
        lines.append(json.dumps({"file_name": f"{row['id']:02}.png", "question": row["question"]}))
    (folder / "train" / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def undecoded(rows, folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    rows.cast_column("picture", datasets.Image(decode=False)).to_parquet(folder / "data" / "train.parquet")
    return folder


@pytest.mark.parametrize("make", [saved_to_disk, saved_with_splits, image_folder, undecoded])
def test_other_folders_give_the_same_masks(rows, alone, tmp_path, make):
    split = "kitchen" if make is saved_with_splits else "train"
    label(make(rows, tmp_path / "in"), tmp_path / "out", "--split", split, "--batch-size", 2)
    found = datasets.load_dataset(str(tmp_path / "out"), split=split)
    expected = datasets.load_dataset(str(alone), split="train")
    assert_same_objects(found, expected)
    pictures = found["image" if make is image_folder else "picture"]
    pictures = found.cast_column("picture", datasets.Image())["picture"] if make is undecoded else pictures
    shutil.rmtree(tmp_path / "in")  # the files hold the images themselves
    for one, other in zip(pictures, rows["picture"], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("column", "labels"), [("phrases", lambda row: row["phrases"]), ("question", lambda row: [row["question"]])]
)
def test_every_row_may_ask_for_something_else(parquet, rows, tmp_path, column, labels):
    asked = ("--phrases-column", column, "-m", "embedded", "--drop-column", "grid", "--drop-column", "picture")
    label(parquet, tmp_path / "out", asked=asked)
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert [[found["label"] for found in row] for row in loaded["objects"]] == list(map(labels, rows))
    assert not {"grid", "picture"} & set(loaded.column_names)


def test_a_column_of_questions(parquet, tmp_path):
    """Or one question for all; both are what is asked where the rows are exported and imported."""
    one_for_all = ("--text", "Where is it?", "--shard", "3/3")
    for name, asked in (("column", ("--text-column", "question")), ("shared", one_for_all)):
        out = tmp_path / name
        label(parquet, out, asked=(*asked, "-m", "embedded", "--max-new-tokens", 8))
        loaded = datasets.load_dataset(str(out), split="train")
        assert len(loaded) == 11 or name == "shared"
        assert all(isinstance(answer, str) for answer in loaded["answer"])
        run("export", out, "-f", "coco")
        content = json.loads((out / "export" / "coco" / "annotations" / "instances.json").read_text(encoding="utf-8"))
        questions = loaded["question"][:] if name == "column" else ["Where is it?"] * len(loaded)
        assert [image["requests"][0]["question"] for image in content["images"]] == questions
    (imported, *_) = FORMATS["datasets"].read(out, ReadingOptions(columns={"text": "question"}))
    assert imported.requests[0].question == loaded["question"][0]


def test_rows_that_fail_are_kept_and_say_why(tmp_path):
    (tmp_path / "in").mkdir()
    good = [{"bytes": png(number), "path": None} for number in range(2)]
    outside = {"bytes": None, "path": str(tmp_path / "secret")}
    (tmp_path / "secret").write_bytes(b"private words")
    pictures = [{"bytes": b"no image", "path": "a.png"}, good[0], None, {"bytes": None, "path": "gone.png"}, good[1]]
    pictures += [outside, {"bytes": None, "path": "nothing://a.png"}]
    features = datasets.Features({"picture": datasets.Image(), "question": datasets.Value("string")})
    questions = ["", "a", "b", "c", None, "d", "e"]
    rows = [{"picture": picture, "question": asked} for picture, asked in zip(pictures, questions, strict=True)]
    data = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
    pyarrow_parquet.write_table(data, tmp_path / "in" / "train.parquet")
    result = label(tmp_path / "in", tmp_path / "out", code=1)
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train")
    errors = loaded["error"][:]
    assert "cannot be opened as an image" in errors[0]
    assert errors[1:5] == [None, "It has no image.", "The file 'gone.png' cannot be read.", None]
    assert all("none of the data set's own, and no other is read" in error for error in errors[5:])
    assert b"private words" not in b"".join(file.read_bytes() for file in (tmp_path / "out" / "data").iterdir())
    assert [len(found) for found in loaded["objects"]] == [0, 1, 0, 0, 1, 0, 0]
    assert "data/train-00000-of-00001-00000.parquet, row 2: It has no image." in " ".join(result.stderr.split())
    assert "5 rows failed" in " ".join(result.stderr.split())
    again = label(tmp_path / "in", tmp_path / "out", code=1)
    assert "5 rows failed" in " ".join(again.stderr.split())
    asked = ("--phrases-column", "question", "-m", "embedded")
    label(tmp_path / "in", tmp_path / "asked", asked=asked, code=1)
    errors = datasets.load_dataset(str(tmp_path / "asked"), split="train")["error"][:]
    assert [error is None for error in errors] == [False, True, False, False, False, False, False]
    assert errors[4] == "It has no phrases, or an empty one."


def test_rows_are_exported_for_annotation_tools(parquet, alone, tmp_path):
    """Also those that lie in the frame of a turned image, and those that failed are counted."""
    turned = Image.Exif()
    turned[0x0112] = 3
    features = {"photo": datasets.Image(), "other": datasets.Image(), "file_name": datasets.Value("string")}
    photos = [{"bytes": b"none", "path": None}]
    for number in range(4):
        image(number).save(file := io.BytesIO(), "JPEG", exif=turned)
        photos.append({"bytes": file.getvalue(), "path": None})
    (tmp_path / "photos").mkdir()
    columns = {"photo": photos, "other": photos, "file_name": ["C:\\photos\\a"] * 5}
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    for split, numbers in (("train", range(4)), ("test", range(4, 5))):
        data.select(numbers).to_parquet(tmp_path / "photos" / f"{split}.parquet")
        options = ("--image-column", "photo", "--split", split)
        label(tmp_path / "photos", tmp_path / "labelled", *options, code=int(split == "train"))
    for folder, count in ((alone, 11), (tmp_path / "labelled", 4)):
        told = run("export", folder, "-f", "coco", "-f", "yolo", "-o", tmp_path / "a", "--json", "--overwrite")
        splits = ("train",) if folder == alone else ("test", "train")
        tables = [StreamedTables(str(folder), split) for split in splits]
        parts = (part for table in tables for source in range(table.sources) for part in table.read(source))
        stored = [row for part in parts for row in part.to_pylist() if row["error"] is None]
        masks = [[each["rle"] for each in row["objects"] if each["area"]] for row in stored]
        images = list(FORMATS["coco"].read(tmp_path / "a" / "coco"))
        assert len(images) == count
        assert [[each.mask for each in found.objects] for found in images] == masks
        assert json.loads(told.stdout)["yolo"]["masks"] == sum(map(len, masks)) > 0
        sizes = {tuple(mask["size"]) for each in masks for mask in each}
        assert {found.pixels().shape[:2] for found in images} == sizes
    # what rows call the same is told apart, and images have the endings by which tools find them
    assert [found.file_name for found in images] == ["a.jpg", "train/a.jpg", "a-00000002.jpg", "a-00000003.jpg"]
    assert "rows that could not be done (1)" in told.stderr
    assert "is written already" in run("export", folder, "-f", "coco", "-o", tmp_path / "a").stderr
    assert "--image-folder is for images" in run(
        "export", folder, "-f", "coco", "--image-folder", tmp_path, code=1
    ).stderr.replace("\n", " ")
    options = ReadingOptions(split="test", columns={"image": "photo"}, without_mask="skip")
    imported, *_ = FORMATS["datasets"].read(folder, options)
    assert imported.requests[0].answer == stored[0]["answer"]


def test_report_of_rows_draws_those_that_it_shows(alone, tmp_path):
    """Two splits, one with a row that failed and rows with names; an earlier page leaves no images behind."""
    folder, masks = tmp_path / "out", np.zeros((40, 60), dtype=bool)
    masks[5:20, 10:30] = True
    shutil.copytree(alone, folder)
    columns = {"image": datasets.Image(), "file_name": datasets.Value("string")}
    features = datasets.Features(columns).arrow_schema
    pictures = [
        {"image": {"bytes": png(number), "path": None}, "file_name": f"<i>{number}</i>"} for number in range(5)
    ]
    table = pyarrow.Table.from_pylist(pictures, schema=features)
    found = [
        SegmentationResult(
            "the <b>cup</b> [SEG], a dog [REJ].",
            [Segment("the <b>cup</b>", None, masks, number / 1000), Segment("a dog", rejected=True)],
            (40, 60),
        )
        for number in range(4)
    ]
    request = {**FolderShards(folder, "train").request(), "split": "other", "sources": 1}

    def write(path):
        writer = PartWriter(path, "another", None, ())
        writer.expect(table)
        for number, columns in enumerate([*map(result_columns, found), error_columns("It has no image.")]):
            writer.add(number, columns)
        writer.close()
        return {"rows": writer.rows, "failed": writer.failed, "last": True}

    shards = FolderShards(folder, "other")
    shards.begin(request)
    shards.save(part_name(0, 1, 0), write)
    assert "report.html" in run("report", folder).stderr
    assert len(list((folder / "report_images").iterdir())) == 15
    run("report", folder, "--most", 3)
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert {"b", "i", "script", "link"}.isdisjoint(page.tags), "what is said of images is text"
    assert "15 segmented images" in page.text
    assert "Masks by another, embedded." in page.text
    assert "rows that could not be done1" in page.text.replace("\n", "")
    assert "<i>1</i>the <b>cup</b> [SEG], a dog [REJ].the <b>cup</b>: 0.00, 300 pixelsa dog: rejected" in page.text
    assert page.images == [f"report_images/other-{number:08d}.jpg" for number in range(3)]
    drawn = {path.name for path in (folder / "report_images").iterdir()}
    assert set(map(os.path.basename, page.images)) <= drawn
    with Image.open(folder / page.images[1]) as shown:
        expected = SegmentationResult(found[1].text, found[1].segments, (40, 60)).overlay(image(1))
        assert shown.size == (60, 40)
        assert np.abs(np.asarray(shown, dtype=int) - np.asarray(expected)).mean() < 8, "but for JPEG"
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.width > 4 * 200
    read = datasets.load_dataset(str(folder), split="train", streaming=True)
    assert len(list(read)) == 11, "the page's images are no rows"


def test_report_of_rows_without_images(rows, tmp_path):
    rows.select([0]).to_parquet(tmp_path / "in" / "train.parquet")
    label(tmp_path / "in", tmp_path / "out", "--drop-column", "picture")
    assert "left out with --drop-column" in " ".join(run("report", tmp_path / "out", code=1).stderr.split())


def test_a_model_that_fails_everywhere_writes_nothing(parquet, tmp_path, monkeypatch):
    def fail(self, inputs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("reasonseg.cli.segment.Segmenter.compute", fail)
    result = label(parquet, tmp_path / "out", code=1)
    assert "All 5 rows of data/train-00000-of-00003-00000.parquet failed" in " ".join(result.stderr.split())
    assert not list((tmp_path / "out").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--split", "val"), "has no split 'val'; choose one of train"),
        (("--config", "other"), "cannot be read: .*other"),
        (("--image-column", "photo"), "There is no column 'photo'; there are id, picture"),
        (("--image-column", "id"), "The column 'id' holds int64; it must hold images"),
        (("--drop-column", "x"), "There is no column 'x' to drop"),
        (("--text-column", "question"), "--phrase and --text-column were given"),
        (("--answers",), "--answers is for images"),
        (("--format", "coco"), "--format is for images"),
        (("--private",), "--private is for a repository on the Hub"),
        (("a.png", "Where?"), "'a.png' is too much"),
        (("--shard", "0/3"), "is not K/N"),
    ],
)
def test_what_is_refused(parquet, tmp_path, more, message):
    import re

    refused = " ".join(label(parquet, tmp_path / "out", *more, code=1).stderr.split())
    assert re.search(message, refused), refused
    assert not (tmp_path / "out").exists()


def test_names_that_are_taken_and_data_sets_that_are_none(alone, tmp_path):
    refused = " ".join(label(alone, tmp_path / "out", code=1).stderr.split())
    assert "has a column 'objects' already" in refused
    (tmp_path / "empty").mkdir()
    for name, message in (
        (tmp_path / "empty", "cannot be read"),
        (alone / "README.md", "is a file"),
        (tmp_path / "none", "is neither a folder that exists nor ORG/NAME"),
    ):
        assert message in " ".join(label(name, tmp_path / "out", code=1).stderr.split())
    for more, message in ((("--split", "x"), "--split is for --dataset"), (("--private",), "--private is for --data")):
        assert message in run("segment", ROOT, *ASKED, "-o", tmp_path / "out", *more, code=1).stderr
    assert not (tmp_path / "out").exists()


class Answers:
    """A model that has known all answers before."""

    by_phrases, revision = True, "abc"

    def load(self, source):
        assert source == b"content"
        return source

    def prepare(self, images, questions=None):
        return images

    def compute(self, images):
        mask = np.ones((4, 4), dtype=bool)
        return [SegmentationResult("a cup [SEG].", [Segment("a cup", (6, 11), mask, 0.5)], (4, 4)) for _ in images]


def test_memory_holds_a_few_rows_however_many_a_part_has(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    features = datasets.Features({"image": datasets.Image()})
    rows = [{"image": {"bytes": b"content", "path": None}}] * 3000
    pyarrow_parquet.write_table(
        pyarrow.Table.from_pylist(rows, schema=features.arrow_schema), tmp_path / "in" / "train.parquet"
    )
    options = DataSetOptions(str(tmp_path / "in"), rows_per_shard=2000)
    tables, shards = StreamedTables(options.dataset), FolderShards(tmp_path / "out", "train")
    settings = {"model": "m", "revision": None, "text": None, "phrases": ["a cup"]}
    request, told, waiting, expect = make_request(options, tables, settings), [], [], PartWriter.expect

    def watched(writer, table):
        expect(writer, table)
        waiting.append(sum(one.num_rows for one in writer._waiting))

    monkeypatch.setattr(PartWriter, "expect", watched)
    shards.begin(request)
    tell, counted = (lambda name, about: told.append(about)), (lambda more: None)
    Labelling(options, tables, shards, Shard(), request, lambda: Answers(), 4, 2, tell, counted).run()
    assert [about["rows"] for about in told] == [2000, 1000]
    assert len(waiting) == 30
    assert max(waiting) <= 300
    assert set(pyarrow_parquet.read_table(tmp_path / "out" / "data")["revision"].to_pylist()) == {"abc"}


# ---- many machines, kills, the Hub ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5])
def test_merged_shards_are_what_one_run_writes(parquet, alone, tmp_path, count):
    """Two take whole files, five share the parts of files."""
    folders = [tmp_path / str(number) for number in range(count)]
    for number, folder in enumerate(folders, start=1):
        label(parquet, folder, "--rows-per-shard", 2, "--batch-size", 2, "--shard", f"{number}/{count}")
    refused = run("merge", *folders[1:], "--out", tmp_path / "out", code=1)
    assert "is not complete" in refused.stderr
    assert not (tmp_path / "out").exists()
    run("merge", *folders, "--out", tmp_path / "out")
    assert content(tmp_path / "out") == content(alone)
    together = tmp_path / "together"
    for number in range(count, 0, -1):
        label(parquet, together, "--rows-per-shard", 2, "--batch-size", 2, "--shard", f"{number}/{count}")
    assert content(together) == content(alone)


def command(source: Path, out: Path, *more: object) -> list[str]:
    given = ("segment", "--dataset", source, "--out", out, *ASKED, "--rows-per-shard", 2, "--batch-size", 2, *more)
    return [str(argument) for argument in given]


def test_two_processes_on_one_shard(parquet, alone, tmp_path):
    processes = [fork_server().start(EXECUTABLE, *command(parquet, tmp_path / "out")) for _ in range(2)]
    written = []
    for process in processes:
        stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        written += [line.split(":")[0] for line in stdout.splitlines()]
    assert content(tmp_path / "out") == content(alone)
    assert len(written) == len(set(written)) == 6, "no part was made twice"


def test_processes_of_one_launch(parquet, alone, tmp_path):
    for process in run_distributed(EXECUTABLE, *command(parquet, tmp_path / "out"), processes=2):
        assert process.returncode == 0, process.stderr
    assert content(tmp_path / "out") == content(alone)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Without fork every run would import torch again.")
def test_kills_at_random_moments_change_no_byte(tmp_path):
    rows = rows_of(48)
    (tmp_path / "in").mkdir()
    rows.to_parquet(tmp_path / "in" / "train.parquet")
    arguments = command(tmp_path / "in", tmp_path / "out")
    script = ROOT / "tests" / "support" / "kill_at_random.py"
    killed = subprocess.run(
        [sys.executable, script, str(KILLS), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert killed.returncode == 0, killed.stderr[-3000:]
    moments = [json.loads(line)["files"] for line in killed.stdout.splitlines() if line.startswith('{"files"')]
    assert len(moments) == KILLS
    assert len(set(moments)) > 1, "the kills met runs that were at different places"
    run(*command(tmp_path / "in", tmp_path / "alone"))
    assert content(tmp_path / "out") == content(tmp_path / "alone")


@pytest.fixture
def hub(monkeypatch):
    allow_only_this_machine(monkeypatch)
    with HubServer() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
        template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", server.endpoint)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def test_parts_go_to_the_hub_as_they_are_done(hub, parquet, alone, tmp_path, monkeypatch):
    out = "hf://datasets/anna/cups"
    limits = ("--rows-per-shard", 2, "--batch-size", 2, "--private")
    refused = []

    def refuse_the_third_part(method, path):
        commits = len(hub.commits())
        if "/commit/" in path and commits == 4 and not refused:
            refused.append(path)
            return 403
        return None

    hub.refuse = refuse_the_third_part
    broken = label(parquet, out, *limits, code=1)
    assert "Log in with" in " ".join(broken.stderr.split())
    repo = hub.repos["datasets/anna/cups"]
    assert repo.private
    assert len([name for name in repo.tree() if name.endswith(".parquet")]) == 2
    result = label(parquet, out, *limits)
    assert "4 rows are done already" in result.stderr
    (tmp_path / "clone").mkdir()
    hub.download("datasets/anna/cups", tmp_path / "clone")
    (tmp_path / "clone" / ".gitattributes").unlink()
    assert content(tmp_path / "clone") == content(alone)
    commits = len(hub.commits())
    label(parquet, out, *limits)
    assert len(hub.commits()) == commits, "nothing is uploaded again"
    repo.private = False
    assert "exists and is public" in label(parquet, out, *limits, code=1).stderr


def test_rows_are_scored_as_the_folder_that_is_imported_of_them(hub, alone, tmp_path):
    from tests.support.hub_server import Repo

    run("export", alone, "-f", "datasets", "-o", tmp_path)
    run("import", tmp_path / "datasets", "--out", tmp_path / "own")
    repo = hub.repos["datasets/anna/scored"] = Repo(False)
    repo.commit("main", content(tmp_path / "datasets"), "Upload")
    scored, sheets = [], []
    for dataset, *more in ((tmp_path / "own",), (tmp_path / "datasets", "--set", "format=datasets"), ("anna/scored",)):
        out = tmp_path / "scores"
        run("evaluate", "--dataset", dataset, "--out", out, "--model", "embedded", "--limit", 3, *more)
        scored.append({**json.loads((out / "results.json").read_text(encoding="utf-8")), "dataset": None})
        sheets.append((out / "cases.png").read_bytes())
    assert scored[0]["overall"]["masks"] == 3
    assert scored == scored[:1] * 3
    assert sheets == sheets[:1] * 3
    read = image_folder_questions("anna/scored", settings={"columns": {"image": "image"}})
    assert [one.masks for one in read] == [one.masks for one in image_folder_questions(tmp_path / "own")]
    with pytest.raises(DataFileError, match="inside other files; `reasonseg import` makes files"):
        read_labelled_requests(tmp_path / "datasets", format="datasets")


def test_a_data_set_of_the_hub_is_streamed(hub, parquet, alone, tmp_path):
    from tests.support.hub_server import Repo

    repo = hub.repos["datasets/anna/source"] = Repo(False)
    files = content(parquet)
    first = repo.commit("main", {**repo.tree(), **files}, "Upload")
    label("anna/source", tmp_path / "out", "--split", "train", "--rows-per-shard", 2, "--batch-size", 2)
    found = datasets.load_dataset(str(tmp_path / "out"), split="train")
    expected = datasets.load_dataset(str(alone), split="train")
    assert_same_objects(found, expected)
    request = FolderShards(tmp_path / "out", "train").request()
    assert (request["dataset"], request["dataset_version"]) == ("anna/source", first)
    # What changes there later does not matter for a run that goes on.
    repo.commit("main", {}, "Remove everything")
    (tmp_path / "out/.reasonseg/train/00001-of-00003-00000.json").unlink()
    label("anna/source", tmp_path / "out", "--split", "train", "--rows-per-shard", 2, "--batch-size", 2)
    assert len(FolderShards(tmp_path / "out", "train").done()) == 6
    (tmp_path / "out/.reasonseg/train/00002-of-00003-00000.json").unlink()
    label("anna/source", tmp_path / "out", "--rows-per-shard", 2, "--batch-size", 2)
    assert len(FolderShards(tmp_path / "out", "train").done()) == 6, "nor where the split is not said"
    # images as files, which rows name by their addresses there
    white = io.BytesIO()
    Image.new("L", (60, 40), 255).save(white, "PNG")
    lines = b'{"file_name": "a.png", "mask_file_name": "mask.png", "label": "cup"}\n'
    photos = hub.repos["datasets/anna/photos"] = Repo(False)
    photos.commit("main", {"a.png": png(0), "mask.png": white.getvalue(), "metadata.jsonl": lines}, "Upload")
    label("anna/photos", tmp_path / "photos", "--image-column", "image")
    (row,) = datasets.load_dataset(str(tmp_path / "photos"), split="train")
    np.testing.assert_array_equal(row["image"], image(0))
    (photo,) = FORMATS["datasets"].read("anna/photos")
    assert [(found.label, found.area) for found in photo.objects] == [("cup", 60 * 40)]
    gone = label("anna/nothing", tmp_path / "none", code=1)
    assert "the Hub has no such data set" in " ".join(gone.stderr.split())
