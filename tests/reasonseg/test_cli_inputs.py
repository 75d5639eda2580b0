import pytest

from reasonseg.cli.failures import CommandError
from reasonseg.cli.inputs import find_images, split_text


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder `photos` with three pictures, one of them deeper, and a text file; the working directory above it."""
    for name in ("b.png", "a.JPG", "deep/c.webp", "notes.txt"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("arguments", "text", "phrases", "expected"),
    [
        (["photos", "where is it?"], None, [], (["photos"], "where is it?")),
        (["photos/b.png", "photos/a.JPG", "x"], None, [], (["photos/b.png", "photos/a.JPG"], "x")),
        (["photos/*.png", "x"], None, [], (["photos/*.png"], "x")),
        (["photos"], "x", [], (["photos"], "x")),
        (["photos"], None, ["a dog"], (["photos"], None)),
        (["photos", "a question " * 1000], None, [], (["photos"], "a question " * 1000)),
        (["photos", "is this [SEG]?"], None, [], (["photos"], "is this [SEG]?")),
    ],
)
def test_the_last_argument_is_the_question_unless_it_is_on_disk(photos, arguments, text, phrases, expected):
    assert split_text(arguments, text, phrases) == expected


@pytest.mark.parametrize(
    ("arguments", "text", "phrases", "message"),
    [
        (["photos"], None, [], "There is no question"),
        (["photos", "photos/b.png"], None, [], "There is no question"),
        (["photos/*.png"], None, [], "There is no question"),
        ([], None, [], "There is no question"),
        (["only a question"], None, [], "There is no image"),
        (["photos"], "x", ["y"], "Both --text and --phrase"),
        (["photos"], " ", [], "question is empty"),
        (["photos"], None, ["a", ""], "--phrase is empty"),
    ],
)
def test_what_is_missing_or_too_much_is_said(photos, arguments, text, phrases, message):
    with pytest.raises(CommandError, match=message):
        split_text(arguments, text, phrases)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["photos"], ["a.JPG", "b.png", "deep/c.webp"]),
        (["photos/b.png", "photos"], ["b.png", "a.JPG", "deep/c.webp"]),  # each once, in the order named
        (["photos/*"], ["a.JPG", "b.png", "deep/c.webp"]),  # the pattern matches a folder too, and no text file
        (["photos/**/*.webp"], ["deep/c.webp"]),
        (["photos/notes.txt"], ["notes.txt"]),  # named directly: taken, so that opening it reports what it is
    ],
)
def test_files_folders_and_patterns(photos, arguments, expected):
    found = [path.resolve().relative_to(photos.resolve()).as_posix() for path in find_images(arguments)]
    assert found == expected


def test_results_in_an_input_folder_are_no_input(photos):
    (photos / "deep" / "c_overlay.png").write_bytes(b"")
    assert [path.name for path in find_images(["photos"], leave_out=photos / "deep")] == ["a.JPG", "b.png"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("photos/missing.png", "is no existing file or folder"),
        ("photos/*.gif", "no pattern that matches"),
        ("where is it?", "A question goes last"),
    ],
)
def test_an_argument_that_names_nothing(photos, argument, message):
    with pytest.raises(CommandError, match=message):
        find_images([argument, "photos"])


def test_a_folder_without_pictures(tmp_path):
    with pytest.raises(CommandError, match=r"No image was found in .*\.png"):
        find_images([str(tmp_path)])
