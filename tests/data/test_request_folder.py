"""Data of one's own: masks of every kind are read alike, and whatever is wrong is named with file and line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from reasonseg.cli.app import app
from reasonseg.data.data_files import DataFileError
from reasonseg.data.request_folder import ImageFolderExamples, first_rejection, read_request_folder
from reasonseg.evaluation.reasoning_segmentation import image_folder_questions
from reasonseg.processing.image_loading import load_rgb_image
from reasonseg.processing.mask_reading import read_mask
from reasonseg.processing.segments import mask_to_rle
from tests.support.installed import forked


SIZE = (20, 30)
MASK = np.zeros(SIZE, dtype=bool)
MASK[4:12, 6:20] = True
POLYGON = [6, 4, 20, 4, 20, 12, 6, 12]
COUNTS = [84, 8, 12, 8, 12, 8, 12, 8, 12, 8, 12, 8, 12, 8, 12, 8, 12, 8, 12, 8, 12, 8, 12, 8, 12, 8, 12, 8]
COUNTS = [6 * 20 + 4, *([8, 12] * 14)[:-1], 600 - (6 * 20 + 4) - 14 * 8 - 13 * 12]
GOOD = {"question": "Where is the cup?", "answer": "It is [SEG].", "phrases": [{"segmentation": mask_to_rle(MASK)}]}


def write(folder: Path, *rows) -> Path:
    """A folder with an image `a.png` and these lines; what is not text is written as JSON."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(folder / "a.png")
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def line(*requests, **fields) -> dict:
    return {"file_name": "a.png", "requests": list(requests) or [GOOD], **fields}


def asked(segmentation, answer="It is [SEG].") -> dict:
    return {"question": "Where is the cup?", "answer": answer, "phrases": [{"segmentation": segmentation}]}


def masks_of(folder: Path) -> list[np.ndarray]:
    return [mask for example in ImageFolderExamples(folder) for masks in example.masks for mask in masks]


def test_masks_of_every_kind(tmp_path):
    folder = write(
        tmp_path,
        line(asked(mask_to_rle(MASK)), asked({"size": [20, 30], "counts": COUNTS})),
        line(asked([POLYGON]), asked(POLYGON), asked("masks/cup.png"), asked("one.png")),
        line({"question": "Hello", "answer": "Hello!"}),
        line(asked(None, "There is none: [REJ]."), width=30, height=20),
    )
    (folder / "masks").mkdir()
    Image.fromarray(MASK.astype(np.uint8) * 255).save(folder / "masks" / "cup.png")
    Image.fromarray(MASK.astype(np.uint8)).save(folder / "one.png")
    masks = masks_of(folder)
    assert masks[-1] is None
    assert len(masks) == 7
    for mask in masks[:-1]:
        np.testing.assert_array_equal(mask, MASK)
    images = read_request_folder(folder)
    assert [image.line for image in images] == [1, 2, 3, 4]
    assert first_rejection(images).line == 4
    assert first_rejection(images[:3]) is None


def test_training_and_evaluation_read_the_same(tmp_path):
    folder = write(
        tmp_path,
        line(
            {
                "question": "Where are the cup\u2028and the dog?",
                "answer": "cup [SEG], dog [REJ]",
                "phrases": [
                    {"text": "the cup", "type": "things", "segmentation": [POLYGON]},
                    {"text": "the dog", "segmentation": None},
                ],
            }
        ),
    )
    (example,), (question,) = ImageFolderExamples(folder), image_folder_questions(folder)
    assert example.questions == [question.text] == ["Where are the cup\u2028and the dog?"]
    assert example.answers == [question.answer]
    assert example.image == question.image == str(folder / "a.png")
    assert (question.phrases, question.types) == (["the cup", "the dog"], ["things", None])
    np.testing.assert_array_equal(read_mask(question.masks[0]), example.masks[0][0])
    assert question.masks[1] is example.masks[0][1] is None


