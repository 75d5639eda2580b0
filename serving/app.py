"""The routes of the server, and what happens to a request on its way to the model and back."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from .batching import Answer, ClientLeftError, Job, ModelWorker
from .chat_completions import ChatAnswer, ChatRequest, read_chat, server_event
from .limits import RETRY_AFTER, Bodies, Gate, Limits, RefusedError
from .metrics import Metrics
from .questions import Question
from .segment_requests import SegmentRequest, json_bytes, parse_form, parse_json, read_question, segment_answer
from .streaming import draws_masks


log = logging.getLogger(__name__)
# Threads that decode images and encode masks, of all requests together.
_CODERS = 4
_CLIENT_LEFT = 499
_PATHS = ("/v1/segment", "/v1/chat/completions", "/v1/models", "/health", "/metrics")


class Service:
    """
    Models that answer over HTTP.

    Args:
        workers (`Mapping[str, ModelWorker]`): By the names that requests give them; the first is the default.
        limits ([`Limits`]): What a request may ask for.
        metrics ([`Metrics`]): Where it is counted.
        api_key (`str`, *optional*): Which all requests must bring along.
        version (`str`): Of this package, for `/openapi.json`.

    Attributes:
        app: The application, for any ASGI server.
    """

    def __init__(
        self,
        workers: Mapping[str, ModelWorker],
        limits: Limits,
        metrics: Metrics,
        api_key: str | None = None,
        version: str = "0",
    ):
        self.workers, self.limits, self.metrics, self.version = dict(workers), limits, metrics, version
        self._bodies = Bodies(limits)
        self._coders = ThreadPoolExecutor(_CODERS, thread_name_prefix="images")
        self.app = Gate(self._routes(), limits, api_key, self._observe)
        metrics.open_requests.set_function(lambda: self.app.open_requests)

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.app.open_requests == 0

    def stop_taking(self) -> None:
        """From now on only what has begun is answered."""
        self.app.stopping = True

    def give_up(self) -> None:
        """End what has begun, each with a sentence."""
        for worker in self.workers.values():
            worker.give_up(
                RefusedError(
                    503, "The server stops and ends this answer before it is complete. Ask again.", RETRY_AFTER
                )
            )

    def close(self) -> None:
        """End all threads, once they have done what they have begun."""
        for worker in self.workers.values():
            worker.close()
        self._coders.shutdown()

    # ---- routes -------------------------------------------------------------------------------------------------

    def _routes(self) -> FastAPI:
        # Its pages of documentation would load scripts from elsewhere.
        app = FastAPI(title="reasonseg", version=self.version, docs_url=None, redoc_url=None)
        described = {"application/json": {"schema": SegmentRequest.model_json_schema()}}
        described["multipart/form-data"] = described["application/json"]
        chat_described = {"application/json": {"schema": ChatRequest.model_json_schema()}}
        post = {"methods": ["POST"], "response_model": None}
        app.add_api_route(
            "/v1/segment",
            self.segment,
            openapi_extra={"requestBody": {"content": described, "required": True}},
            **post,
        )
        app.add_api_route(
            "/v1/chat/completions",
            self.chat,
            openapi_extra={"requestBody": {"content": chat_described, "required": True}},
            **post,
        )
        told = {"/v1/models": self.models, "/v1/models/{name:path}": self.model}
        for path, answer in (told | {"/health": self.health, "/metrics": self.show_metrics}).items():
            app.add_api_route(path, answer, response_model=None)
            app.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False, response_model=None)
        app.add_exception_handler(HTTPException, _http_failure)
        return app

    async def segment(self, request: Request) -> Response:
        """Text and segments for an image with a question or with phrases."""
        return await self._guarded(request, self._segment)

    async def chat(self, request: Request) -> Response:
        """OpenAI's chat completions, with segments."""
        return await self._guarded(request, self._chat)

    async def models(self) -> dict[str, Any]:
        """The models by the names that requests give them."""
        return {"object": "list", "data": [_model_entry(worker) for worker in self.workers.values()]}

    async def model(self, name: str) -> Any:
        """One of the models."""
        try:
            return _model_entry(self._worker(name))
        except RefusedError as refusal:
            return refusal.response()

    async def health(self) -> Response:
        """200 while requests are taken, 503 while the server stops."""
        if self.app.stopping:
            return Response(json_bytes({"status": "stopping"}), 503, media_type="application/json")
        return Response(json_bytes({"status": "ok"}), media_type="application/json")

    async def show_metrics(self) -> Response:
        """What was counted, for Prometheus."""
        return Response(self.metrics.text(), media_type=self.metrics.content_type)

    # ---- requests -----------------------------------------------------------------------------------------------

    async def _guarded(self, request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        """The response to a request, whatever happens."""
        try:
            return await answer(request)
        except RefusedError as refusal:
            return refusal.response()
        except (ClientLeftError, ClientDisconnect):
            return Response(status_code=_CLIENT_LEFT)
        except Exception as error:
            log.error("%s failed", request.url.path, exc_info=error)
            return RefusedError(500, "The server failed on this request; its log says how.").response()

    def _observe(self, path: str, status: int, seconds: float) -> None:
        path = path if path in _PATHS else "other"
        self.metrics.requests.labels(path, status).inc()
        self.metrics.seconds.labels(path).observe(seconds)

    async def _segment(self, request: Request) -> Response:
        async with self._bodies.read(request) as body:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind == "multipart/form-data":
                fields = await parse_form(request, body, self.limits)
            else:
                _check_json(kind)
                fields = await self._coded(parse_json, body, SegmentRequest)
            mask_format = fields.mask_format
            worker = self._worker(fields.model)
            question = await self._coded(read_question, fields, worker.processor, self.limits)
            del body, fields  # large, and of no use while it waits
        job = Job(question)
        worker.submit(job)
        answer = await self._wait(request, worker, job, asyncio.wrap_future(job.answer))
        content = await self._coded(
            lambda: json_bytes({"model": worker.name, **segment_answer(answer.result, mask_format)})
        )
        return Response(content, media_type="application/json")

    async def _chat(self, request: Request) -> Response:
        async with self._bodies.read(request) as body:
            _check_json(request.headers.get("content-type", "").partition(";")[0].strip().lower())
            fields = await self._coded(parse_json, body, ChatRequest)
            worker = self._worker(fields.model)
            question = await self._coded(read_chat, fields, worker.processor, self.limits)
            said = ChatAnswer(fields)
            del body, fields
        if question.stream:
            return await self._streamed(request, worker, question, said)
        job = Job(question)
        worker.submit(job)
        answer = await self._wait(request, worker, job, asyncio.wrap_future(job.answer))
        return Response(await self._coded(lambda: json_bytes(said.whole(answer))), media_type="application/json")

    def _worker(self, name: str | None) -> ModelWorker:
        if name is None:
            return next(iter(self.workers.values()))
        if name not in self.workers:
            raise RefusedError(404, f"There is no model {name[:200]!r} here. There are {', '.join(self.workers)}.")
        return self.workers[name]

    async def _coded(self, work: Any, *arguments: Any) -> Any:
        """Decode or encode beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._coders, work, *arguments)

    async def _wait(self, request: Request, worker: ModelWorker, job: Job, awaited: Awaitable[Any]) -> Any:
        """What is awaited of a job, which nobody needs any more once the client is gone."""
        awaited = asyncio.ensure_future(awaited)
        left = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({awaited, left}, return_when=asyncio.FIRST_COMPLETED)
            if not awaited.done():
                self._drop(worker, job)
                raise ClientLeftError
            return awaited.result()
        finally:
            left.cancel()
            if not awaited.done():
                job.cancel()
                awaited.add_done_callback(_forget)

    def _drop(self, worker: ModelWorker, job: Job) -> None:
        job.cancel()
        worker.metrics.dropped.labels(worker.name).inc()

    # ---- streams ------------------------------------------------------------------------------------------------

    async def _streamed(self, request: Request, worker: ModelWorker, question: Question, said: ChatAnswer) -> Response:
        """The answer while it is written, as server-sent events."""
        unread = Unread(asyncio.get_running_loop(), self.limits.max_unread_bytes)

        def take(event: Any) -> None:
            if job.is_cancelled:
                raise ClientLeftError
            if (chunk := said.event_chunk(event)) is not None:
                unread.put(chunk)

        job = Job(question, take)
        job.answer.add_done_callback(lambda _: unread.end())
        worker.submit(job)
        # What fails before anything is written has a status code of its own.
        await self._wait(request, worker, job, unread.begun.wait())
        if job.answer.done():
            job.answer.result()
        return _EventResponse(self, worker, job, self._chunks(job, unread, said))

    async def _chunks(self, job: Job, unread: "Unread", said: ChatAnswer) -> AsyncIterator[bytes]:
        yield said.first_chunk()
        async for chunk in unread:
            yield chunk
        try:
            answer: Answer = job.answer.result()
        except RefusedError as refusal:
            yield server_event(refusal.body())
            return
        except ClientLeftError:
            return
        for chunk in said.last_chunks(answer):
            yield chunk


class _EventResponse(StreamingResponse):
    """Server-sent events of a job, which ends with its connection."""

    def __init__(self, service: Service, worker: ModelWorker, job: Job, chunks: AsyncIterator[bytes]):
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(chunks, media_type="text/event-stream", headers=headers)
        self._end = lambda: None if job.answer.done() else service._drop(worker, job)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        # Whichever way the framework learns of it, and also while nothing is sent.
        left = asyncio.create_task(_disconnected(Request(scope, receive)))
        left.add_done_callback(lambda _: self._end())
        try:
            await super().__call__(scope, receive, send)
        finally:
            left.cancel()


class Unread:
    """Chunks that the model's thread has made and the client has not read: bounded, and never waited for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, max_bytes: int):
        self._loop, self._max_bytes = loop, max_bytes
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        # Two counts, each of one thread.
        self._put, self._taken = 0, 0
        self.begun = asyncio.Event()

    def put(self, chunk: bytes) -> None:
        """Add a chunk, from the model's thread.

        Raises:
            RefusedError: The client reads too slowly.
        """
        if self._put - self._taken > self._max_bytes:
            raise RefusedError(408, f"More than {self._max_bytes} bytes of the answer have not been read.")
        self._put += len(chunk)
        self._loop.call_soon_threadsafe(self._add, chunk)

    def end(self) -> None:
        """No more chunks come; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it all connections
            self._loop.call_soon_threadsafe(self._add, None)

    def _add(self, chunk: bytes | None) -> None:
        self._chunks.put_nowait(chunk)
        self.begun.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (chunk := await self._chunks.get()) is not None:
            self._taken += len(chunk)
            yield chunk


async def _disconnected(request: Request) -> None:
    """Wait until the client closes its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _forget(awaited: "asyncio.Future") -> None:
    """Look at an exception that nobody is told."""
    if not awaited.cancelled():
        awaited.exception()


def _check_json(kind: str) -> None:
    if kind != "application/json":
        raise RefusedError(
            415,
            f"The content type is {kind[:60]!r}. Send application/json, or to /v1/segment also multipart/form-data.",
        )


def _model_entry(worker: ModelWorker) -> dict[str, Any]:
    entry = {"id": worker.name, "object": "model", "created": worker.created, "owned_by": "reasonseg"}
    return {**entry, "draws_masks": draws_masks(worker.processor, worker.model)}


async def _http_failure(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the form of all refusals."""
    status = getattr(error, "status_code", 500)
    what = {404: "There is no such path", 405: "This path does not take the method"}.get(status, "Refused")
    sentence = f"{what}: {request.method} {request.url.path[:200]}. /openapi.json describes all there are."
    return RefusedError(status, sentence, getattr(error, "headers", None)).response()


__all__ = ["Service", "Unread"]
