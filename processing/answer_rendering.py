"""Results for people: the answer in the colours of its masks, as HTML and as an image, and what its words looked at.

Nothing here is published beside a checkpoint.
"""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .phrase_segments import PhraseSegmentationResult
from .segments import Segment, SegmentationResult, is_light, segment_color, segment_name


_MARGIN = 16
_MAX_LINE_CHARACTERS = 400
_HEAT = np.array([255.0, 40.0, 0.0])
_STRONGEST = 0.75
_GAP = 6


def to_html(result: SegmentationResult, image: Any = None) -> str:
    """Return the answer as HTML whose phrases have the colours of their masks.

    Args:
        result (`SegmentationResult`): What `post_process_segmentation` returned.
        image (*optional*): The image that was segmented; with it the overlay is shown above the text.

    Returns:
        `str`: one `<div>` that needs no other file.
    """
    return answer_html(result.text, result.segments, None if image is None else result.overlay(image))


def notebook_html(result: SegmentationResult) -> str:
    """Return what a notebook shows: the text under the overlay, made smaller, on grey where the image is not known."""
    return answer_html(result.text, result.segments, result.thumbnail())


def answer_html(text: str, segments: Sequence[Segment], image: Image.Image | None = None) -> str:
    """
    The answer as a fragment of HTML that needs nothing else.

    Args:
        text (`str`): The answer; every character of it that means something in HTML is escaped.
        segments (`Sequence[Segment]`): Their `span`, `label`, `score` and `rejected` are used. Of segments whose spans
            overlap the first is coloured.
        image (`PIL.Image.Image`, *optional*): Put above the text, inside of the fragment.

    Returns:
        `str`: One `<div>`. Phrases have the colours of `SegmentationResult.overlay`; rejected ones are struck through.
    """
    parts = ['<div class="reasonseg-answer" style="font-family: sans-serif; line-height: 1.6">']
    if image is not None:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        parts.append(f'<img alt="segments" style="max-width: 100%" src="data:image/png;base64,{data}">')
    parts.append('<p style="white-space: pre-wrap">')
    for piece, index in _pieces(text, segments):
        escaped = html.escape(piece)
        if index is None:
            parts.append(escaped)
            continue
        segment = segments[index]
        red, green, blue = segment_color(index)
        if segment.rejected:
            parts.append(f'<s title="not in the image">{escaped}</s>')
        else:
            foreground = "#000" if is_light((red, green, blue)) else "#fff"
            style = f"background-color: rgb({red}, {green}, {blue}); color: {foreground}; border-radius: 3px"
            title = html.escape(f"{segment_name(segment.label, index)}: {segment.score:.2f}", quote=True)
            parts.append(f'<mark style="{style}" title="{title}">{escaped}</mark>')
    parts.append("</p></div>")
    return "".join(parts)


