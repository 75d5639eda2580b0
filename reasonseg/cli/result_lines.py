"""`results.jsonl`: one line per image, each complete or absent, even if a writer was killed.

An image that is done again gets a new line at the end. The older one is removed later, at the latest when a run ends
or another one begins; until then the last line of an image counts.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic_files import write_whole
from .failures import CommandError


RESULTS_NAME = "results.jsonl"
# Below a folder of results: the same in the formats of annotation tools.
EXPORT_FOLDER = "export"
# What `reasonseg report` writes beside the results.
REPORT_NAME, CONTACT_SHEET_NAME = "report.html", "contact_sheet.png"
# What it draws of the rows of a data set.
REPORT_IMAGES = "report_images"
# Fields of a line with the files that `segment --answers` writes.
ANSWER_FIELDS = ("answer_png", "answer_html")
_LONGEST_LINE = 2**24
# How `segment` names images; a killed run may have written one and not its line.
_RESULT_NAME = re.compile(r".+_(mask_\d+|overlay|answer)\.png", re.DOTALL)


class ResultLines:
    """The lines of a results file by their key. Only the holder of the folder's lock may write.

    Args:
        path: the file; it need not exist.
        command: the command whose results it holds.

    Raises:
        CommandError: a line is not a result.
    """

    def __init__(self, path: Path, command: str):
        self.path = path
        self.command = command
        self._forget()
        self.read()

    def _forget(self) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        self._owners: dict[str, str] = {}
        self._file: tuple[int, int] | None = None
        self._size = 0  # of the lines that were read
        self._last = b""
        self._count = 0
        self._outdated = 0  # lines that later ones replace
        self._is_cut_off = False

    def owner(self, name: str) -> str | None:
        """Return the key of the line whose files have this name, whatever its case."""
        return self._owners.get(name.lower())

    def read(self) -> None:
        """Read what is new in the file, whichever process wrote it. What follows the last line end is a line that a
        killed run did not finish, or that another process is writing.

        Raises:
            CommandError: a line is not a result.
        """
        if self.path.exists() and not self.path.is_file():
            raise CommandError(f"{str(self.path)!r} is not a file. Use another --out folder.")
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            self._forget()
            return
        with file:
            info = os.fstat(file.fileno())
            if not self._continues(file, info):
                self._forget()
                self._file = (info.st_dev, info.st_ino)
            file.seek(self._size)
            complete, end, rest = file.read().rpartition(b"\n")
        for line in complete.split(b"\n") if end else ():
            self._count += 1
            try:
                record = _parse(line)
            except (ValueError, KeyError, TypeError):
                raise CommandError(
                    f"Line {self._count} of {str(self.path)!r} is not a result of `reasonseg {self.command}`. "
                    "Use another --out folder, or remove the file."
                ) from None
            self._keep(record)
            self._last = line + b"\n"
        self._size += len(complete) + len(end)
        if rest:
            self._is_cut_off = True
            with suppress(ValueError, KeyError, TypeError):  # only its line end may be missing
                self._keep(_parse(rest))

    def _continues(self, file: Any, info: os.stat_result) -> bool:
        """Whether the file still begins with what was read of it."""
        if (info.st_dev, info.st_ino) != self._file or info.st_size < self._size:
            return False
        file.seek(self._size - len(self._last))
        return file.read(len(self._last)) == self._last

    def repair(self) -> None:
        """Remove what a killed run did not finish."""
        if self._is_cut_off:
            self._rewrite()

    def compact(self) -> None:
        """Remove lines that later ones replace, as well."""
        if self._is_cut_off or self._outdated:
            self._rewrite()

    def is_settled(self, keys: Sequence[str]) -> bool:
        """Return whether `compact` and `arrange` would change nothing, as far as the file was read."""
        is_clean = not self._is_cut_off and not self._outdated
        return is_clean and list(self._arranged(keys)) == list(self.records)

    def arrange(self, keys: Sequence[str]) -> None:
        """Bring the lines with these keys into this order, among themselves; the others stay where they are."""
        if list(self._arranged(keys)) != list(self.records):
            self.records = {key: self.records[key] for key in self._arranged(keys)}
            self._rewrite()

    def _arranged(self, keys: Sequence[str]) -> Iterator[str]:
        moved = set(keys)
        ordered = (key for key in dict.fromkeys(keys) if key in self.records)
        return (next(ordered) if key in moved else key for key in self.records)

    def append(self, record: dict[str, Any]) -> None:
        """Add a line at the end, also in place of the image's older one; if that fails the file stays as it was."""
        content = json_line(record).encode("utf-8")
        with self.path.open("ab", buffering=0) as file:
            info = os.fstat(file.fileno())
            try:
                rest = content
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(info.st_size)
                raise
        self._file = (info.st_dev, info.st_ino)
        self._keep(record)
        self._count, self._size, self._last = self._count + 1, info.st_size + len(content), content
        # Not every time: then doing a folder again would take the square of its images.
        if 2 * self._outdated >= len(self.records):
            self.compact()

    def _keep(self, record: dict[str, Any]) -> None:
        key = record_key(record)
        if key in self.records:
            self._owners.pop(self.records[key]["name"].lower(), None)
            self._outdated += 1
        self.records[key] = record
        self._owners[record["name"].lower()] = key

    def _rewrite(self) -> None:
        records = list(self.records.values())
        write_whole(self.path, "".join(map(json_line, records)))
        self._forget()
        self.read()


