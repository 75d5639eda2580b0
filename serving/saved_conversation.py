"""Conversations as files: one JSON file that holds the images, too."""

import base64
import binascii
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from PIL import Image

from ..atomic_files import write_whole
from ..processing.image_loading import load_rgb_image, open_image
from ..processing.phrase_segments import PhraseSegment, PhraseSegmentationResult
from ..processing.processing_coordinates import CoordinateResult, CoordinateSegment
from ..processing.regions import read_rle
from ..processing.segments import Segment, SegmentationResult


FORMAT = "reasonseg conversation 1"
_KINDS = {
    kind.__name__: kind
    for kind in (
        *(Segment, PhraseSegment, CoordinateSegment),
        *(SegmentationResult, PhraseSegmentationResult, CoordinateResult),
    )
}
# Too large, or stored in another form.
_LEFT_OUT = {"mask", "heatmap", "segments", "image", "attention_maps", "grid_box"}


def write_conversation(
    path: str | os.PathLike, system: str | None, images: Sequence[Image.Image], turns: Sequence[Mapping[str, Any]]
) -> None:
    """
    Args:
        path (`str` or `os.PathLike`): The file.
        system (`str`, *optional*): The system message.
        images (`list[PIL.Image.Image]`): RGB.
        turns (`list[dict]`): `question`, `image_index`, `phrases` and `result` ([`SegmentationResult`]).
    """
    content = {
        "format": FORMAT,
        "system": system,
        "images": [_encode_image(image) for image in images],
        "turns": [{**turn, "result": _result_fields(turn["result"])} for turn in turns],
    }
    write_whole(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def read_conversation(
    path: str | os.PathLike, max_image_pixels: int
) -> tuple[str | None, list[Image.Image], list[dict[str, Any]]]:
    """
    What was given to `write_conversation`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is none of this format, or something in it does not fit together.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        json.dumps(content, ensure_ascii=False).encode()  # without halves of characters, which no file takes again
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no saved conversation: it is not JSON in UTF-8 ({error}).") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no saved conversation: its format is not {FORMAT!r}.")
    try:
        images = [_decode_image(text, max_image_pixels) for text in _of_kind(content, "images", list)]
        turns = [_read_turn(turn, images) for turn in _of_kind(content, "turns", list)]
        return _of_kind(content, "system", str, type(None)), images, turns
    except ValueError as error:
        raise ValueError(f"{path} is no whole conversation: {error}") from None


def _encode_image(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode("ascii")


def _decode_image(text: Any, max_image_pixels: int) -> Image.Image:
    try:
        content = base64.b64decode(text, validate=True)
    except (TypeError, binascii.Error):
        raise ValueError("an image in it is not base64.") from None
    with open_image(content, max_image_pixels) as image:
        return load_rgb_image(image, max_image_pixels)


def _result_fields(result: SegmentationResult) -> dict[str, Any]:
    segments = [{**_plain_fields(segment), "rle": segment.rle} for segment in result.segments]
    return {**_plain_fields(result), "segments": segments}


def _plain_fields(of: Any) -> dict[str, Any]:
    names = [field.name for field in fields(of) if field.name not in _LEFT_OUT]
    return {"kind": type(of).__name__, **{name: getattr(of, name) for name in names}}


def _of_kind(entry: Any, name: str, *kinds: type) -> Any:
    """A field of an entry, checked."""
    if not isinstance(entry, dict) or name not in entry:
        raise ValueError(f"{name!r} is missing in an entry.")
    value = entry[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{name!r} is of type {type(value).__name__}; {wanted} is needed.")
    return value


def _read_turn(turn: Any, images: Sequence[Image.Image]) -> dict[str, Any]:
    index = _of_kind(turn, "image_index", int, type(None))
    if index is not None and not 0 <= index < len(images):
        raise ValueError(f"a turn is about image {index}, and there are {len(images)}.")
    phrases = _of_kind(turn, "phrases", list, type(None))
    if phrases is not None and not all(isinstance(phrase, str) for phrase in phrases):
        raise ValueError("the phrases of a turn are not all texts.")
    return {
        "question": _of_kind(turn, "question", str),
        "image_index": index,
        "phrases": None if phrases is None else tuple(phrases),
        "result": _read_result(_of_kind(turn, "result", dict), None if index is None else images[index]),
    }


def _read_result(entry: dict[str, Any], image: Image.Image | None) -> SegmentationResult:
    size = tuple(_of_kind(entry, "image_size", list))
    if image is not None and size != (image.height, image.width):
        raise ValueError(f"an answer is for an image of the size {size}, and the image is of another.")
    segments, text = [], _of_kind(entry, "text", str)
    for number, saved in enumerate(_of_kind(entry, "segments", list)):
        rle = _of_kind(saved, "rle", dict, type(None))
        mask = None if rle is None else read_rle(rle, size, f"mask {number} of an answer")
        segments.append(_made(saved, Segment, mask=mask))
        if (span := segments[-1].span) is not None and not 0 <= span[0] <= span[1] <= len(text):
            raise ValueError(f"the span {span} of a segment lies outside the answer of {len(text)} characters.")
    return _made(entry, SegmentationResult, segments=segments, image=image)


def _made(entry: dict[str, Any], base: type, **others) -> Any:
    """The object whose plain fields an entry holds."""
    kind = _KINDS.get(_of_kind(entry, "kind", str))
    if kind is None or not issubclass(kind, base):
        raise ValueError(f"{entry['kind']!r} is no kind of {base.__name__}.")
    of_kind = {field.name: field for field in fields(kind) if field.name not in _LEFT_OUT}
    if unknown := sorted(set(entry) - set(of_kind) - {"kind", "rle", "segments"}):
        raise ValueError(f"{unknown[0]!r} is no field of a {kind.__name__}.")
    plain = {name: _tuples(entry[name]) for name in of_kind if name in entry}
    plain |= {name: list(value) for name, value in plain.items() if of_kind[name].default_factory is list}
    hints = get_type_hints(kind)
    if wrong := [name for name, value in plain.items() if not _fits(value, hints[name])]:
        raise ValueError(f"{wrong[0]!r} of a {kind.__name__} is {str(plain[wrong[0]])[:60]!r}; not {hints[wrong[0]]}.")
    try:
        return kind(**plain, **others)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a {kind.__name__} cannot be made ({error}).") from None


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, of those that are saved."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is UnionType:
        return any(_fits(value, part) for part in parts)
    if kind not in (list, tuple):
        return type(value) is kind or (kind is float and type(value) is int)
    if kind is list or parts[-1] is Ellipsis:
        parts = parts[:1] * len(value) if isinstance(value, kind) else ()
    return isinstance(value, kind) and len(value) == len(parts) and all(map(_fits, value, parts))


def _tuples(value: Any) -> Any:
    """Lists, which JSON has alone, as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


__all__ = ["FORMAT", "read_conversation", "write_conversation"]
