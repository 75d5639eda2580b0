"""Turn the arguments of the command line into images and a question."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
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


@dataclass(frozen=True)
class DataSetOptions:
    """
    Which rows of a data set are labelled, and what is asked about each.

    Args:
        dataset: a folder or a name on the Hub; `None` where images are named instead.
        split, config: which part of it; may be left out where there is only one.
        image_column: of the images; may be left out where only one column holds images.
        text_column: of a question for each row, in place of one for all.
        phrases_column: of a phrase, or a list of them, for each row.
        drop_columns: what is not copied to the output.
        rows_per_shard: most rows of a part, which is what a kill can lose.
    """

    dataset: str | None
    split: str | None = None
    config: str | None = None
    image_column: str | None = None
    text_column: str | None = None
    phrases_column: str | None = None
    drop_columns: tuple[str, ...] = ()
    rows_per_shard: int = 1000

    def question(self, arguments: Sequence[str], text: str | None, phrases: Sequence[str]) -> str | None:
        """Return the question of all rows, which is the last argument or `text`; `None` where something else says
        what to look for.

        Raises:
            CommandError: not exactly one thing says it, or there are images besides.
        """
        if len(arguments) > 1 or (arguments and text is not None):
            raise CommandError(
                f"{arguments[0]!r} is too much: with --dataset the rows hold the images. Leave it out, or --dataset."
            )
        text = arguments[0] if arguments else text
        given = {
            "a question": text is not None,
            "--phrase": bool(phrases),
            "--text-column": self.text_column is not None,
            "--phrases-column": self.phrases_column is not None,
        }
        chosen = [name for name, is_given in given.items() if is_given]
        if len(chosen) != 1:
            which = "none was given" if not chosen else f"{' and '.join(chosen)} were given"
            raise CommandError(f"Exactly one of {', '.join(given)} says what to look for; {which}.")
        if text is not None:
            check_question(text)
        if any(not phrase.strip() for phrase in phrases):
            raise CommandError("A --phrase is empty. Say what to segment.")
        return text

    def check_unused(self) -> None:
        """
        Raises:
            CommandError: an option was given that is for data sets alone.
        """
        for field in fields(self):
            if getattr(self, field.name) != field.default and field.name != "dataset":
                name = field.name.removesuffix("s").replace("_", "-")
                raise CommandError(f"--{name} is for --dataset. Name a data set, or leave it out.")


__all__ = ["DataSetOptions", "check_question", "find_images", "names_something", "split_text"]