def draw_answer(result: SegmentationResult, image: Any = None, width: int | None = None) -> Image.Image:
    """
    The answer as an image, with the colours of `SegmentationResult.overlay`.

    Args:
        result (`SegmentationResult`): What `post_process_segmentation` returned.
        image (*optional*): The image that was segmented; with it the overlay is above the text, scaled down where
            it is wider than `width`.
        width (`int`, *optional*): Width in pixels; that of the image, but at least 480, by default.

    Returns:
        `PIL.Image.Image`: mode RGB, as high as the text needs; save it as PNG.

    Raises:
        ValueError: `width` is less than 120 pixels.
    """
    text, segments = result.text, result.segments
    image = None if image is None else result.overlay(image)
    width = width or max(480, image.width if image is not None else 640)
    if width < 120:
        raise ValueError(f"width is {width}; an answer needs at least 120 pixels.")
    font = ImageFont.load_default(size=max(14, min(28, width // 45)))
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    line_height = round(1.5 * (font.getmetrics()[0] + font.getmetrics()[1]))
    lines = _break_lines(
        list(_pieces(text, segments)), lambda part: measure.textlength(part, font), width - 2 * _MARGIN
    )
    if image is not None and image.width > width:
        height = max(1, round(image.height * width / image.width))
        image = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    above = 0 if image is None else image.height
    canvas = Image.new("RGB", (width, above + 2 * _MARGIN + line_height * max(1, len(lines))), "white")
    if image is not None:
        canvas.paste(image, ((width - image.width) // 2, 0))
    drawing = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        x, y = float(_MARGIN), above + _MARGIN + row * line_height
        for part, index in line:
            length = drawing.textlength(part, font)
            fill = "black"
            if index is not None and not segments[index].rejected:
                color = segment_color(index)
                drawing.rounded_rectangle((x - 1, y, x + length + 1, y + line_height - 4), 3, fill=color)
                fill = "black" if is_light(color) else "white"
            drawing.text((x, y + 2), part, fill=fill, font=font)
            if index is not None and segments[index].rejected:
                middle = y + line_height // 2 - 2
                drawing.line((x, middle, x + length, middle), fill=fill)
            x += length
    return canvas


def draw_attention(
    result: PhraseSegmentationResult, image: Any, per_row: int = 10, cell_width: int = 140
) -> Image.Image:
    """Draw what each token of the answer looked at, the mean of all taken off, ten in a row.

    Args:
        result (`PhraseSegmentationResult`): What `post_process_segmentation(..., keep_maps=True)` returned.
        image: The image that was segmented.
        per_row (`int`, *optional*, defaults to 10): Images per row.
        cell_width (`int`, *optional*, defaults to 140): Width of each in pixels.

    Returns:
        `PIL.Image.Image`: mode RGB.

    Raises:
        ValueError: The result was made without `keep_maps=True`, or the image has another size.
    """
    if result.attention_maps is None or result.grid_box is None:
        raise ValueError("The result holds no maps. Make it with post_process_segmentation(..., keep_maps=True).")
    words = [result.text[start:stop] for start, stop in result.token_spans]
    image = result.read_image(image)
    return draw_attention_maps(image, result.attention_maps, result.grid_box, words, per_row, cell_width)


def draw_attention_maps(
    image: Image.Image,
    maps: np.ndarray,
    grid_box: Sequence[float],
    words: Sequence[str],
    per_row: int = 10,
    cell_width: int = 140,
) -> Image.Image:
    """
    Maps of all tokens over their image, in reading order.

    Args:
        image (`PIL.Image.Image`): The image, mode RGB.
        maps (`np.ndarray` of shape `(tokens, rows, columns)`): Raw maps; the mean of all is taken off each.
        grid_box (`Sequence[float]`): What part of the image the grid covers, `(x1, y1, x2, y2)` in its pixels.
        words (`Sequence[str]`): What is written under each.
        per_row, cell_width (`int`, *optional*): As in `draw_attention`.

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
    scale = cell_width / image.width
    cell_height = max(1, round(image.height * scale))
    small = np.asarray(image.resize((cell_width, cell_height)), dtype=np.float64)
    font = ImageFont.load_default(size=12)
    line = font.getmetrics()[0] + font.getmetrics()[1] + 4
    rows = -(-len(maps) // per_row)
    columns = min(per_row, len(maps))
    sheet = Image.new(
        "RGB", (columns * (cell_width + _GAP) + _GAP, rows * (cell_height + line + _GAP) + _GAP), "white"
    )
    canvas = ImageDraw.Draw(sheet)
    centred = np.asarray(maps, dtype=np.float64) - np.mean(maps, axis=0, dtype=np.float64)
    for index, (values, word) in enumerate(zip(centred, words, strict=True)):
        heat = _heat(values, [edge * scale for edge in grid_box], (cell_height, cell_width))[..., None] * _STRONGEST
        x = _GAP + index % per_row * (cell_width + _GAP)
        y = _GAP + index // per_row * (cell_height + line + _GAP)
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


def _pieces(text: str, segments: Sequence[Any]) -> Iterator[tuple[str, int | None]]:
    """The text cut at spans: (part, index of its segment)."""
    placed = sorted((segment.span[0], index) for index, segment in enumerate(segments) if segment.span is not None)
    position = 0
    for start, index in placed:
        stop = min(segments[index].span[1], len(text))
        if start < position or stop <= start:
            continue
        if start > position:
            yield text[position:start], None
        yield text[start:stop], index
        position = stop
    if position < len(text):
        yield text[position:], None


def _break_lines(pieces: list[tuple[str, int | None]], length_of, width: float) -> list[list[tuple[str, int | None]]]:
    """Break at spaces; a word that is longer than a line is cut."""
    lines: list[list[tuple[str, int | None]]] = [[]]
    used = 0.0
    for piece, index in pieces:
        for number, paragraph in enumerate(piece.split("\n")):
            if number:
                lines.append([])
                used = 0.0
            for word in _words_with_spaces(paragraph):
                while word:
                    fitting = word
                    if used + length_of(word.rstrip()) > width and lines[-1]:
                        lines.append([])
                        used = 0.0
                        fitting = word = word.lstrip()
                    while length_of(fitting.rstrip()) > width and len(fitting) > 1:
                        fitting = fitting[: len(fitting) // 2]
                    if not fitting:
                        break
                    lines[-1].append((fitting, index))
                    used += length_of(fitting)
                    word = word[len(fitting) :]
    return lines


def _words_with_spaces(text: str) -> list[str]:
    """Words with the spaces after them."""
    words: list[str] = []
    for character in text:
        if words and not (words[-1][-1] == " " and character != " ") and len(words[-1]) < _MAX_LINE_CHARACTERS:
            words[-1] += character
        else:
            words.append(character)
    return words


__all__ = ["answer_html", "draw_answer", "draw_attention", "draw_attention_maps", "notebook_html", "to_html"]
