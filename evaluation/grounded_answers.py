"""What a model says about an image, with a mask for every phrase, as files: one per image, resumed after a stop."""

import json
import math
import reprlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..atomic_files import remove_drafts, write_whole
from ..data.annotated_images import AnnotatedImage
from ..data.coco import run_lengths
from ..data.data_files import read_json
from ..processing.phrase_segments import PhraseSegmentationResult


# Names in the file where they are not those of the attributes: the file is that of the original and of GLaMM.
_FILE_NAMES = {"masks": "pred_masks"}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _are_numbers(count: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) == count and all(map(_is_number, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


# What the lists of a file hold, and whether a value is one.
_LISTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "phrases": ("texts", _is_text),
    "core_words": ("texts", _is_text),
    "scores": ("numbers", _is_number),
    "points": ("[x, y] in pixels", _are_numbers(2)),
    "boxes": ("[x1, y1, x2, y2] in pixels", _are_numbers(4)),
}


@dataclass(frozen=True)
class GroundedAnswer:
    """
    An answer whose phrases have masks. All lists are in the same order, one entry per mask.

    Args:
        caption (`str`): The whole answer.
        phrases (`list[str]`): The phrase of each mask.
        masks (`list[dict]`): Run lengths `{"size": [height, width], "counts": str}`.
        points (`list[tuple[int, int]]`, *optional*): (x, y) that the model pointed at, in pixels of the image.
        boxes (`list[tuple[int, int, int, int]]`, *optional*): (x1, y1, x2, y2) that it pointed at.
        core_words (`list[str]`, *optional*): The word each phrase is about.
        scores (`list[float]`, *optional*): The segmenter's estimate of each mask's IoU.
    """

    caption: str
    phrases: list[str]
    masks: list[dict[str, Any]]
    points: list[tuple[int, int]] | None = None
    boxes: list[tuple[int, int, int, int]] | None = None
    core_words: list[str] | None = None
    scores: list[float] | None = None

    def __post_init__(self):
        for name in ("points", "boxes", "core_words", "scores"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.phrases):
                raise ValueError(f"There are {len(values)} {name} for {len(self.phrases)} phrases.")

    @classmethod
    def from_result(cls, result: PhraseSegmentationResult):
        """What the processor of attend-and-segment returned; rejected phrases are left out."""
        segments = [segment for segment in result.segments if segment.mask is not None]
        points = [segment.point_xy for segment in segments]
        boxes = [segment.prompt_box_xyxy for segment in segments]
        return cls(
            caption=result.text,
            phrases=[segment.label for segment in segments],
            masks=[segment.rle for segment in segments],
            points=None if None in points else points,
            boxes=None if None in boxes else boxes,
            core_words=[segment.core_word for segment in segments],
            scores=[float(segment.mask_score) for segment in segments],
        )

    def to_dict(self, image_id: int | str) -> dict[str, Any]:
        """As the original writes it (`aas/gcg.py`), with what else is known."""
        values = {_FILE_NAMES.get(name, name): value for name, value in vars(self).items() if value is not None}
        return {"image_id": image_id, **values}

    def to_bytes(self, image_id: int | str) -> bytes:
        """The content of the file of an image."""
        return json.dumps(self.to_dict(image_id)).encode()

    @classmethod
    def from_dict(cls, entry: dict[str, Any]):
        """Read what `to_dict` or the original wrote, or GLaMM's `{name: {caption, phrases, pred_masks}}`.

        Raises:
            ValueError: If it is not one of these.
        """
        if not isinstance(entry, dict):
            raise ValueError(f"An answer must be an object with caption, phrases and pred_masks, not {entry!r:.60}.")
        first = next(iter(entry.values()), None)
        entry = first if isinstance(first, dict) and "caption" in first else entry
        missing = [name for name in ("caption", "phrases", "pred_masks") if name not in entry]
        if missing:
            raise ValueError(f"An answer lacks {', '.join(missing)}.")
        if not isinstance(entry["caption"], str) or not isinstance(entry["pred_masks"], list):
            raise ValueError("The caption of an answer must be a text, and its pred_masks a list.")
        for name, (kind, is_one) in _LISTS.items():
            values = entry.get(name)
            if (values is None and name == "phrases") or not isinstance(values, (list, type(None))):
                raise ValueError(f"The {name} of an answer are {reprlib.repr(values)}; they must be a list of {kind}.")
            if wrong := [value for value in values or [] if not is_one(value)]:
                raise ValueError(f"{reprlib.repr(wrong[0])} is among the {name} of an answer; they must be {kind}.")
        points, boxes = (
            [tuple(numbers) for numbers in entry[name]] if entry.get(name) else entry.get(name)
            for name in ("points", "boxes")
        )
        return cls(
            caption=entry["caption"],
            phrases=list(entry["phrases"]),
            masks=list(entry["pred_masks"]),
            points=points,
            boxes=boxes,
            core_words=entry.get("core_words"),
            scores=entry.get("scores"),
        )


def read_grounded_answers(folder: str | Path, images: Sequence[AnnotatedImage]) -> dict[int | str, GroundedAnswer]:
    """
    Args:
        folder (`str` or `Path`): One JSON file per image, by this project, the original or GLaMM.
        images (`Sequence[AnnotatedImage]`): The images.

    Returns:
        `dict`: Answers by id of the image; an image without a file is left out.

    Raises:
        FileNotFoundError: If no image has a file.
        ValueError: If a file is no answer.
    """
    answers = {}
    for image in images:
        path = Path(folder) / f"{image.stem}.json"
        if path.is_file():
            content = read_json(path)
            try:
                answer = GroundedAnswer.from_dict(content)
                for number, mask in enumerate(answer.masks, start=1):
                    run_lengths(mask, image.size, f"Mask number {number}")
            except ValueError as error:
                raise ValueError(f"{path} cannot be read: {error}") from None
            answers[image.id] = answer
    if not answers:
        raise FileNotFoundError(f"{folder} has no answer to any of the {len(images)} images (one JSON file each).")
    return answers


class SettingsDifferError(ValueError):
    """A folder was filled with other settings."""


class ImageFiles:
    """
    A folder with one file per image, filled by any number of processes. `_settings.json` in it says how the files were
    made, so that a run with other settings does not resume from them.

    Args:
        folder (`str` or `Path`): Made if it does not exist.
        suffix (`str`): Ending of the files, such as `.json`.
        settings (`dict`, *optional*): What decides their content, as plain JSON values. None takes the folder as it
            is (to read what was made elsewhere).

    Raises:
        SettingsDifferError: If the folder was filled with other settings.
    """

    def __init__(self, folder: str | Path, suffix: str, settings: dict[str, Any] | None = None):
        self.folder = Path(folder)
        self.suffix = suffix
        if settings is None:
            return
        state = PartialState()
        if state.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_drafts(self.folder)
            if not self.settings_path.exists() and not any(self.folder.glob(f"*{suffix}")):
                write_whole(self.settings_path, json.dumps(settings, indent=2) + "\n")
        state.wait_for_everyone()
        self._check(json.loads(json.dumps(settings)))

    @property
    def settings_path(self) -> Path:
        """The file that says how the others were made."""
        return self.folder / "_settings.json"

    def path(self, image: AnnotatedImage) -> Path:
        """The file of an image."""
        return self.folder / f"{image.stem}{self.suffix}"

    def fill(
        self,
        images: Sequence[AnnotatedImage],
        make: Callable[[list[AnnotatedImage]], list[bytes]],
        batch_size: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """
        Make the files that are missing; with several processes each takes a part. Returns when this part is done, the
        same for the same images and number of processes: what is made of these files needs no waiting.

        Args:
            images (`Sequence[AnnotatedImage]`): All images.
            make (`Callable`): Contents of the files of some images.
            batch_size (`int`): Images per call of `make`.
            progress (`Callable`, *optional*): Called with the number of finished and of all files of this process.
        """
        state = PartialState()
        mine = list(images)[state.process_index :: state.num_processes]
        missing = [image for image in mine if not self.path(image).exists()]
        done = len(mine) - len(missing)
        if progress is not None:
            progress(done, len(mine))
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            for image, content in zip(batch, make(batch), strict=True):
                write_whole(self.path(image), content)
            if progress is not None:
                progress(done + start + len(batch), len(mine))

    def wait(self, images: Sequence[AnnotatedImage], seconds: float = 1.0) -> None:
        """
        Wait until all files are there. Not a barrier of the process group, which gives up after some minutes: parts of
        a large data set may differ by more. A process that fails is noticed by what launched it (`torchrun`).

        Args:
            images (`Sequence[AnnotatedImage]`): All images.
            seconds (`float`): Time between two looks.
        """
        missing = list(images)
        while missing := [image for image in missing if not self.path(image).exists()]:
            time.sleep(seconds)

    def _check(self, settings: dict[str, Any]) -> None:
        if not self.settings_path.exists():
            raise SettingsDifferError(
                f"Nothing says how the {self.suffix} files in {self.folder} were made. Choose another folder."
            )
        made = read_json(self.settings_path)
        different = sorted(name for name in {*made, *settings} if made.get(name) != settings.get(name))
        if different:
            listed = "; ".join(f"{name}: {made.get(name)!r}, now {settings.get(name)!r}" for name in different)
            raise SettingsDifferError(
                f"{self.folder} was filled with other settings ({listed}). Choose another folder, or delete it."
            )


__all__ = ["GroundedAnswer", "ImageFiles", "SettingsDifferError", "read_grounded_answers"]