def test_a_byte_order_mark_and_windows_line_ends(tmp_path):
    folder = write(tmp_path, line())
    content = (folder / "metadata.jsonl").read_bytes()
    (folder / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n") * 2)
    assert len(read_request_folder(folder)) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"file_name": "a.png"', "Expecting ',' delimiter, column 22. Give one JSON value"),
        ("[1, 2]", r"the line is \[1, 2\]; it must be an object with `file_name` and `requests`"),
        ({"image": "a.png"}, "the line has no `file_name` and no `requests`; it has image"),
        ({"file_name": "a.png", "question": "?"}, "the line has no `requests`; it has file_name, question"),
        (line(file_name="../a.png"), r"'\.\./a\.png' leads out of the folder"),
        (line(file_name=7), "7 is not a file name"),
        (line(file_name="b.png"), "b.png' is not an existing local image file"),
        (line(file_name="metadata.jsonl"), "cannot be opened as an image"),
        (line(requests={}), r"`requests` is \{\}; it must be a list"),
        (line(requests=[]), "`requests` is empty"),
        (line(requests=["Where?"]), "a request is 'Where\\?'; it must be an object with `question` and `answer`"),
        (line({"question": "?"}), "a request has no `answer`; it has question"),
        (line(GOOD, {"answer": "?"}), "request 2: a request has no `question`"),
        (line({**GOOD, "question": ["?"]}), r"`question` is \['\?'\]; it must be a text"),
        (line({**GOOD, "answer": " "}), "`answer` is ' '; it must be a text"),
        (line({**GOOD, "question": "Where is [SEG]?"}), r"the question .* holds \[SEG\] or \[REJ\]"),
        (line({**GOOD, "phrases": None}), "`phrases` is None; it must be a list"),
        (line({**GOOD, "phrases": []}), "has 1 slots but there are 0 phrases"),
        (line({**GOOD, "answer": "It is there."}), "has 0 slots but there are 1 phrases"),
        (line({**GOOD, "phrases": [mask_to_rle(MASK)]}), "phrase 1 has no `segmentation`; it has size, counts"),
        (line({**GOOD, "phrases": ["the cup"]}), "phrase 1 is 'the cup'; it must be an object"),
        (line(asked(None)), r"phrase 1 has the slot \[SEG\] and no segmentation"),
        (line(asked(mask_to_rle(MASK), "[REJ]")), r"phrase 1 has the slot \[REJ\] and a segmentation"),
        (line({**GOOD, "phrases": [{"segmentation": [POLYGON], "type": 3}]}), "the `type` 3; both must be texts"),
        (line(asked(True)), "the mask of phrase 1 is True; allowed are COCO's run lengths, polygons, or the name"),
        (line(asked({"counts": "abc"})), "the mask of phrase 1 must be a dict with size and counts"),
        (line(asked({"size": [20, 30], "counts": [599]})), "counts that sum up to 599; .* needs 600"),
        (line(asked({"size": [20, 30], "counts": "??"})), "counts '\\?\\?'|sum up to"),
        (line(asked(mask_to_rle(MASK.T))), "20 x 30 pixels, the image 30 x 20.*sides are swapped"),
        (line(asked(mask_to_rle(MASK[:1]))), "30 x 1 pixels, the image 30 x 20"),
        (line(asked([])), "an empty list of polygons"),
        (line(asked([[1, 1, 5, 5]])), "a polygon of 2 corners"),
        (line(asked([[1, 1, 900, 1, 900, 900]])), r"from \(1, 1\) to \(900, 900\), and the image is 30 x 20"),
        (line(asked("b.png")), "the mask of phrase 1: '.*b.png' is not an existing local image file"),
        (line(asked("/etc/passwd")), "leads out of the folder"),
        (line(asked("a.png/../a.png")), "leads out of the folder"),
        (line(asked("grey.png")), "grey.png' has 2 different values"),
        (line(width=31, height=20), "the line says 31 x 20 pixels .* the image has 30 x 20"),
        (line(mask_frame="sideways"), "`mask_frame` is 'sideways'; it is 'upright' or 'stored'"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(tmp_path, row, message):
    folder = write(tmp_path, line(), "", row)
    Image.fromarray(MASK.astype(np.uint8) * 100).save(folder / "grey.png")
    for reader in (read_request_folder, ImageFolderExamples, image_folder_questions):
        with pytest.raises(DataFileError, match=rf"metadata\.jsonl, line 3: .*{message}"):
            reader(folder)


def test_all_lines_are_checked(tmp_path):
    rows = [line(), "{", line(requests=[]), line(), line(file_name="b.png")]
    with pytest.raises(DataFileError) as refused:
        read_request_folder(write(tmp_path, *rows))
    assert [part.split(": ")[0].rpartition(", ")[2] for part in str(refused.value).split("\n")] == [
        "line 2",
        "line 3",
        "line 5",
    ]
    with pytest.raises(DataFileError, match="In all 40 lines cannot be used") as refused:
        read_request_folder(write(tmp_path, *["{"] * 40))
    assert str(refused.value).count("metadata.jsonl, line ") == 5


def test_nothing_to_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no metadata\.jsonl; name the folder of one split"):
        read_request_folder(tmp_path)
    for rows in ((), ("", "  ")):
        with pytest.raises(DataFileError, match=r"metadata\.jsonl has no lines; give one per image"):
            read_request_folder(write(tmp_path, *rows))


def test_the_size_of_images_is_limited(tmp_path):
    folder = write(tmp_path, line())
    with pytest.raises(DataFileError, match=r"line 1: '.*a\.png' is 30 x 20 = 600 pixels, more than the 599 allowed"):
        read_request_folder(folder, max_image_pixels=599)


def turned(folder: Path, orientation: int, size=SIZE) -> np.ndarray:
    """An image with a white part, of an EXIF orientation; returns the part in the upright frame."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.zeros(size, dtype=np.uint8)
    stored[2:9, 3:5] = 255
    Image.fromarray(stored).save(folder / "a.png", exif=exif)
    return np.asarray(load_rgb_image(folder / "a.png"))[..., 0] == 255


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("size", [SIZE, (20, 20)])
def test_masks_of_turned_images(tmp_path, orientation, size):
    """The upright frame, or that of the stored pixels where a line says so; what is open is refused."""
    write(tmp_path)
    upright = turned(tmp_path, orientation, size)
    stored = np.asarray(Image.open(tmp_path / "a.png")) == 255
    box = [3, 2, 5, 2, 5, 9, 3, 9]
    Image.fromarray(stored).save(tmp_path / "mask.png")
    for row in (
        line(asked(mask_to_rle(upright)), mask_frame="upright"),
        line(asked(mask_to_rle(stored)), mask_frame="stored"),
        line(asked("mask.png"), mask_frame="stored"),
        line(asked([box]), mask_frame="stored"),
    ):
        (tmp_path / "metadata.jsonl").write_text(json.dumps(row), encoding="utf-8")
        (mask,) = masks_of(tmp_path)
        np.testing.assert_array_equal(mask, upright)
    told_by_sides = size == SIZE and orientation >= 5
    for mask, says in ((upright, None), (stored, "sides are swapped")):
        (tmp_path / "metadata.jsonl").write_text(json.dumps(line(asked(mask_to_rle(mask)))), encoding="utf-8")
        if told_by_sides and says is None:
            np.testing.assert_array_equal(masks_of(tmp_path)[0], upright)
        else:
            with pytest.raises(DataFileError, match=says if told_by_sides else f"EXIF orientation {orientation}"):
                read_request_folder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line(asked([box]))), encoding="utf-8")
    with pytest.raises(DataFileError, match=f"EXIF orientation {orientation}. Say which"):
        read_request_folder(tmp_path)


def test_the_mask_that_is_trained_on_is_pycocotools_own(tmp_path):
    polygons = [[1, 1, 9, 2, 6, 11], [15.5, 3.25, 28, 4, 29, 18, 14, 16]]
    (mask,) = masks_of(write(tmp_path, line(asked(polygons))))
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *SIZE)))
    np.testing.assert_array_equal(mask, expected)


def test_the_format_in_the_readme_is_read(tmp_path):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```json\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "metadata.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "masks").mkdir()
    for name in ("kitchen.jpg", "desk.jpg"):
        Image.new("RGB", (64, 48)).save(tmp_path / name)
    Image.new("L", (64, 48), 255).save(tmp_path / "masks" / "cup.png")
    kitchen, desk = ImageFolderExamples(tmp_path)
    assert kitchen.answers == ["Into the cup: [SEG].", "No: [REJ]."]
    assert kitchen.masks[0][0].all()
    assert kitchen.masks[1] == [None]
    assert [mask.sum() for mask in desk.masks[0]] == [30 * 8, 20]


@pytest.fixture
def unloadable(tmp_path):
    """A folder that passes for a model until somebody loads it."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "lisa"}', encoding="utf-8")
    return tmp_path / "model"


@pytest.mark.parametrize("command_name", [pytest.param("train", marks=pytest.mark.slow), "evaluate"])
def test_both_commands_refuse_bad_data_before_a_model_is_loaded(tmp_path, unloadable, command_name):
    folder = write(tmp_path / "data", line(), {"file_name": "a.png"})
    arguments = {
        "train": ("lisa", "--set", f"model={unloadable}", "--set", f"data.path={folder}"),
        "evaluate": ("--model", unloadable, "--dataset", folder),
    }[command_name]
    run = forked(command_name, *arguments, "--out", tmp_path / "out", code=1, ACCELERATE_USE_CPU="true")
    said = " ".join(run.stderr.split())
    assert f"{folder}/metadata.jsonl, line 2: the line has no `requests`; it has file_name" in said
    assert str(unloadable) not in said


def test_an_empty_data_set_is_an_error_in_both(tmp_path, unloadable):
    folder, runner = write(tmp_path / "data"), CliRunner()
    for arguments in (
        ["train", "lisa", "--set", f"model={unloadable}", "--set", f"data.path={folder}"],
        ["evaluate", "--model", str(unloadable), "--dataset", str(folder)],
    ):
        result = runner.invoke(app, [*arguments, "--out", str(tmp_path / "out")])
        assert result.exit_code == 1
        assert "metadata.jsonl has no lines; give one per image" in " ".join(result.stderr.split())
