"""What `segment` and `mask` write: pictures and one JSON line for each, and how a stopped run goes on."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..whole_files import write_whole, written_whole
from .failures import CommandError


RESULTS_NAME = "results.jsonl"
# Fields of a line with the files that `segment --answers` writes.
ANSWER_FIELDS = ("answer_png", "answer_html")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ResultFolder:
    """The output folder: knows what is done, writes what is new.

    Args:
        folder: the output folder; made on the first write.
        request: what decides the result besides the picture (model, question, thresholds ...), as JSON types.
        overwrite: do the given images again whatever the folder holds about them.
        command: whose results the folder holds.

    Raises:
        CommandError: `folder` is not a folder, or its `results.jsonl` is not one of ours.
    """

    def __init__(self, folder: Path, request: dict[str, Any], overwrite: bool = False, command: str = "segment"):
        if folder.exists() and not folder.is_dir():
            raise CommandError(f"--out {str(folder)!r} is a file. Name a folder.")
        self.folder = folder
        self.request = request
        self.overwrite = overwrite
        self.command = command
        self.path = folder / RESULTS_NAME
        self.records = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.path.exists():
            return {}
        text = self.path.read_text(encoding="utf-8")
        lines = text.split("\n")
        # What follows the last line end is a line that a killed run did not finish.
        complete, rest = lines[:-1], lines[-1]
        records = {}
        for number, line in enumerate(complete, start=1):
            try:
                record = json.loads(line)
                _check_record(record)
            except (ValueError, KeyError, TypeError):
                raise CommandError(
                    f"Line {number} of {str(self.path)!r} is not a result of `reasonseg {self.command}`. "
                    "Use another --out folder, or remove the file."
                ) from None
            records[record_key(record)] = record
        if rest:
            self._rewrite(records)
        return records

    def pending(self, images: list[Path], needed: tuple[str, ...] = ()) -> list[Path]:
        """Return the images that are not done yet, in order.

        An image is done when its line has the same request, the same picture and the `needed` fields, and its files
        are there.

        Raises:
            CommandError: an image was done with another request and `overwrite` is off.
        """
        return [
            image
            for image in images
            if not self.is_done(image) or not all(name in self.records[str(image)] for name in needed)
        ]

    def is_done(self, image: Path, key: str | None = None) -> bool:
        """Return whether an image needs nothing more; `key` is the `key` of its line, where lines have one.

        Raises:
            CommandError: it was done with another request and `overwrite` is off.
        """
        record = self.records.get(str(image) if key is None else key)
        if record is None or self.overwrite:
            return False
        if record["request"] != self.request:
            changed = sorted(
                name
                for name in {*record["request"], *self.request}
                if record["request"].get(name) != self.request.get(name)
            )
            raise CommandError(
                f"{str(self.folder)!r} already holds results for {str(image)!r} with another "
                f"{', '.join(changed)}. Use another --out folder, or --overwrite to do these images again."
            )
        return self._is_current(image, record)

    def _is_current(self, image: Path, record: dict[str, Any]) -> bool:
        if not all((self.folder / name).is_file() for name in record_files(record)):
            return False
        return image.is_file() and record["sha256"] == file_sha256(image)

    def output_names(self, images: list[Path]) -> dict[Path, str]:
        """Give each image the start of its output file names: its stem, with a hash of its path where stems clash."""
        taken = {record["name"]: name for name, record in self.records.items()}
        names = {}
        for image in images:
            name = image.stem
            same_stem = [other for other in images if other.stem.lower() == name.lower()]
            if len(same_stem) > 1 or taken.get(name, str(image)) != str(image):
                name = f"{name}-{hashlib.sha256(str(image.resolve()).encode()).hexdigest()[:8]}"
            names[image] = name
        return names

    def save_picture(self, name: str, save: Callable[[Path], Any]) -> str:
        """Write a file of the folder through a temporary sibling and return its name."""
        with written_whole(self.folder / name, suffix=Path(name).suffix) as draft:
            save(draft)
        return name

    def add(self, record: dict[str, Any]) -> None:
        """Add the line of an image whose files are written."""
        replaced = self.records.get(record_key(record))
        self.records[record_key(record)] = record
        if replaced is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())
            return
        self._rewrite(self.records)
        for name in set(record_files(replaced)) - set(record_files(record)):
            (self.folder / name).unlink(missing_ok=True)

    def _rewrite(self, records: dict[str, dict[str, Any]]) -> None:
        write_whole(self.path, "".join(map(_line, records.values())))


def record_key(record: dict[str, Any]) -> str:
    """Return what tells a line from the others: its image, or its `key` where an image has several lines."""
    return record.get("key", record["image"])


def record_files(record: dict[str, Any]) -> list[str]:
    """Return the files of the folder that belong to a line."""
    if "files" in record:
        return list(record["files"])
    files = [segment["mask"] for segment in record["segments"] if segment["mask"]]
    return [*files, record["overlay"], *(record[name] for name in ANSWER_FIELDS if name in record)]


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _check_record(record: dict[str, Any]) -> None:
    if not isinstance(record["request"], dict) or not isinstance(record["image"], str):
        raise TypeError
    for name in (*record_files(record), record["name"]):
        # These names are opened and removed inside the folder, so none may lead out of it.
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError
