"""What a request may ask for at most, and the answers of the server to what goes beyond it."""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse


Message = MutableMapping[str, Any]
# What is read and thrown away of a body that is refused, in bodies of the largest size: most clients read the answer
# only once they have sent everything.
_DISCARDED_BODIES = 4
_DISCARDING_SECONDS = 10.0
# Seconds after which a client may try again.
RETRY_AFTER = {"retry-after": "1"}
_CLIENT_LEFT = 499
# Answered whatever the key, and while the server stops.
_OPEN_PATHS = ("/health",)
_PATHS_WHILE_STOPPING = ("/health", "/metrics")


class RefusedError(Exception):
    """A request that is not answered as it was meant.

    Args:
        status (`int`): HTTP status code.
        message (`str`): One sentence or two: what was given, what is allowed, what to do next.
        headers (`Mapping`, *optional*): Further headers of the response.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The response as OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.status}}

    def response(self) -> JSONResponse:
        """The response, after which the connection may not be used again where the body was not read."""
        return JSONResponse(self.body(), self.status, self.headers)


@dataclass(frozen=True)
class Limits:
    """
    Args:
        max_body_bytes (`int`): Of a whole request; more is a 413, also where no length was announced.
        max_image_pixels (`int`, *optional*): Height x width; more is a 413. By default what the model's processor
            says.
        max_held_bytes (`int`): Of all bodies that are being received or read; more is a 503, but one may always come.
        max_images (`int`): Of one conversation; more is a 422.
        max_phrases (`int`): Of one request; more is a 422.
        max_text_tokens (`int`): Of all texts or phrases of a request together; more is a 422.
        max_new_tokens (`int`): Longest answer that may be asked for; more is a 422.
        max_waiting (`int`): Requests that wait for one model; the next is a 429.
        max_waiting_pixels (`int`): Of all images that wait for one model; more is a 429, but one may always wait.
        max_encoded_bytes (`int`): Of encoded images that each model keeps on its device for further questions about
            them; 0 keeps none.
        max_open_requests (`int`): Requests that are received, answered or waiting at the same time; the next is a 503.
        upload_seconds (`float`): In which a body must have arrived; later is a 408.
        stalled_seconds (`float`): After which a client that reads nothing of its answer is given up.
        max_unread_bytes (`int`): Of a streamed answer that its client has not read; more ends it.
    """

    max_body_bytes: int = 64 * 2**20
    max_held_bytes: int = 2**30
    max_image_pixels: int | None = None
    max_images: int = 8
    max_phrases: int = 100
    max_text_tokens: int = 2048
    max_new_tokens: int = 1024
    max_waiting: int = 64
    max_waiting_pixels: int = 2**28
    max_encoded_bytes: int = 2**28
    max_open_requests: int = 256
    upload_seconds: float = 60.0
    stalled_seconds: float = 30.0
    max_unread_bytes: int = 32 * 2**20


class Bodies:
    """
    The bodies of requests, of which only so much is in memory at the same time.

    Args:
        limits ([`Limits`]): `max_body_bytes`, `max_held_bytes` and `upload_seconds` of it.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """
        The whole body of a request, which counts as held until the block ends.

        Raises:
            RefusedError: It is larger than is allowed (413), takes too long (408), or those of others leave no room
                for it (503).
        """
        sizes: list[int] = []

        def hold(size: int) -> None:
            sizes.append(size)
            self.held += size
            if self.held > self.limits.max_held_bytes and self.held > sum(sizes):
                raise RefusedError(
                    503,
                    "The bodies of other requests fill the memory that is meant for them. Try again later.",
                    {"connection": "close", **RETRY_AFTER},
                )

        try:
            yield await _read_body(request, self.limits, hold)
        finally:
            self.held -= sum(sizes)


