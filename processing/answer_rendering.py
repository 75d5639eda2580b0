"""An answer whose phrases have the colours of their masks: as HTML, and as a picture."""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .mask_drawing import is_light, segment_color, segment_name


_MARGIN = 16
_MAX_LINE_CHARACTERS = 400


def answer_html(text: str, segments: Sequence[Any], picture: Image.Image | None = None) -> str:
    """
    The answer as a fragment of HTML that needs nothing else.

    Args:
        text (`str`): The answer; every character of it that means something in HTML is escaped.
        segments (`Sequence[Segment]`): Their `span`, `label`, `score` and `rejected` are used. Of segments whose spans
            overlap the first is coloured.
        picture (`PIL.Image.Image`, *optional*): Put above the text, inside of the fragment.

    Returns:
        `str`: One `<div>`. Phrases have the colours of `SegmentationResult.overlay`; rejected ones are struck through.
    """
    parts = ['<div class="reasonseg-answer" style="font-family: sans-serif; line-height: 1.6">']
    if picture is not None:
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        parts.append(f'<img alt="segments" style="max-width: 100%" src="data:image/png;base64,{data}">')
    parts.append('<p style="white-space: pre-wrap">')
    for piece, place in _pieces(text, segments):
        escaped = html.escape(piece)
        if place is None:
            parts.append(escaped)
            continue
        segment = segments[place]
        red, green, blue = segment_color(place)
        if segment.rejected:
            parts.append(f'<s title="not in the image">{escaped}</s>')
        else:
            foreground = "#000" if is_light((red, green, blue)) else "#fff"
            style = f"background-color: rgb({red}, {green}, {blue}); color: {foreground}; border-radius: 3px"
            title = html.escape(f"{segment_name(segment.label, place)}: {segment.score:.2f}", quote=True)
            parts.append(f'<mark style="{style}" title="{title}">{escaped}</mark>')
    parts.append("</p></div>")
    return "".join(parts)


def draw_answer(
    text: str, segments: Sequence[Any], picture: Image.Image | None = None, width: int | None = None
) -> Image.Image:
    """
    The answer as a picture.

    Args:
        text (`str`): The answer.
        segments (`Sequence[Segment]`): As in `answer_html`.
        picture (`PIL.Image.Image`, *optional*): Put above the text; scaled down where it is wider than `width`.
        width (`int`, *optional*): Width in pixels; that of the picture, but at least 480, by default.

    Returns:
        `PIL.Image.Image`: mode RGB, as high as the text needs.

    Raises:
        ValueError: `width` is less than 120 pixels.
    """
    width = width or max(480, picture.width if picture is not None else 640)
    if width < 120:
        raise ValueError(f"width is {width}; an answer needs at least 120 pixels.")
    font = ImageFont.load_default(size=max(14, min(28, width // 45)))
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    line_height = round(1.5 * (font.getmetrics()[0] + font.getmetrics()[1]))
    lines = _break_lines(
        list(_pieces(text, segments)), lambda part: measure.textlength(part, font), width - 2 * _MARGIN
    )
    if picture is not None and picture.width > width:
        height = max(1, round(picture.height * width / picture.width))
        picture = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    above = 0 if picture is None else picture.height
    canvas = Image.new("RGB", (width, above + 2 * _MARGIN + line_height * max(1, len(lines))), "white")
    if picture is not None:
        canvas.paste(picture, ((width - picture.width) // 2, 0))
    drawing = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        x, y = float(_MARGIN), above + _MARGIN + row * line_height
        for part, place in line:
            length = drawing.textlength(part, font)
            fill = "black"
            if place is not None and not segments[place].rejected:
                color = segment_color(place)
                drawing.rounded_rectangle((x - 1, y, x + length + 1, y + line_height - 4), 3, fill=color)
                fill = "black" if is_light(color) else "white"
            drawing.text((x, y + 2), part, fill=fill, font=font)
            if place is not None and segments[place].rejected:
                middle = y + line_height // 2 - 2
                drawing.line((x, middle, x + length, middle), fill=fill)
            x += length
    return canvas


def _pieces(text: str, segments: Sequence[Any]) -> Iterator[tuple[str, int | None]]:
    """The text cut at spans: (part, place of its segment)."""
    placed = sorted((segment.span[0], place) for place, segment in enumerate(segments) if segment.span is not None)
    position = 0
    for start, place in placed:
        stop = min(segments[place].span[1], len(text))
        if start < position or stop <= start:
            continue
        if start > position:
            yield text[position:start], None
        yield text[start:stop], place
        position = stop
    if position < len(text):
        yield text[position:], None


def _break_lines(pieces: list[tuple[str, int | None]], length_of, width: float) -> list[list[tuple[str, int | None]]]:
    """Break at spaces; a word that is longer than a line is cut."""
    lines: list[list[tuple[str, int | None]]] = [[]]
    used = 0.0
    for piece, place in pieces:
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
                    lines[-1].append((fitting, place))
                    used += length_of(fitting)
                    word = word[len(fitting) :]
    return lines


def _words_with_spaces(text: str) -> list[str]:
    """Words with the spaces behind them."""
    words: list[str] = []
    for character in text:
        if words and not (words[-1][-1] == " " and character != " ") and len(words[-1]) < _MAX_LINE_CHARACTERS:
            words[-1] += character
        else:
            words.append(character)
    return words


__all__ = ["answer_html", "draw_answer"]
