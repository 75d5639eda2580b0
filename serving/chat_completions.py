"""`POST /v1/chat/completions` as OpenAI's clients send it: conversations with images in, text and masks out."""

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..processing.answer_stream import SegmentDrawn, TextPiece
from .batching import Answer
from .conversation import Conversation
from .limits import Limits, RefusedError
from .questions import (
    Question,
    ReadImage,
    check_new_tokens,
    check_texts,
    image_bytes,
    pixel_limit,
    read_image,
)
from .segment_requests import MaskFormat, segment_answer, segment_fields
from .streaming import LEAST_TEMPERATURE, draws_masks


# Far above what limits of tokens allow.
_MOST_MESSAGES = 2000


class _Fields(BaseModel):
    # What other servers know and what concerns no answer (`user`, `metadata`, ...) is let through.
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class TextPart(_Fields):
    type: Literal["text"]
    text: str


class ImageUrl(_Fields):
    url: str


class ImagePart(_Fields):
    type: Literal["image_url"]
    image_url: ImageUrl


class ChatMessage(_Fields):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]

    def parts(self) -> list[TextPart | ImagePart]:
        """The content as parts."""
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class StreamOptions(_Fields):
    include_usage: bool = False


class ChatRequest(_Fields):
    """The fields that are heeded; those of the second group are OpenAI's in name only: another value than the given
    one is refused rather than passed over."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=_MOST_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    n: int | None = None
    stop: Any = None
    tools: Any = None
    functions: Any = None
    logprobs: bool | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Any = None
    response_format: Any = None

    mask_threshold: float = 0.0
    reject_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    mask_format: MaskFormat = "rle"

    def check_unsupported(self) -> None:
        """Refuse what no answer would heed (422)."""
        plain_text = self.response_format is None or (
            isinstance(self.response_format, Mapping) and self.response_format.get("type") == "text"
        )
        asked = {
            "n": self.n not in (None, 1),
            "stop": bool(self.stop),
            "tools": bool(self.tools),
            "functions": bool(self.functions),
            "logprobs": bool(self.logprobs),
            "frequency_penalty": bool(self.frequency_penalty),
            "presence_penalty": bool(self.presence_penalty),
            "logit_bias": bool(self.logit_bias),
            "response_format": not plain_text,
        }
        if given := [name for name, is_given in asked.items() if is_given]:
            raise RefusedError(422, f"`{given[0]}` is not supported by this server. Leave it out.")


def read_chat(fields: ChatRequest, processor: Any, limits: Limits) -> Question:
    """What a conversation asks; decodes its images.

    Raises:
        RefusedError: It has no image, asks for nothing or for too much, or in words that the model reads otherwise.
    """
    fields.check_unsupported()
    new_tokens = fields.max_completion_tokens or fields.max_tokens
    check_new_tokens(new_tokens, limits)
    if fields.messages[-1].role != "user":
        raise RefusedError(
            422, f"The last message has the role {fields.messages[-1].role!r}. It must be a user's, to be answered."
        )
    if not any(isinstance(part, TextPart) and part.text.strip() for part in fields.messages[-1].parts()):
        raise RefusedError(422, "The last message has no text. Ask something.")
    texts: dict[bool, list[str]] = {True: [], False: []}
    for message in fields.messages:
        # As prompts have them: a token may be spread over the parts of one message.
        said = "".join(part.text for part in message.parts() if isinstance(part, TextPart))
        texts[message.role == "assistant"].append(said)
    check_texts(processor, texts[False], texts[True], limits)
    images = _read_images(fields, pixel_limit(processor, limits), limits)
    if fields.reject_threshold is not None and not draws_masks(processor):
        raise RefusedError(422, "`reject_threshold` is for models that draw masks. Leave it out.")
    common = {
        "max_new_tokens": new_tokens,
        "mask_threshold": fields.mask_threshold,
        "reject_threshold": fields.reject_threshold,
        "sampling": _sampling(fields),
        "seed": None if fields.seed is None else fields.seed % 2**63,
        "stream": bool(fields.stream),
    }
    if getattr(processor, "max_images_per_prompt", None) != 1:
        messages = tuple(_template_messages(fields.messages, images))
        return Question(tuple(images), messages=messages, **common)
    # Such questions share batches.
    if len(fields.messages) == 1 and len(images) == 1:
        return Question(tuple(images), text="".join(texts[False]), **common)
    try:
        messages = list(_template_messages(fields.messages, images))
        conversation, question = Conversation.of_messages(None, processor, messages)
        prompt = conversation.prompt(question)
    except ValueError as error:
        raise RefusedError(422, str(error)) from None
    return Question((images[-1],), text=prompt, **common)


def _sampling(fields: ChatRequest) -> dict[str, Any]:
    """The options of generation; by default the most likely token is taken, as everywhere in this package."""
    if (fields.temperature or 0.0) < LEAST_TEMPERATURE:
        return {}
    nucleus = {} if fields.top_p is None else {"top_p": fields.top_p}
    return {"do_sample": True, "temperature": fields.temperature, **nucleus}


def _read_images(fields: ChatRequest, max_pixels: int, limits: Limits) -> list[ReadImage]:
    urls = [
        part.image_url.url for message in fields.messages for part in message.parts() if isinstance(part, ImagePart)
    ]
    wrong = [message.role for message in fields.messages if message.role != "user" and _has_image(message)]
    if wrong:
        raise RefusedError(422, f"A message with the role {wrong[0]!r} has an image. Only a user's may have one.")
    if not urls:
        raise RefusedError(
            422,
            "The conversation has no image. Send one as a part of a user's message: "
            '{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}.',
        )
    if len(urls) > limits.max_images:
        raise RefusedError(422, f"{len(urls)} images were given, more than the {limits.max_images} allowed.")
    # Unlike in /v1/segment, base64 alone is no URL and none of OpenAI's clients sends it.
    if odd := [url for url in urls if url[:5].lower() != "data:"]:
        raise RefusedError(
            422,
            f"An image is the URL {odd[0][:60]!r}, and this server fetches none. Send the file itself as "
            "`data:image/png;base64,...`.",
        )
    return [read_image(image_bytes(url), max_pixels) for url in urls]


def _has_image(message: ChatMessage) -> bool:
    return any(isinstance(part, ImagePart) for part in message.parts())


def _template_messages(messages: list[ChatMessage], images: list[ReadImage]) -> Iterator[dict[str, Any]]:
    """The messages as chat templates take them."""
    left = iter(images)
    for message in messages:
        content = [
            {"type": "text", "text": part.text}
            if isinstance(part, TextPart)
            else {"type": "image", "image": next(left).pixels}
            for part in message.parts()
        ]
        yield {"role": "system" if message.role == "developer" else message.role, "content": content}


# ---- answers --------------------------------------------------------------------------------------------------------


class ChatAnswer:
    """The answer to one request, whole or in chunks, which all have its id."""

    def __init__(self, fields: ChatRequest):
        self.mask_format = fields.mask_format
        self.shows_usage = fields.stream_options is not None and fields.stream_options.include_usage
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": fields.model}

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer at once; `message` also has `segments` and `image_size`, as `/v1/segment` gives them."""
        said = segment_answer(answer.result, self.mask_format)
        message = {"role": "assistant", "content": said.pop("text"), "refusal": None, **said}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(answer)}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": _usage(answer)}

    def first_chunk(self) -> bytes:
        """What comes before anything is written."""
        return self._chunk({"role": "assistant", "content": ""})

    def event_chunk(self, event: Any) -> bytes | None:
        """A piece of text, or a segment in `delta.segments` as soon as it is drawn; `None` for the end."""
        if isinstance(event, TextPiece):
            return self._chunk({"content": event.text})
        if isinstance(event, SegmentDrawn):
            return self._chunk({"segments": [segment_fields(event.index, event.segment, self.mask_format)]})
        return None

    def last_chunks(self, answer: Answer) -> Iterator[bytes]:
        """What is known at the end alone, why it ended, what it cost where that was asked for, and the end."""
        size = {"image_size": list(answer.result.image_size)}
        yield self._chunk({**size, **answer.result.remarks}, _reason(answer))
        if self.shows_usage:
            yield server_event(
                {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(answer)}
            )
        yield b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return server_event({**self._head, "object": "chat.completion.chunk", "choices": [choice]})


def server_event(value: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, allow_nan=False).encode() + b"\n\n"


def _reason(answer: Answer) -> str:
    return "length" if answer.is_cut else "stop"


def _usage(answer: Answer) -> dict[str, int]:
    prompt, written = answer.prompt_tokens, answer.new_tokens
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


__all__ = ["ChatAnswer", "ChatRequest", "read_chat", "server_event"]
