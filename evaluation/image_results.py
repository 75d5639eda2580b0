"""One line per evaluated image, in a file from which a stopped run resumes.

`results.jsonl` has the images in the order of the data set; while a run goes on each of its processes has a part of
its own beside it. `settings.json` holds everything that decides a result, and a run with other settings is refused.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from accelerate import PartialState

from ..atomic_files import write_whole
from ..data.data_files import read_json, read_json_lines
from .metrics import PRECISION_THRESHOLDS, SUMS


RESULTS, SETTINGS = "results.jsonl", "settings.json"
SEGMENTED, REJECTED, NO_SLOT = "segmented", "rejected", "no slot"
_PART = "results.part{process}.jsonl"
_PARTS = "results.part*.jsonl"
# Seconds between two looks at what other processes have written.
_PAUSE = 0.5


class ImageResultsError(ValueError):
    """A file of results from which this run cannot resume."""


@dataclass(frozen=True)
class ExpressionResult:
    """
    What one expression adds to an evaluation.

    Args:
        text (`str`): What was asked for.
        iou (`float`): As it enters gIoU, 0 to 1.
        intersection, union (`int`): Pixels, as they enter cIoU: both 0 where the rule counts none.
        present (`bool`): Whether its target has foreground by the rule.
        decision (`str`): `segmented`, `rejected`, or `no slot` where the model wrote none for it.
        rle (`dict`, *optional*): Run lengths of the predicted mask, where they are kept and there is a mask.
    """

    text: str
    iou: float
    intersection: int
    union: int
    present: bool
    decision: str
    rle: Mapping[str, Any] | None = None

    def sums(self, counts_decisions: bool) -> np.ndarray:
        """
        Args:
            counts_decisions (`bool`): Whether the model can reject, or the benchmark asks whether it did.

        Returns:
            `np.ndarray`: `(sums,)` float64, the columns by `SUMS`.
        """
        added = {
            "masks": 1.0,
            "targets": float(self.present),
            "iou": self.iou,
            "intersection": self.intersection,
            "union": self.union,
        }
        if counts_decisions:
            # Without a slot an absent target was not rejected, and a present one was.
            rejected = self.decision == REJECTED or (self.decision == NO_SLOT and self.present)
            added[f"{'present' if self.present else 'absent'}_{'rejected' if rejected else 'kept'}"] = 1.0
        if self.present and self.union:
            share = self.intersection / self.union
            added |= {f"pr@{level}": 1.0 for level in PRECISION_THRESHOLDS if share >= level}
        return np.array([added.get(name, 0.0) for name in SUMS])


@dataclass(frozen=True)
class ImageResult:
    """
    Args:
        number (`int`): The image's number in the data set, from 0.
        image (`str`): What the data set calls it.
        file (`str`): Name of its file.
        size (`tuple[int, int]`): (height, width) in pixels, of the upright image.
        group (`str`, *optional*): What it is reported in beside all.
        expressions (`list[ExpressionResult]`): In the order of the data set.
    """

    number: int
    image: str
    file: str
    size: tuple[int, int]
    group: str | None
    expressions: list[ExpressionResult]

    def sums(self, counts_decisions: bool) -> np.ndarray:
        """What the image adds, `(sums,)` float64."""
        return sum((one.sums(counts_decisions) for one in self.expressions), np.zeros(len(SUMS)))

    def to_line(self) -> str:
        """The line of the file."""
        expressions = []
        for one in self.expressions:
            fields = {name: getattr(one, name) for name in ("text", "iou", "intersection", "union", "present")}
            kept = {} if one.rle is None else {"rle": dict(one.rle)}
            expressions.append({**fields, "decision": one.decision, **kept})
        line = {
            "number": self.number,
            "image": self.image,
            "file": self.file,
            "size": list(self.size),
            **({} if self.group is None else {"group": self.group}),
            "expressions": expressions,
        }
        return json.dumps(line, ensure_ascii=False) + "\n"

    @classmethod
    def from_line(cls, line: Any) -> "ImageResult":
        """
        Raises:
            KeyError, TypeError: If it is not such a line.
        """
        expressions = [ExpressionResult(**fields) for fields in line["expressions"]]
        return cls(
            int(line["number"]), line["image"], line["file"], tuple(line["size"]), line.get("group"), expressions
        )


class ImageResults:
    """
    The results of a run in a folder.

    Args:
        folder (`str` or `Path`): Where they are, or will be.
        settings (`Mapping[str, Any]`): Everything that decides a result, as plain JSON values.

    Raises:
        ImageResultsError: If results were made there with other settings.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / SETTINGS
        if path.is_file():
            _check_settings(path, read_json(path, ImageResultsError), dict(settings))
        elif any(self._files()):
            raise ImageResultsError(
                f"{self.folder} holds results, but not the settings that they were made with ({SETTINGS}). Use "
                "another output folder or delete them."
            )
        else:
            write_whole(path, json.dumps(dict(settings), indent=2, ensure_ascii=False) + "\n")

    def _files(self) -> Iterator[Path]:
        whole = self.folder / RESULTS
        if whole.is_file():
            yield whole
        yield from sorted(self.folder.glob(_PARTS))

    def read(self) -> dict[int, ImageResult]:
        """What is there, by the number of the image. A line that was cut off is left out.

        Raises:
            ImageResultsError: If a line is not such a result.
        """
        found = {}
        for path in self._files():
            cut_off: dict[int, str] = {}
            try:
                lines = list(read_json_lines(path, problems=cut_off))
            except FileNotFoundError:
                continue  # the main process has just put it into the whole file
            for row, line in lines:
                try:
                    result = ImageResult.from_line(line)
                except (KeyError, TypeError, ValueError):
                    raise ImageResultsError(
                        f"Line {row} of {path} is not a result that was written here. Use another output folder."
                    ) from None
                found[result.number] = result
        return found

    @contextmanager
    def writing(self) -> Iterator[TextIO]:
        """This process's own file, to which lines are appended."""
        part = self.folder / _PART.format(process=PartialState().process_index)
        with part.open("a", encoding="utf-8") as file:
            if file.tell() and not part.read_bytes().endswith(b"\n"):
                file.write("\n")  # after a line that was cut off
            yield file

    def wait_for(self, numbers: Sequence[int]) -> list[ImageResult]:
        """The results of these images, once all processes have them; the main process then puts all into one file."""
        # Not a barrier: those give up after some minutes, and the parts may differ by hours.
        while not (found := self.read()).keys() >= set(numbers):
            time.sleep(_PAUSE)
        if PartialState().is_main_process:
            whole = "".join(found[number].to_line() for number in sorted(found))
            write_whole(self.folder / RESULTS, whole)
            for part in self.folder.glob(_PARTS):
                part.unlink()
        return [found[number] for number in numbers]


def _check_settings(path: Path, before: Any, now: dict[str, Any]) -> None:
    if not isinstance(before, dict):
        raise ImageResultsError(f"{path} holds no settings of an evaluation. Use another output folder.")
    different = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if different:
        then = ", ".join(f"{name} = {before.get(name)!r}" for name in different)
        raise ImageResultsError(
            f"The results in {path.parent} were made with {then}; now it is "
            f"{', '.join(repr(now.get(name)) for name in different)}. Use another output folder or delete it."
        )


__all__ = [
    "NO_SLOT",
    "REJECTED",
    "RESULTS",
    "SEGMENTED",
    "SETTINGS",
    "ExpressionResult",
    "ImageResult",
    "ImageResults",
    "ImageResultsError",
]
