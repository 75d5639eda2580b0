"""An evaluation as files: numbers as JSON, a table, and one image of the best, the median and the worst cases."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from ..atomic_files import write_whole, written_whole
from ..processing.image_loading import MAX_IMAGE_PIXELS, load_rgb_image
from ..processing.regions import read_rle
from ..processing.segments import mask_to_rle
from .contact_sheet import Cell, check_tile, choose, draw_cells, fit


GROUPS: tuple[str, ...] = ("best", "median", "worst")

_TARGET_COLOUR = (40, 200, 90)
_PREDICTION_COLOUR = (240, 70, 160)


@dataclass(frozen=True, eq=False)
class Case:
    """One phrase of an evaluation. Masks are kept as run lengths, and of a file only its path, so that the cases of
    whole data sets fit into memory.

    Attributes:
        source: `(height, width, 3)` uint8 RGB, which cases of one image may share, or the path of a file or its
            content, which is read when the case is drawn.
        phrase: What was asked for.
        iou: Score of the case, 0 to 1.
        target: Compressed run lengths of what is meant, or None when the phrase names nothing in the image.
        prediction: Compressed run lengths of the answer, or None without one, as when the phrase was rejected.
        upright: Whether the masks of a file lie in the frame of the upright image; else in that of the stored pixels,
            in which COCO's annotations count.
    """

    source: np.ndarray | Path | bytes
    phrase: str
    iou: float
    target: dict[str, Any] | None
    prediction: dict[str, Any] | None
    upright: bool = True

    @classmethod
    def from_masks(
        cls,
        source: np.ndarray | Path | bytes,
        phrase: str,
        iou: float,
        target: np.ndarray | None,
        prediction: np.ndarray | None,
    ) -> Case:
        """A case from `(height, width)` bool masks at the size of the upright image.

        Raises:
            ValueError: If an array is not RGB uint8 or a mask has another size.
        """
        if isinstance(source, np.ndarray):
            if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8:
                raise ValueError(f"image must be (height, width, 3) uint8, got {source.shape} {source.dtype}.")
            for name, mask in (("target", target), ("prediction", prediction)):
                if mask is not None and mask.shape != source.shape[:2]:
                    raise ValueError(f"The {name} of {phrase!r} has shape {mask.shape}, the image {source.shape[:2]}.")
        runs = [None if mask is None else mask_to_rle(mask.astype(bool)) for mask in (target, prediction)]
        return cls(source, phrase, iou, *runs)

    @property
    def image(self) -> np.ndarray:
        """`(height, width, 3)` uint8 RGB, in the frame of the masks."""
        if isinstance(self.source, np.ndarray):
            return self.source
        # an image of the size of its masks was accepted before
        sizes = [rle["size"] for rle in (self.target, self.prediction) if rle is not None]
        limit = max([MAX_IMAGE_PIXELS, *(height * width for height, width in sizes)])
        return np.asarray(load_rgb_image(self.source, limit, upright=self.upright))

    def mask(self, name: str) -> np.ndarray | None:
        """The `target` or the `prediction` as `(height, width)` bool, or None."""
        rle = getattr(self, name)
        return None if rle is None else read_rle(rle, tuple(rle["size"]))


def write_report(result: Any, out: str | Path, about: dict[str, Any]) -> Path:
    """
    Args:
        result: What was measured; has `to_dict()` and `cases`, see [`Outcome`], and may say as `num_cases` of how many
            cases these were chosen.
        out (`str` or `Path`): Folder for `results.json` and `cases.png`.
        about (`dict`): Model, data set and settings, written beside the numbers.

    Returns:
        `Path`: The JSON file.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if result.cases:
        save_contact_sheet(result.cases, out / "cases.png", total=getattr(result, "num_cases", None))
    path = out / "results.json"
    write_whole(path, json.dumps({**about, **result.to_dict()}, indent=2) + "\n")
    return path


