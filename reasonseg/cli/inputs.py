"""Turn what stands on the command line into pictures and a question."""

import glob
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from .failures import CommandError


IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def split_text(arguments: Sequence[str], text: str | None, phrases: Sequence[str]) -> tuple[list[str], str | None]:
    """Split the positional arguments into images and the question.

    The last argument is the question when neither `--text` nor `--phrase` is given and it names nothing on disk.

    Args:
        arguments: everything positional, in order.
        text: value of `--text`.
        phrases: values of `--phrase`.

    Returns:
        The image arguments and the question; `None` where phrases take its place.

    Raises:
        CommandError: no question at all, more than one kind of it, or no image.
    """
    images = list(arguments)
    if text is not None and phrases:
        raise CommandError("Both --text and --phrase were given. Ask one question, or name phrases to segment.")
    if text is None and not phrases:
        if not images or names_something(images[-1]):
            raise CommandError(
                "There is no question. Put it after the images in quotes, or use --text QUESTION, "
                "or name what to segment with --phrase (once per phrase)."
            )
        text = images.pop()
    if text is not None and not text.strip():
        raise CommandError("The question is empty.")
    if any(not phrase.strip() for phrase in phrases):
        raise CommandError("A --phrase is empty.")
    if not images:
        raise CommandError("There is no image. Name files, folders or patterns such as 'photos/*.jpg'.")
    return images, text


def names_something(argument: str) -> bool:
    """Return whether `argument` is an existing file or folder, or a pattern that matches one."""
    try:
        return Path(argument).exists() or (glob.has_magic(argument) and any(glob.iglob(argument, recursive=True)))
    except OSError:  # a long question is no valid file name
        return False


def find_images(arguments: Iterable[str], leave_out: Path | None = None) -> list[Path]:
    """Expand files, folders and patterns to image files.

    Folders are searched at every depth for known image suffixes, in sorted order. A file named directly is taken
    whatever its suffix, so that a wrong one is reported instead of passed over. Each file is taken once.

    Args:
        arguments: files, folders, patterns (`*`, `?`, `**`).
        leave_out: a folder whose files are not inputs (the output folder, when it lies in an input folder).

    Raises:
        CommandError: an argument names nothing, or no image was found.
    """
    return list(find_named_images(arguments, leave_out))


def find_named_images(arguments: Iterable[str], leave_out: Path | None = None) -> dict[Path, Path]:
    """Find images as `find_images` does, each with its place below the folder that was named.

    Args:
        arguments, leave_out: as in `find_images`.

    Returns:
        Each image and its path relative to the folder, to the part of the pattern before the first wildcard, or to
        its own folder where the file itself was named.

    Raises:
        CommandError: an argument names nothing, or no image was found.
    """
    leave_out = leave_out.resolve() if leave_out else None
    found: dict[Path, tuple[Path, Path]] = {}
    for argument in arguments:
        root = _root(argument)
        for path in _expand(argument):
            resolved = path.resolve()
            if leave_out is None or leave_out not in resolved.parents:
                found.setdefault(resolved, (path, path.relative_to(root)))
    if not found:
        raise CommandError(
            f"No image was found in {', '.join(map(repr, arguments))}. "
            f"Folders are searched for files that end in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return dict(found.values())


def _root(argument: str) -> Path:
    path = Path(argument)
    if path.is_dir():
        return path
    if path.exists() or not glob.has_magic(argument):
        return path.parent
    plain = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
    return Path(*plain)


def _expand(argument: str) -> list[Path]:
    path = Path(argument)
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES)
    if path.exists():
        return [path]
    matches = sorted(glob.glob(argument, recursive=True)) if glob.has_magic(argument) else []
    if not matches:
        hint = " A question goes last, in quotes, or after --text." if " " in argument else ""
        raise CommandError(f"{argument!r} is no existing file or folder and no pattern that matches one.{hint}")
    return [file for match in matches for file in _expand(match) if file.suffix.lower() in IMAGE_SUFFIXES]
