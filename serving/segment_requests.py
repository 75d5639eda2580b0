"""`POST /v1/segment`: its requests, as JSON or as a form with a file, and its answers."""

import base64
import io
import json
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ..processing.segments import Segment, SegmentationResult
from .limits import Limits, RefusedError
from .questions import (
    Question,
    check_new_tokens,
    check_phrases,
    check_texts,
    image_bytes,
    pixel_limit,
    read_image,
)
from .streaming import draws_masks


MaskFormat = Literal["rle", "png"]
# Far above what limits of phrases allow, so that these have the word.
_MAX_FIELDS = 20_000


class SegmentRequest(BaseModel):
    """The fields of a request, of JSON and of forms, where `image` is the file."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    image: str | bytes = Field(description="A file such as a PNG or JPEG as base64, or as a data: URL.")
    text: str | None = Field(None, description="The question; the model writes its answer.")
    phrases: list[str] | None = Field(
        None, max_length=_MAX_FIELDS, description="What to segment instead, one segment for each."
    )
    model: str | None = Field(None, description="A name of /v1/models; the first by default.")
    max_new_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Longest answer, in tokens; as the model's own configuration says without, else 256."
    )
    mask_threshold: float = Field(0.0, description="Pixels with a larger mask logit belong to a segment.")
    reject_threshold: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Reject slots below this [SEG] probability; by the model's own decision without."
    )
    mask_format: MaskFormat = Field("rle", description="COCO's compressed run lengths, or a PNG (255 = object).")


def parse_json(body: bytes, kind: type[BaseModel]) -> Any:
    """A JSON body as what it is to be.

    Raises:
        RefusedError: It is no JSON (400) or has other fields or values (422).
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        if any(problem["type"] == "json_invalid" for problem in error.errors(include_input=False)):
            reason = error.errors(include_input=False)[0]["msg"]
            raise RefusedError(400, f"The body is no valid JSON ({reason}).") from None
        raise RefusedError(422, _problems(error)) from None


async def parse_form(request: Request, body: bytes, limits: Limits) -> SegmentRequest:
    """The fields and the file of a body of the kind multipart/form-data; several phrases are several fields.

    Raises:
        RefusedError: It is damaged (400) or has other fields or values (422).
    """

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    whole = Request(request.scope, receive)
    try:
        async with whole.form(
            max_files=limits.max_images, max_fields=_MAX_FIELDS, max_part_size=limits.max_body_bytes
        ) as form:
            fields: dict[str, Any] = {}
            for name in form:
                values = [await one.read() if isinstance(one, UploadFile) else one for one in form.getlist(name)]
                if len(values) > 1 and name != "phrases":
                    raise RefusedError(422, f"The field {name!r} was given {len(values)} times. Give it once.")
                fields[name] = values if name == "phrases" else values[0]
    except HTTPException as error:
        raise RefusedError(400, f"The form cannot be read ({error.detail}).") from None
    except (FormParserError, UnicodeError) as error:  # up to starlette 0.49; by an odd charset
        raise RefusedError(400, f"The form cannot be read ({error}).") from None
    # Forms have no null, so that clients leave a field blank.
    optional = ("text", "model", "reject_threshold")
    fields = {name: value for name, value in fields.items() if value != "" or name not in optional}
    try:
        return SegmentRequest.model_validate(fields)
    except ValidationError as error:
        raise RefusedError(422, _problems(error)) from None


def _problems(error: ValidationError) -> str:
    """What is wrong with the fields, as sentences."""
    sentences = []
    for problem in error.errors(include_url=False, include_context=False)[:5]:
        where = ".".join(str(part) for part in problem["loc"] if part not in ("bytes", "str")) or "The body"
        if problem["type"] == "missing":
            sentences.append(f"`{where}` is missing.")
        elif problem["type"] == "extra_forbidden":
            sentences.append(f"There is no field `{where}`.")
        else:
            sentences.append(f"`{where}`: {problem['msg']}, not {_shown(problem['input'])}.")
    return " ".join(dict.fromkeys(sentences))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def read_question(fields: SegmentRequest, processor: Any, limits: Limits) -> Question:
    """What a request asks; decodes its image.

    Raises:
        RefusedError: It asks for nothing, for too much, or in words that the model reads otherwise; or the model draws
            no masks.
    """
    if not draws_masks(processor):
        raise RefusedError(422, "This model answers in text and draws no masks. Ask it by POST /v1/chat/completions.")
    if (fields.text is None) == (fields.phrases is None):
        given = "neither was" if fields.text is None else "both were"
        raise RefusedError(
            422, f"Exactly one of `text` and `phrases` is needed, {given} given. `text` asks; `phrases` names things."
        )
    check_new_tokens(fields.max_new_tokens, limits)
    if fields.phrases is not None:
        check_phrases(fields.phrases, limits)
    elif not fields.text.strip():
        raise RefusedError(422, "The text is empty. Ask something.")
    check_texts(processor, [fields.text] if fields.phrases is None else fields.phrases, [], limits)
    content = image_bytes(fields.image) if isinstance(fields.image, str) else fields.image
    return Question(
        images=(read_image(content, pixel_limit(processor, limits)),),
        text=fields.text,
        phrases=None if fields.phrases is None else tuple(fields.phrases),
        max_new_tokens=fields.max_new_tokens,
        mask_threshold=fields.mask_threshold,
        reject_threshold=fields.reject_threshold,
    )


# ---- answers --------------------------------------------------------------------------------------------------------


def segment_answer(result: SegmentationResult, mask_format: MaskFormat) -> dict[str, Any]:
    """A result as JSON: `text`, `image_size` (height, width), and `segments` as in `segment_fields`."""
    return {
        "text": result.text,
        "image_size": list(result.image_size),
        "segments": [segment_fields(index, one, mask_format) for index, one in enumerate(result.segments)],
        **result.remarks,
    }


def segment_fields(index: int, segment: Segment, mask_format: MaskFormat) -> dict[str, Any]:
    """A segment as JSON, with its place among the segments; `mask` is run lengths, or a PNG in base64."""
    box, mask = segment.box_xyxy, None
    if segment.mask is not None:
        mask = segment.rle if mask_format == "rle" else _png(segment.mask)
    return {
        "index": index,
        "label": segment.label,
        "span": None if segment.span is None else list(segment.span),
        "score": float(segment.score),
        "slot_prob": float(segment.slot_prob),
        "rejected": bool(segment.rejected),
        "box_xyxy": None if box is None else list(box),
        "area": segment.area,
        "mask": mask,
        **segment.remarks,
    }


def _png(mask: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(mask).convert("L").save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def json_bytes(value: Any) -> bytes:
    """JSON in UTF-8, without characters that have no UTF-8."""
    return json.dumps(value, allow_nan=False).encode()


__all__ = [
    "MaskFormat",
    "SegmentRequest",
    "json_bytes",
    "parse_form",
    "parse_json",
    "read_question",
    "segment_answer",
    "segment_fields",
]
