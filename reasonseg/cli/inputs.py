"""Turn the arguments of the command line into images and a question."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from .failures import CommandError, path_text
from .image_search import IMAGE_SUFFIXES, FoundImages, ImageSearch, Pattern


def split_text(arguments: Sequence[str], text: str | None, phrases: Sequence[str]) -> tuple[list[str], str | None]:
    """Split the positional arguments into images and the question.

    The last argument is the question when neither `--text` nor `--phrase` is given and it names nothing on disk.

    Args:
        arguments: everything positional, in order.
        text: value of `--text`.
        phrases: values of `--phrase`.

    Returns:
        The image arguments and the question; `None` where phrases replace it.

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
    if text is not None:
        check_question(text)
    if any(not phrase.strip() for phrase in phrases):
        raise CommandError("A --phrase is empty. Say what to segment.")
    if not images:
        raise CommandError("There is no image. Name files, folders or patterns such as 'photos/*.jpg'.")
    return images, text


def check_question(text: str) -> None:
    """
    Raises:
        CommandError: the question is empty or blank.
    """
    if not text.strip():
        raise CommandError("The question is empty. Ask something.")


def names_something(argument: str) -> bool:
    """Return whether `argument` is an existing file or folder, or a pattern that matches one."""
    if not argument.strip():
        return False
    return os.path.lexists(argument) or next(Pattern(argument).matches(), None) is not None


def find_images(arguments: Iterable[str], leave_out: Path | None = None) -> FoundImages:
    """Expand files, folders and patterns to image files.

    Folders are searched at every depth for known image suffixes, in sorted order, also through links to folders.
    Hidden files, `__MACOSX` and what earlier runs have written are left out and counted. A file named directly is
    taken whatever its suffix, so that a wrong one is reported, not skipped. Each file is taken once.

    Args:
        arguments: files, folders, patterns (`*`, `?`, `**`).
        leave_out: the output folder of this run; inside a named folder it is not searched.

    Raises:
        CommandError: an argument names nothing, or no image was found.
    """
    arguments, search = list(arguments), ImageSearch(leave_out)
    for argument in arguments:
        search.add(argument)
    found = search.found
    if not found and not found.problems:
        raise CommandError(
            f"No image was found in {', '.join(repr(path_text(argument)) for argument in arguments)}. Folders are "
            f"searched for files that end in {', '.join(sorted(IMAGE_SUFFIXES))}. {found.what_was_left_out()}"
        )
    return found


__all__ = ["check_question", "find_images", "names_something", "split_text"]
