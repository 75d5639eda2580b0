"""The pipeline's call, answered by a server that runs elsewhere or keeps a model in memory."""

import base64
import http.client
import io
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from ..processing.image_loading import load_rgb_image
from ..processing.phrase_segments import PhraseSegmentationResult
from ..processing.processing_coordinates import CoordinateResult, CoordinateSegment
from ..processing.regions import read_rle
from ..processing.segments import Segment, SegmentationResult


# How long requests are sent again that a server has no place for.
_PATIENCE = 300.0
# Requests at the same time, if nobody says how many: servers refuse too many.
_AT_ONCE = 32
_TIMEOUT = 3600.0  # of one answer: a queue may lie before it


class ServerError(ValueError):
    """A server cannot be reached, or does not answer as it was meant. The message says which and what to do."""


class RemotePipeline:
    """
    Segments images on a server of `reasonseg serve`, called as [`ReasoningSegmentationPipeline`] is.

    Args:
        url (`str`): Such as `http://127.0.0.1:8000`.
        model (`str`, *optional*): One of the server's models; its first by default.
        api_key (`str`, *optional*): Where the server asks for one.

    Raises:
        ServerError: No server answers there, or it has no such model.
    """

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"The server {url!r} is no address such as http://127.0.0.1:8000.")
        self.url, self._parts, self._api_key = url.rstrip("/"), parts, api_key
        names = self._read(lambda answer: [entry["id"] for entry in answer["data"]], self._ask("GET", "/v1/models"))
        if model is not None and model not in names:
            raise ServerError(f"The server {self.url} has no model {model!r}. It has {', '.join(names)}.")
        self.model = model or names[0]

    def __call__(
        self,
        images: Any,
        text: str | None = None,
        phrases: list[str] | None = None,
        batch_size: int | None = None,
        mask_format: str = "pil",
        **options: Any,
    ) -> Any:
        """As the pipeline's call, for one image or a list of them with one question or one list of phrases.

        Args:
            images: One image of any kind that `load_rgb_image` reads, or a list.
            text (`str`, *optional*): The question.
            phrases (`list[str]`, *optional*): What to segment instead.
            batch_size (`int`, *optional*, defaults to 1): Requests at the same time, which the server puts together.
            mask_format (`str`): `"pil"` or `"rle"`.
            options: `max_new_tokens`, `mask_threshold`, `reject_threshold`.

        Returns:
            `dict` or a `list` of them: `generated_text` and `segments`, as the pipeline's.
        """
        if mask_format not in ("pil", "rle"):
            raise ValueError(f"mask_format is {mask_format!r}. Allowed are 'pil' and 'rle'.")
        given = images if isinstance(images, (list, tuple)) else [images]
        results = [
            _pipeline_row(result, mask_format)
            for result in self.segment(given, text, phrases, batch_size=batch_size or 1, **options)
        ]
        return results if isinstance(images, (list, tuple)) else results[0]

    def segment(
        self,
        images: Sequence[Any],
        text: str | None = None,
        phrases: Sequence[str] | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> list[SegmentationResult]:
        """One result per image, as the processor's `post_process_segmentation` gives it.

        Args:
            images, text, phrases, options: As in a call.
            batch_size (`int`, *optional*): Requests at the same time; 32 by default.

        Raises:
            ServerError: The server refuses or cannot be reached; with its words.
        """
        asked = {name: value for name, value in options.items() if value is not None}
        asked |= {"text": text} if phrases is None else {"phrases": list(phrases)}
        with ThreadPoolExecutor(batch_size or _AT_ONCE) as threads:
            return list(threads.map(lambda image: self._segment(load_rgb_image(image), asked), images))

    def _segment(self, image: Image.Image, asked: dict[str, Any]) -> SegmentationResult:
        file = io.BytesIO()
        image.save(file, format="PNG", compress_level=1)
        body = {"model": self.model, "image": base64.b64encode(file.getvalue()).decode("ascii"), **asked}
        answer = self._ask("POST", "/v1/segment", json.dumps(body).encode())
        return self._read(lambda answer: read_answer(answer, image), answer)

    def _read(self, read: Callable[[Any], Any], answer: Any) -> Any:
        """What is read of an answer, which may be that of a server of another kind."""
        try:
            return read(answer)
        except (KeyError, TypeError, IndexError):
            raise self._other_kind(200) from None

    def _other_kind(self, status: int) -> ServerError:
        return ServerError(
            f"{self.url} does not answer as `reasonseg serve` does (status {status}). Check the address."
        )

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        """The server's answer; waits while it has no place for the request."""
        last_moment = time.monotonic() + _PATIENCE
        while True:
            status, wait, answer = self._send(method, path, body)
            if status == 200:
                return answer
            if status == 429 and time.monotonic() < last_moment:
                time.sleep(wait)
                continue
            raise ServerError(f"The server {self.url} says: {_message(answer, status)}")

    def _send(self, method: str, path: str, body: bytes | None) -> tuple[int, float, Any]:
        """Status code, seconds to wait before trying again, and the JSON of one request."""
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        headers = {"content-type": "application/json"}
        if self._api_key is not None:
            headers["authorization"] = f"Bearer {self._api_key}"
        connection = kind(self._parts.hostname, self._parts.port, timeout=_TIMEOUT)
        try:
            connection.request(method, self._parts.path.rstrip("/") + path, body, headers)
            response = connection.getresponse()
            content, wait = response.read(), response.getheader("retry-after", "1")
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise ServerError(
                f"The server {self.url} cannot be reached ({reason}). Start one with `reasonseg serve --model REPO`."
            ) from None
        finally:
            connection.close()
        try:
            answer = json.loads(content)
        except ValueError:
            raise self._other_kind(response.status) from None
        return response.status, float(wait) if wait.isdecimal() else 1.0, answer


def read_answer(answer: dict[str, Any], image: Image.Image) -> SegmentationResult:
    """The result that an answer of `/v1/segment` with run lengths says.

    Args:
        answer (`dict`): The JSON.
        image (`PIL.Image.Image`): The image that was sent.

    Raises:
        ValueError: A mask is damaged or of another size.
    """
    size = (image.height, image.width)
    segments = [_read_segment(one, size) for one in answer["segments"]]
    if (extractor := answer.get("phrase_extractor")) is not None:
        return PhraseSegmentationResult(answer["text"], segments, size, image, phrase_extractor=extractor)
    if (problems := answer.get("problems")) is not None:
        said = {"thinking": answer["thinking"], "problems": tuple(problems), "error": answer.get("error")}
        return CoordinateResult(answer["text"], segments, size, image, **said)
    return SegmentationResult(answer["text"], segments, size, image)


def _read_segment(one: dict[str, Any], size: tuple[int, int]) -> Segment:
    fields = {
        "label": one["label"],
        "span": None if one["span"] is None else tuple(one["span"]),
        "mask": None if one["mask"] is None else read_rle(one["mask"], size, "A mask of the server"),
        **{name: one[name] for name in ("score", "slot_prob", "rejected")},
    }
    if "repairs" not in one:
        return Segment(**fields)
    box = one["prompt_box_xyxy"]
    return CoordinateSegment(
        **fields,
        prompt_box_xyxy=None if box is None else tuple(box),
        points_xy=tuple(map(tuple, one["points_xy"])),
        point_labels=tuple(one["point_labels"]),
        repairs=tuple(one["repairs"]),
    )


def _message(answer: Any, status: int) -> str:
    try:
        return answer["error"]["message"]
    except (KeyError, TypeError):
        return f"status {status}."


def _pipeline_row(result: SegmentationResult, mask_format: str) -> dict[str, Any]:
    row: dict[str, Any] = {"generated_text": result.text, "segments": [], **result.remarks}
    for segment in result.segments:
        mask = segment.mask
        if mask is not None:
            mask = segment.rle if mask_format == "rle" else Image.fromarray(mask.astype(np.uint8) * 255)
        row["segments"].append(
            {
                "label": segment.label,
                "score": float(segment.score),
                "rejected": bool(segment.rejected),
                "span": segment.span,
                "box_xyxy": None if segment.box_xyxy is None else list(segment.box_xyxy),
                "mask": mask,
                **segment.remarks,
            }
        )
    return row


__all__ = ["RemotePipeline", "ServerError", "read_answer"]
