"""Files of data sets: JSON, JSON lines, and the names of other files in them."""

import gc
import json
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit


LINE_ADVICE = "Give one JSON value per line, in UTF-8."
_BOM = b"\xef\xbb\xbf"


class DataFileError(ValueError):
    """A file of a data set that cannot be used. The message names the file and the position in it, what was found and
    what is allowed."""


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Read a large file in this block: Python would look through all that was read so far again and again, which takes
    as long as reading, and finds nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_json(path: str | Path, error_class: type[ValueError] = DataFileError) -> Any:
    """Read a JSON file in UTF-8, with or without a byte order mark.

    Args:
        path (`str` or `Path`): The file.
        error_class (`type[ValueError]`): Kind of error to raise.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: Of `error_class`, with the line and the column, if it is not JSON.
    """
    content = Path(path).read_bytes()
    try:
        with without_garbage_collection():
            return _parse(content)
    except ValueError as error:
        raise error_class(f"{path} is not a JSON file: {error}.") from None


def read_json_lines(
    path: str | Path, error_class: type[ValueError] = DataFileError, problems: dict[int, str] | None = None
) -> Iterator[tuple[int, Any]]:
    """Read a file with one JSON value per line, in UTF-8, with or without a byte order mark.

    Lines end with a line feed alone. Other separators, such as U+2028, may stand in a text and belong to it.

    Args:
        path (`str` or `Path`): The file.
        error_class (`type[ValueError]`): Kind of error to raise.
        problems (`dict[int, str]`, *optional*): Takes why a line is not JSON by its number, in place of an error, so
            that all lines can be checked.

    Yields:
        `tuple[int, Any]`: Number of the line, from 1 on, and its value. Empty lines are left out.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: Of `error_class`, with the line and the column, if a line is not JSON.
    """
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            line = line.removeprefix(_BOM) if number == 1 else line
            if not line.strip():
                continue
            try:
                value = _parse(line.rstrip(b"\r\n"))  # so that the column of an error lies in the line
            except ValueError as error:
                if problems is None:
                    raise error_class(f"{path}, line {number}: {error}. {LINE_ADVICE}") from None
                problems[number] = str(error)
            else:
                yield number, value


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        DataFileError: It is in another encoding.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataFileError(f"{path} is not in UTF-8: byte {error.start + 1} is none of it.") from None


def file_in(folder: Path, name: Any) -> Path:
    """The file that a data file names, below `folder`; where it has a letter with an accent, also one whose name is
    composed otherwise in Unicode, as archives of other systems have it.

    Raises:
        ValueError: If it is not text, is absolute, or leads out of the folder.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise ValueError(f"{name!r} is not a file name; give one relative to {folder}.")
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    if ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        raise ValueError(f"the file name {name!r} leads out of the folder; give one relative to {folder}.")
    if not name.isascii() and not os.path.exists(folder / name):
        composed = (folder / unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
        return next(filter(os.path.exists, composed), folder / name)
    return folder / name


def local_name(name: str) -> str:
    """What a file is called below the folder that holds it now: the last part of a URL, of an absolute name, and of
    one that leads out of the folder where it was written; others stay as they are."""
    try:
        file_in(Path(), name)
    except ValueError:
        return PureWindowsPath(name).name
    return PurePosixPath(urlsplit(name).path).name if "://" in name else name


def _parse(content: bytes) -> Any:
    """
    Raises:
        ValueError: With the reason and the position, without a full stop.
    """
    try:
        return json.loads(content.removeprefix(_BOM).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} (0x{content[error.start]:02x}) is not UTF-8") from None
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise ValueError(f"{error.msg}, {position}") from None
    except RecursionError:
        raise ValueError("its lists or objects are nested too deeply") from None


__all__ = [
    "LINE_ADVICE",
    "DataFileError",
    "file_in",
    "local_name",
    "read_json",
    "read_json_lines",
    "read_text",
    "without_garbage_collection",
]
