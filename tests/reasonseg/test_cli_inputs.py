import itertools
import os

import pytest

from reasonseg.cli.failures import CommandError
from reasonseg.cli.inputs import find_images, split_text


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder `photos` with three images, one of them deeper, and a text file; the working directory above it."""
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
        ("photos/missing.png", "is not an existing file or folder"),
        ("photos/*.gif", "nor a pattern that matches"),
        ("where is it?", "A question goes last"),
    ],
)
def test_an_argument_that_names_nothing(photos, argument, message):
    with pytest.raises(CommandError, match=message):
        find_images([argument, "photos"])


def test_a_folder_without_images(tmp_path):
    with pytest.raises(CommandError, match=r"No image was found in .*\.png"):
        find_images([str(tmp_path)])


def test_links_to_folders_are_followed_once(photos, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.png").touch()
    for name in ("x", "y"):
        (photos / name).symlink_to(tmp_path / "elsewhere")
    found = find_images(["photos"])
    assert [path.name for path in found] == ["a.JPG", "b.png", "c.webp", "d.png"]
    assert found.relative_paths[photos.relative_to(tmp_path) / "x" / "d.png"].as_posix() == "x/d.png"
    assert not found.problems


@pytest.mark.timeout(20)
@pytest.mark.parametrize("argument", ["photos", "photos/**/*", "photos/**"])
def test_many_links_to_each_other_end(photos, argument):
    """Thirty folders with two links each to the next and two to the first: 2^30 ways through them."""
    folders = [photos / f"f{number:02}" for number in range(30)]
    for folder in folders:
        folder.mkdir()
        (folder / "d.png").touch()
    for folder, following in itertools.pairwise(folders):
        for name in ("m", "n"):
            (folder / name).symlink_to(following)
    (folders[-1] / "z").symlink_to(photos)
    found = find_images([argument])
    assert len({path.resolve() for path in found}) == len(found) == 33


@pytest.mark.parametrize("argument", ["photos", "photos/*", "photos/*.png", "photos/**/*.png"])
def test_links_that_lead_nowhere_are_named(photos, argument):
    (photos / "broken.png").symlink_to("gone.png")
    (photos / "loop.png").symlink_to("loop.png")
    (photos / "text").symlink_to("gone.txt")
    found = find_images([argument])
    problems = {path.name: reason for path, reason in found.problems.items()}
    assert problems.pop("broken.png") == "a link to 'gone.png', which does not exist"
    assert problems.pop("loop.png") == "a link that leads back to itself"
    assert set(problems) <= {"text"}
    assert "b.png" in {path.name for path in found}


def test_a_link_that_leads_nowhere_is_no_question(photos):
    (photos / "broken.png").symlink_to("gone.png")
    with pytest.raises(CommandError, match="There is no question"):
        split_text(["photos/b.png", "photos/broken.png"], None, [])
    assert list(find_images(["photos/broken.png", "photos/b.png"]).problems) == [
        photos.relative_to(photos.parent) / "broken.png"
    ]


def test_an_empty_question(photos):
    for arguments, text in ((["photos", ""], None), (["photos", " "], None), (["photos"], "\n")):
        with pytest.raises(CommandError, match=r"The question is empty\. Ask something"):
            split_text(arguments, text, [])


@pytest.mark.parametrize(
    ("argument", "left_out"),
    [
        ("photos", {"hidden": 3, "in __MACOSX": 2}),
        ("photos/*", {"in __MACOSX": 2}),  # as in a shell, hidden files are none of those that * stands for
        ("photos/**/*.png", {"in __MACOSX": 1}),
        ("photos/.cache", {}),
        ("photos/.*.png", {}),
        ("photos/__MACOSX", {"hidden": 1}),
    ],
)
def test_what_nobody_means_is_counted(photos, argument, left_out):
    for name in ("._a.png", ".cache/x.png", ".cache/deep/y.jpg", "__MACOSX/b.png", "__MACOSX/._b.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).touch()
    (photos / ".cache" / "notes.txt").touch()
    found = find_images([argument])
    assert dict(found.left_out) == left_out
    assert len(found) > 0


def test_nothing_but_what_nobody_means(tmp_path):
    (tmp_path / ".a.png").touch()
    with pytest.raises(CommandError, match=r"No image was found in .* Left out: 1 hidden\."):
        find_images([str(tmp_path)])


def test_a_results_file_of_somebody_else_changes_nothing(photos):
    (photos / "results.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    (photos / "b_overlay.png").touch()
    assert len(find_images(["photos"])) == 4
    (photos / "results.jsonl").unlink()
    os.mkfifo(photos / "results.jsonl")
    assert len(find_images(["photos"])) == 4
