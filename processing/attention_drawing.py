"""What each word of an answer looked at, as a sheet of small pictures."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont


_HEAT = np.array([255.0, 40.0, 0.0])
_STRONGEST = 0.75
_GAP = 6


def draw_attention_maps(
    picture: Image.Image,
    maps: np.ndarray,
    grid_box: Sequence[float],
    words: Sequence[str],
    per_row: int = 10,
    cell_width: int = 140,
) -> Image.Image:
    """
    Maps of all tokens over their picture, in reading order.

    Args:
        picture (`PIL.Image.Image`): The picture, mode RGB.
        maps (`np.ndarray` of shape `(tokens, rows, columns)`): Raw maps; the mean of all is taken off each.
        grid_box (`Sequence[float]`): What part of the picture the grid covers, `(x1, y1, x2, y2)` in its pixels.
        words (`Sequence[str]`): What stands under each.
        per_row (`int`, *optional*, defaults to 10): Pictures per row.
        cell_width (`int`, *optional*, defaults to 140): Width of each in pixels.

    Returns:
        `PIL.Image.Image`: mode RGB. The strongest spot of every map has the same red.

    Raises:
        ValueError: There is no map, or not one word for each.
    """
    if not len(maps) or len(maps) != len(words) or per_row < 1 or cell_width < 16:
        raise ValueError(
            f"{len(maps)} maps and {len(words)} words were given with {per_row} per row of {cell_width} pixels; at "
            "least one map, a word for each, one per row and 16 pixels are needed."
        )
    scale = cell_width / picture.width
    cell_height = max(1, round(picture.height * scale))
    small = np.asarray(picture.resize((cell_width, cell_height)), dtype=np.float64)
    font = ImageFont.load_default(size=12)
    line = font.getmetrics()[0] + font.getmetrics()[1] + 4
    rows = -(-len(maps) // per_row)
    columns = min(per_row, len(maps))
    sheet = Image.new(
        "RGB", (columns * (cell_width + _GAP) + _GAP, rows * (cell_height + line + _GAP) + _GAP), "white"
    )
    canvas = ImageDraw.Draw(sheet)
    centred = np.asarray(maps, dtype=np.float64) - np.mean(maps, axis=0, dtype=np.float64)
    for place, (values, word) in enumerate(zip(centred, words, strict=True)):
        heat = _heat(values, [edge * scale for edge in grid_box], (cell_height, cell_width))[..., None] * _STRONGEST
        x = _GAP + place % per_row * (cell_width + _GAP)
        y = _GAP + place // per_row * (cell_height + line + _GAP)
        sheet.paste(Image.fromarray(np.rint(small * (1 - heat) + _HEAT * heat).astype(np.uint8)), (x, y))
        text = word.strip() or "·"
        while len(text) > 1 and canvas.textlength(text, font) > cell_width:
            text = text[:-1]
        canvas.text((x, y + cell_height + 1), text, fill="black", font=font)
    return sheet


def _heat(values: np.ndarray, box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """A map at the size of a cell, 0..1; 0 where the model did not look or saw less than on average."""
    height, width = size
    left, top, right, bottom = (round(edge) for edge in box)
    grown = Image.fromarray(values.astype(np.float32)).resize(
        (max(1, right - left), max(1, bottom - top)), Image.Resampling.BICUBIC
    )
    whole = Image.new("F", (width, height), 0.0)
    whole.paste(grown, (left, top))
    heat = np.clip(np.asarray(whole, dtype=np.float64), 0.0, None)
    return heat / max(float(heat.max()), 1e-12)


__all__ = ["draw_attention_maps"]
