"""What `segment` and `mask` write: images and one JSON line for each, and how a stopped run resumes."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from ..atomic_files import remove_drafts, written_whole
from ..folder_lock import FolderLock
from .failures import CommandError, path_text, refuse_address
from .result_lines import ANSWER_FIELDS, RESULTS_NAME, ResultLines, record_files, record_key
from .shards import Shard, mark_ended


# Bytes of a file name's start that leave room for the ending of any result.
_LONGEST_STEM = 200
_HASH_DIGITS = 8
# What lists of names and annotation files cannot hold: line breaks and the like, the separator and the drives of
# Windows, blanks at an end.
_NOT_IN_NAMES = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\\]|^.:|^\s+|\s+$")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_usable_stem(stem: str) -> bool:
    """Return whether file names can begin with the stem, and a result line and an export can hold it."""
    is_text = path_text(stem) == stem and not _NOT_IN_NAMES.search(stem)
    return is_text and len(stem.encode()) <= _LONGEST_STEM


def hashed_stem(stem: str, path: str | os.PathLike) -> str:
    """Return a start of file names that no other path has: what can be used of the stem, and a hash of the path."""
    plain = os.fsencode(stem).decode("utf-8", errors="replace").replace("\N{REPLACEMENT CHARACTER}", "_")
    plain = _NOT_IN_NAMES.sub("_", plain)
    plain = plain.encode()[: _LONGEST_STEM - _HASH_DIGITS - 1].decode("utf-8", errors="ignore")
    return f"{plain}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:_HASH_DIGITS]}"


class ResultFolder:
    """The output folder: knows what is done, writes what is new. Several processes may fill it at the same time.

    Args:
        folder: the output folder; made on the first write.
        request: what decides the result besides the image (model, question, thresholds ...), as JSON types.
        overwrite: do the given images again whatever the folder holds about them.
        command: whose results the folder holds.

    Raises:
        CommandError: `folder` is not a folder, or its `results.jsonl` is not one of ours.
    """

    def __init__(self, folder: Path, request: dict[str, Any], overwrite: bool = False, command: str = "segment"):
        refuse_address(folder)
        if folder.exists() and not folder.is_dir():
            raise CommandError(f"--out {path_text(folder)!r} is a file. Name a folder.")
        self.folder = folder
        self.request = request
        self.overwrite = overwrite
        self.path = folder / RESULTS_NAME
        self._lines = ResultLines(self.path, command)
        self._lock = FolderLock(folder)

    def __enter__(self) -> "ResultFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.remove()

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """The lines by their key, as they were last read or written."""
        return self._lines.records

    def pending(self, images: list[Path], needed: tuple[str, ...] = ()) -> list[Path]:
        """Return the images that are not done yet, in order; see `is_done`.

        Raises:
            CommandError: an image was done with another request and `overwrite` is off.
        """
        return [image for image in images if not self.is_done(image, needed=needed)]

    def is_done(self, image: Path, key: str | None = None, needed: tuple[str, ...] = ()) -> bool:
        """Return whether an image needs nothing more: its line has the same request, the same image and the `needed`
        fields, and its files are there. `key` is that of its line, where an image has several lines.

        Raises:
            CommandError: it was done with another request and `overwrite` is off.
        """
        record = self.records.get(path_text(image) if key is None else key)
        if record is None or self.overwrite:
            return False
        if record["request"] != self.request:
            changed = sorted(
                name
                for name in {*record["request"], *self.request}
                if record["request"].get(name) != self.request.get(name)
            )
            raise CommandError(
                f"{path_text(self.folder)!r} already holds results for {path_text(image)!r} with another "
                f"{', '.join(changed)}. Use another --out folder, or --overwrite to do these images again."
            )
        return all(name in record for name in needed) and self._is_current(image, record)

    def _is_current(self, image: Path, record: dict[str, Any]) -> bool:
        if not all(os.path.isfile(self.folder / name) for name in record_files(record)):
            return False
        try:
            return record["sha256"] == file_sha256(image)
        except (OSError, ValueError):  # it is reported when it is loaded
            return False

    def output_names(self, images: list[Path]) -> dict[Path, str]:
        """Give each image the start of its output file names: its stem, with a hash of its path where stems clash, are
        too long, or hold what an export cannot."""
        stems = Counter(image.stem.lower() for image in images)
        names = {}
        for image in images:
            name = image.stem
            is_free = stems[name.lower()] == 1 and self.is_free(name, path_text(image))
            names[image] = name if is_free and is_usable_stem(name) else hashed_stem(name, os.path.realpath(image))
        return names

    def is_free(self, name: str, key: str) -> bool:
        """Return whether the line with this key may name its files so: no other line does."""
        return self._lines.owner(name) in (None, key)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Let no other process write in this block; from its begin `records` also hold what others have written.

        Raises:
            FolderInUseError: another process does not stop writing.
        """
        with self._lock.held():
            self._lines.read()
            self._lines.repair()
            yield

    def tidy(self, *folders: Path) -> None:
        """Remove what a killed run has left: temporary files here and in `folders`, and half a line."""
        if not self.folder.is_dir():
            return
        with suppress(OSError), self.writing():  # what cannot be written here is reported with the results
            self._lines.compact()
            for folder in {self.folder, *folders}:
                remove_drafts(folder)

    def save_file(self, name: str, save: Callable[[Path], Any]) -> str:
        """Write a file of the folder through a temporary sibling and return its name."""
        if not self.path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path.touch()  # by it the folder is known, also if the run is killed before the first line
        with written_whole(self.folder / name, suffix=PurePosixPath(name).suffix) as draft:
            save(draft)
        return name

    def add(self, record: dict[str, Any]) -> None:
        """Add the line of an image whose files are written, or put it in place of the image's older line."""
        with self.writing():
            replaced = self.records.get(record_key(record))
            self._lines.append(record)
            for name in set(record_files(replaced or record)) - set(record_files(record)):
                (self.folder / name).unlink(missing_ok=True)

    def end_shard(self, shard: Shard, own: Sequence[str], keys: Sequence[str]) -> None:
        """Leave a mark that a shard has done what it could; none where the folder holds what other shards have done,
        too, and that is everything.

        Args:
            shard: see [`mark_ended`].
            own: its lines.
            keys: the lines of all shards.
        """
        if shard.count > 1:
            with self.writing():
                has_others = len(own) < len(keys)
                mark_ended(self.folder, shard, is_whole=has_others and all(key in self.records for key in keys))

    def arrange(self, keys: Sequence[str]) -> None:
        """Bring the lines with these keys, those of one command, into its order, and remove outdated ones.

        Others, of other images, stay where they are. Which run or process has done an image, and when, is then not to
        be seen in the file.
        """
        self._lines.read()
        if self._lines.is_settled(keys):
            return
        with self.writing():
            self._lines.compact()
            self._lines.arrange(keys)


__all__ = ["ANSWER_FIELDS", "RESULTS_NAME", "ResultFolder", "file_sha256", "hashed_stem", "is_usable_stem"]
