"""A sheet of small images in named rows, with two lines of text under each: of an evaluation, and of any run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image, ImageDraw, ImageFont


_PAPER, _INK, _FAINT = (250, 250, 248), (24, 24, 26), (120, 120, 124)
_MARGIN = 8
_LINE_HEIGHT = 14
_SMALLEST = 48

Item = TypeVar("Item")


@dataclass(frozen=True)
class Cell:
    """
    Args:
        views (`tuple[Image.Image, ...]`): Stand side by side, each `tile` pixels wide.
        title (`str`): The line under them; what is too long for it is cut off.
        about (`str`): The line under that, fainter.
    """

    views: tuple[Image.Image, ...]
    title: str
    about: str


def draw_cells(groups: Mapping[str, Sequence[Cell]], tile: int) -> Image.Image:
    """
    Draw the sheet.

    Args:
        groups (`Mapping`): Rows of cells with the line that stands above each; empty ones are left out.
        tile (`int`): Width of a view in pixels, at least 48.

    Raises:
        ValueError: There is no cell, or the width is too small.
    """
    check_tile(tile)
    groups = {name: cells for name, cells in groups.items() if cells}
    if not groups:
        raise ValueError("A contact sheet needs at least one image.")
    font = ImageFont.load_default(size=11)
    cell_width = {name: _width(cells[0], tile) for name, cells in groups.items()}
    cell_height = {
        name: max(view.height for cell in cells for view in cell.views) + 2 * _LINE_HEIGHT
        for name, cells in groups.items()
    }
    width = _MARGIN + max(len(cells) * (cell_width[name] + _MARGIN) for name, cells in groups.items())
    height = _MARGIN + sum(_LINE_HEIGHT + 4 + cell + _MARGIN for cell in cell_height.values())
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    top = _MARGIN
    for name, cells in groups.items():
        pen.text((_MARGIN, top), name, fill=_FAINT, font=font)
        top += _LINE_HEIGHT + 4
        for column, cell in enumerate(cells):
            left = _MARGIN + column * (cell_width[name] + _MARGIN)
            for position, view in enumerate(cell.views):
                sheet.paste(view, (left + position * (tile + 2), top))
            bottom = top + max(view.height for view in cell.views)
            pen.text((left, bottom + 1), _shorten(cell.title, cell_width[name], pen, font), fill=_INK, font=font)
            pen.text((left, bottom + 1 + _LINE_HEIGHT), cell.about, fill=_FAINT, font=font)
        top += cell_height[name] + _MARGIN
    return sheet


def choose(items: Sequence[Item], count: int, score: Callable[[Item], float]) -> tuple[list[Item], ...]:
    """Pick the best, the median and the worst; nothing is picked twice.

    Args:
        items (`Sequence`): All; those of equal score keep their order.
        count (`int`): How many of each; fewer when there are not enough.
        score (`Callable`): Larger is better.

    Returns:
        `tuple`: the best (best first), the median (by falling score) and the worst (worst first).
    """
    ranked = sorted(items, key=lambda item: -score(item))
    best_end = min(count, (len(ranked) + 2) // 3)
    worst_start = max(best_end, len(ranked) - min(count, (len(ranked) + 1) // 3))
    between = ranked[best_end:worst_start]
    start = max(0, (len(between) - count) // 2)
    return ranked[:best_end], between[start : start + count], ranked[worst_start:][::-1]


def fit(image: Image.Image, tile: int) -> Image.Image:
    """An image at the width of a view."""
    height = max(1, round(tile * image.height / image.width))
    return image.resize((tile, height), Image.Resampling.BILINEAR)


def check_tile(tile: int) -> None:
    """
    Raises:
        ValueError: A view would be too narrow for its text.
    """
    if tile < _SMALLEST:
        raise ValueError(f"tile must be at least {_SMALLEST} pixels, got {tile}.")


def _width(cell: Cell, tile: int) -> int:
    return len(cell.views) * tile + 2 * (len(cell.views) - 1)


def _shorten(text: str, width: int, pen: ImageDraw.ImageDraw, font: Any) -> str:
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."


__all__ = ["Cell", "check_tile", "choose", "draw_cells", "fit"]