async def _read_body(request: Request, limits: Limits, hold: Callable[[int], None]) -> bytes:
    announced = request.headers.get("content-length", "")
    too_large = RefusedError(
        413,
        f"The body of the request is larger than the {limits.max_body_bytes} bytes allowed. Send a smaller image, or "
        "have the server started with a larger --max-body-mb.",
        {"connection": "close"},
    )
    if announced.isdecimal() and int(announced) > limits.max_body_bytes:
        if "expect" not in request.headers:  # such a client waits for a word before it sends anything
            await _discard(request, limits)
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.upload_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.max_body_bytes:
                    break
                hold(len(part))
                parts.append(part)
    except TimeoutError:
        raise RefusedError(
            408,
            f"The body of the request did not arrive within {limits.upload_seconds:g} seconds.",
            {"connection": "close"},
        ) from None
    if size > limits.max_body_bytes:
        parts.clear()
        await _discard(request, limits)
        raise too_large
    return b"".join(parts)


async def _discard(request: Request, limits: Limits) -> None:
    """Read what still comes of a body, within bounds, so that its client gets to reading the answer."""
    left = _DISCARDED_BODIES * limits.max_body_bytes
    try:
        async with asyncio.timeout(_DISCARDING_SECONDS):
            while left > 0:
                message = await request.receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


class Gate:
    """
    Around the whole application: lets in who has the key, counts the requests that are being answered, turns new ones
    away while the server stops, and gives up clients that do not read.

    Args:
        app: The application.
        limits ([`Limits`]): `max_open_requests` and `stalled_seconds` of it.
        api_key (`str`, *optional*): What `Authorization: Bearer ...` must hold; anybody may ask without one.
        observe (`Callable`): Gets path, status code (499 where the client left before) and seconds of each request.
    """

    def __init__(self, app: Any, limits: Limits, api_key: str | None, observe: Callable[[str, int, float], None]):
        self.app, self.limits, self.observe = app, limits, observe
        self._key = None if api_key is None else api_key.encode()
        self.stopping = False
        self.open_requests = 0

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, started, status = Request(scope, receive), time.monotonic(), _CLIENT_LEFT

        async def send_in_time(message: Message) -> None:
            """`send`, which waits while the client's buffers are full, but not for ever."""
            nonlocal status
            try:
                async with asyncio.timeout(self.limits.stalled_seconds):
                    await send(message)
            except TimeoutError:
                raise _StalledError from None
            status = message.get("status", status)

        try:
            if (refusal := self._refusal(request)) is not None:
                await _discard(request, self.limits)
                await refusal.response()(scope, receive, send_in_time)
                return
            self.open_requests += 1
            try:
                await self.app(scope, receive, send_in_time)
            finally:
                self.open_requests -= 1
        except* _StalledError:
            pass  # the server closes a connection whose answer is not complete
        finally:
            self.observe(request.url.path, status, time.monotonic() - started)

    def _refusal(self, request: Request) -> RefusedError | None:
        path, closing = request.url.path, {"connection": "close"}
        if self._key is not None and path not in _OPEN_PATHS:
            given = request.headers.get("authorization", "")
            scheme, _, key = given.partition(" ")
            # the time that this takes says nothing about how much of a key is right
            if not (hmac.compare_digest(key.strip().encode(), self._key) and scheme.lower() == "bearer"):
                what = "The API key is wrong" if given else "This server asks for an API key"
                return RefusedError(
                    401,
                    f"{what}. Send the header `Authorization: Bearer KEY`.",
                    {"www-authenticate": "Bearer", **closing},
                )
        if path in _PATHS_WHILE_STOPPING:
            return None
        if self.stopping:
            return RefusedError(
                503, "The server is stopping: it ends what it has begun and takes nothing new.", closing | RETRY_AFTER
            )
        if self.open_requests >= self.limits.max_open_requests:
            return RefusedError(
                503,
                f"{self.open_requests} requests are being answered, as many as are allowed. Try again later.",
                closing | RETRY_AFTER,
            )
        return None


class _StalledError(Exception):
    """A client does not read its answer."""


__all__ = ["RETRY_AFTER", "Bodies", "Gate", "Limits", "RefusedError"]