def numbers_table(title: str, numbers: Mapping[str, float | int | None], notes: list[str]) -> Table:
    """
    One row per number.

    Args:
        title (`str`): Stands above.
        numbers (`Mapping`): Names and values; shares in percent, counts as they are.
        notes (`list[str]`): Stand below: what is not measured, and why.
    """
    table = Table(title=title, caption="\n".join(notes) or None, caption_justify="left", min_width=70)
    table.add_column("number", justify="left")
    table.add_column("value", justify="right")
    for name, value in numbers.items():
        table.add_row(name, "-" if value is None else str(value) if isinstance(value, int) else f"{100 * value:.1f}")
    return table


def select_cases(cases: Sequence[Case], count: int) -> dict[str, list[Case]]:
    """Pick the best, the median and the worst cases; no case is in two groups.

    Absent phrases that were rightly rejected have nothing to look at and are left out, unless there is nothing else.

    Args:
        cases: All cases.
        count: Cases per group; fewer when there are not enough.

    Returns:
        `best` (best first), `median` (by falling score) and `worst` (worst first). Cases of equal score keep their
        order, so the choice does not depend on anything but the input.

    Raises:
        ValueError: If `count` is less than 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    visible = [case for case in cases if case.target is not None or case.prediction is not None]
    return dict(zip(GROUPS, choose(visible or cases, count, lambda case: case.iou), strict=True))


def draw_contact_sheet(
    cases: Sequence[Case], count: int = 4, tile: int = 160, total: int | None = None
) -> Image.Image:
    """Draw the sheet: per case the image, the target (green) and the prediction (pink), with phrase and IoU.

    Args:
        cases: All cases of the evaluation, at least one.
        count: Cases per group.
        tile: Width of one image on the sheet in pixels, at least 48.
        total: Of how many cases these were chosen; their number by default.

    Raises:
        ValueError: If there is no case or a number is too small.
    """
    if not cases:
        raise ValueError("A contact sheet needs at least one case.")
    check_tile(tile)
    groups = {
        f"{name} of {total or len(cases)}: image | target | prediction": [
            Cell(tuple(_draw_views(case, tile)), case.phrase, _verdict(case)) for case in group
        ]
        for name, group in select_cases(cases, count).items()
    }
    return draw_cells(groups, tile)


def save_contact_sheet(
    cases: Sequence[Case], path: str | Path, count: int = 4, tile: int = 160, total: int | None = None
) -> Path:
    """Draw the sheet and write it as PNG; see `draw_contact_sheet`.

    Returns:
        The path.
    """
    path = Path(path)
    with written_whole(path) as draft:
        draw_contact_sheet(cases, count, tile, total).save(draft, format="PNG")
    return path


def _draw_views(case: Case, tile: int) -> list[Image.Image]:
    """The image, the target and the prediction, each `tile` pixels wide."""
    colours = {"target": _TARGET_COLOUR, "prediction": _PREDICTION_COLOUR}
    image = case.image
    images = [image, *(_paint(image, case.mask(name), colour) for name, colour in colours.items())]
    return [fit(Image.fromarray(image), tile) for image in images]


def _paint(image: np.ndarray, mask: np.ndarray | None, colour: tuple[int, int, int]) -> np.ndarray:
    """Fade the background and tint the mask; without a mask the whole image is faded."""
    grey = image.mean(axis=2, keepdims=True)
    faded = np.repeat(90 + 0.35 * grey, 3, axis=2)
    if mask is not None:
        faded[mask] = 0.55 * image[mask] + 0.45 * np.array(colour)
    return faded.astype(np.uint8)


def _verdict(case: Case) -> str:
    target = "absent" if case.target is None else "present"
    answer = "no mask" if case.prediction is None else "segmented"
    return f"IoU {case.iou:.3f}, {target}, {answer}"


__all__ = ["Case", "draw_contact_sheet", "numbers_table", "save_contact_sheet", "select_cases", "write_report"]