@dataclass(frozen=True)
class EarlierResults:
    """What an earlier run has written into a folder, so that nobody takes it for an input.

    Args:
        folder: with a `results.jsonl` in it.
        files: names of its files, relative to the folder.
        of_mask: whether `reasonseg mask` wrote them: masked images are also inputs for another model.
    """

    folder: Path
    files: frozenset[str]
    of_mask: bool

    def holds(self, path: Path) -> bool:
        """Return whether a path below the folder is one of its results."""
        name = path.relative_to(self.folder)
        is_named_so = not self.of_mask and name.parent == Path() and _RESULT_NAME.fullmatch(name.name) is not None
        is_made_of_them = not self.of_mask and name.parts[0] in (EXPORT_FOLDER, CONTACT_SHEET_NAME)
        return is_named_so or is_made_of_them or name.as_posix() in self.files


def find_earlier_results(folder: Path) -> EarlierResults | None:
    """Return what an earlier run has written into a folder; `None` where it holds no results of this package."""
    path = folder / RESULTS_NAME
    if not os.path.isfile(path):  # a pipe would never end
        return None
    try:
        with path.open("rb") as file:
            is_ours = not (first := file.readline(_LONGEST_LINE).strip()) or any(_readable(first))
            records = list(_readable(first + b"\n" + file.read())) if is_ours else []
    except OSError:
        return None
    if not is_ours:
        return None
    files = frozenset(name for record in records for name in record_files(record))
    return EarlierResults(folder, files, any("files" in record for record in records))


def _readable(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.split(b"\n"):
        with suppress(ValueError, KeyError, TypeError):
            yield _parse(line)


def find_lines(path: Path) -> list[tuple[int, int]]:
    """Return where the lines of a file of results begin and how many bytes they have, in the order of the images.

    Of an image that was done again the last line counts, and half a line does not. Nothing else is kept of them.

    Raises:
        CommandError: it is no file of results of `reasonseg segment`.
    """
    hint = "Name a folder that `reasonseg segment` has filled."
    if not path.is_file():
        raise CommandError(f"{str(path.parent)!r} has no {RESULTS_NAME}. {hint}")
    found: dict[str, tuple[int, int]] = {}
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = _parse(line)
                has_masks = "segments" in record
            except (ValueError, KeyError, TypeError):
                if not line.endswith(b"\n"):  # a killed run did not finish it
                    break
                raise CommandError(f"Line {number} of {str(path)!r} is not a result. {hint}") from None
            if not has_masks:
                raise CommandError(f"{str(path.parent)!r} holds results without masks, of another command. {hint}")
            found[record_key(record)] = (start, len(line))
            start += len(line)
    return list(found.values())


def record_key(record: dict[str, Any]) -> str:
    """Return what tells a line from the others: its image, or its `key` where an image has several lines."""
    return record.get("key", record["image"])


def record_files(record: dict[str, Any]) -> list[str]:
    """Return the files of the folder that belong to a line."""
    if "files" in record:
        return list(record["files"])
    files = [segment["mask"] for segment in record["segments"] if segment["mask"]]
    return [*files, record["overlay"], *(record[name] for name in ANSWER_FIELDS if name in record)]


def json_line(record: dict[str, Any]) -> str:
    """Return a record as one line of JSON, with its line end, that can be written as UTF-8."""
    line = json.dumps(record, ensure_ascii=False) + "\n"
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:  # halves of surrogate pairs; as escapes they can be written
        line = json.dumps(record) + "\n"
    return line


def _parse(line: bytes) -> dict[str, Any]:
    record = json.loads(line.decode("utf-8"))
    if not isinstance(record["request"], dict) or not isinstance(record["image"], str):
        raise TypeError
    for name in (*record_files(record), record["name"]):
        # These names are opened and removed inside the folder, so none may lead out of it.
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError
    return record


__all__ = [
    "ANSWER_FIELDS",
    "CONTACT_SHEET_NAME",
    "EXPORT_FOLDER",
    "REPORT_IMAGES",
    "REPORT_NAME",
    "RESULTS_NAME",
    "EarlierResults",
    "ResultLines",
    "find_earlier_results",
    "find_lines",
    "json_line",
    "record_files",
    "record_key",
]
