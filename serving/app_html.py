"""What the web app shows of a conversation, as HTML: answers whose phrases have the colours of their masks."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..processing.segments import Segment, SegmentationResult, is_light, segment_color, segment_name


# On the page; downloads have all pixels.
_LONGEST_SIDE = 1600
# Up to here no edge of a mask is blurred; larger ones would take long.
_LOSSLESS_SIDE = 1024


def phrase_spans(result: SegmentationResult) -> list[tuple[int, int] | None]:
    """For each segment the range of the text that names it: its phrase and the `[SEG]` or `[REJ]` after it, as far as
    the answer holds them; `None` for a segment that stands nowhere in it."""
    spans: list[tuple[int, int] | None] = []
    free_from = 0
    for segment in result.segments:
        if segment.span is None or segment.span[0] < free_from:
            spans.append(None)
            continue
        start, stop = segment.span
        found = -1 if not segment.label else result.text.rfind(segment.label, free_from, start)
        spans.append((start if found < 0 else found, stop))
        free_from = stop
    return spans


def answer_fragment(result: SegmentationResult, turn: int, alone: int | None = None) -> str:
    """
    Args:
        result ([`SegmentationResult`]): An answer, perhaps its beginning.
        turn (`int`): Its number, which clicks on its phrases name.
        alone (`int`, *optional*): The segment whose mask is shown alone.

    Returns:
        `str`: The text with a coloured `<mark>` for every phrase, rejected ones struck through; phrases that stand
        nowhere in the text after it; a sentence that names what was rejected. All text is escaped.
    """
    spans, parts, position = phrase_spans(result), [], 0
    placed = sorted((span, index) for index, span in enumerate(spans) if span is not None)
    for (start, stop), index in placed:
        if start < position:  # of phrases that overlap the first one is coloured
            spans[index] = None
            continue
        parts.append(_escaped(result.text[position:start]))
        parts.append(_mark(result.text[start:stop], result.segments[index], turn, index, alone))
        position = stop
    parts.append(_escaped(result.text[position:]))
    elsewhere = [index for index, span in enumerate(spans) if span is None]
    chips = [
        _mark(segment_name(result.segments[index].label, index), result.segments[index], turn, index, alone)
        for index in elsewhere
    ]
    if chips:
        parts.append(f'<div class="chips">{" ".join(chips)}</div>')
    rejected = [
        segment_name(segment.label, index) for index, segment in enumerate(result.segments) if segment.rejected
    ]
    if rejected:
        parts.append(f'<div class="rejected">Not in the image: {_escaped(", ".join(rejected))}</div>')
    return "".join(parts)


def _escaped(text: str) -> str:
    """Text that is nothing else in HTML, nor in the templates of gradio."""
    return html.escape(text).replace("{", "&#123;").replace("$", "&#36;").replace("`", "&#96;")


def _mark(text: str, segment: Segment, turn: int, index: int, alone: int | None) -> str:
    name = segment_name(segment.label, index)
    if segment.rejected:
        return f'<s data-rejected="{index}" title="not in the image">{_escaped(text)}</s>'
    color = segment_color(index)
    classes = ' class="alone"' if index == alone else ""
    title = _escaped(f"{name}: score {segment.score:.2f}, {segment.area} pixels. Click: its mask alone")
    style = f"background-color: rgb{color}; color: {'#000' if is_light(color) else '#fff'}"
    place = f'data-turn="{turn}" data-segment="{index}"'
    return f'<mark{classes} tabindex="0" {place} style="{style}" title="{title}">{_escaped(text)}</mark>'


def conversation_html(turns: Sequence[Any], shown: int | None, alone: int | None, is_writing: bool) -> str:
    """
    Args:
        turns (`Sequence[AppTurn]`): What was said.
        shown, alone: As [`AppSession`] has them.
        is_writing (`bool`): Whether the last answer goes on.
    """
    parts = []
    for number, turn in enumerate(turns):
        goes_on = is_writing and number == len(turns) - 1
        text = answer_fragment(turn.result, number, alone if number == shown else None)
        if not turn.is_complete:
            text += '<span class="cursor">▍</span>' if goes_on else '<div class="rejected">Stopped.</div>'
        elif not turn.result.text and not turn.result.segments:
            text += '<div class="rejected">The answer is empty.</div>'
        parts.append(f'<div class="question">{_escaped(turn.question)}</div>')
        parts.append(f'<div class="answer" data-complete="{str(not goes_on).lower()}">{text}</div>')
    return "".join(parts) or '<div class="rejected">Ask something about the image.</div>'


def image_html(image: Image.Image | None, tool: str | None = None) -> str:
    """The image as a page shows it, with its width and height in pixels and, where regions can be drawn on it, the
    region tool; a hint where there is no image."""
    if image is None:
        return '<div class="hint">Upload or paste an image.</div>'
    width, height = image.size
    if max(image.size) > _LONGEST_SIDE:
        image = image.copy()
        image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    buffer = io.BytesIO()
    kind = "png" if max(image.size) <= _LOSSLESS_SIDE else "jpeg"
    image.save(buffer, kind)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<img alt="the image with its masks" draggable="false" data-width="{width}" data-height="{height}" '
        f'data-tool="{_escaped(tool or "")}" src="data:image/{kind};base64,{data}">'
        f'<svg viewBox="0 0 {width} {height}"></svg>'
    )


__all__ = ["answer_fragment", "conversation_html", "image_html", "phrase_spans"]
