"""Questions of many clients are put into batches as they come: a queue and a thread for each model."""

import concurrent.futures
import inspect
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import StoppingCriteria

from ..modeling.outputs import answer_length
from ..processing.answer_stream import AnswerEnd
from ..processing.segments import SegmentationResult
from .conversation import Conversation
from .encoded_images import EncodedImages
from .limits import RETRY_AFTER, Limits, RefusedError
from .metrics import Metrics
from .questions import Question
from .streaming import (
    answer_options,
    draws_masks,
    sequences_of,
    stream_batch,
    text_result,
)


log = logging.getLogger(__name__)


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Answer:
    """
    Args:
        result ([`SegmentationResult`]): Text and segments.
        prompt_tokens, new_tokens (`int`): Of the prompt with its images, and of the answer, which is 0 for phrases.
        is_cut (`bool`): Whether the answer ended at `max_new_tokens`.
    """

    result: SegmentationResult
    prompt_tokens: int = 0
    new_tokens: int = 0
    is_cut: bool = False


@dataclass(eq=False)
class Job:
    """
    A question on its way through the queue.

    Args:
        question ([`Question`]): What is asked.
        on_event (`Callable`, *optional*): Gets the events of a streamed answer, in the model's thread; what it raises
            ends the answer.
    """

    question: Question
    on_event: Callable[[Any], None] | None = None
    answer: "concurrent.futures.Future[Answer]" = field(default_factory=concurrent.futures.Future)
    is_cancelled: bool = False
    is_begun: bool = False
    arrived: float = field(default_factory=time.monotonic)

    def __post_init__(self):
        self.answer.set_running_or_notify_cancel()  # so that nobody but the model's thread ends it

    def cancel(self) -> None:
        """Do not answer any more: the client is gone."""
        self.is_cancelled = True

    def succeed(self, answer: Answer) -> None:
        """End with an answer, unless it has ended."""
        with suppress(concurrent.futures.InvalidStateError):
            self.answer.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """End with an error, unless it has ended."""
        with suppress(concurrent.futures.InvalidStateError):
            self.answer.set_exception(error)


class ModelWorker:
    """
    Answers questions with one model, in a thread of its own, in the order in which they come; those that come close
    to each other share a batch.

    Args:
        name (`str`): What the model is called in requests.
        model: Draws masks, by `forward` and where it writes text by `generate_with_masks`, or writes text alone by
            `generate`; in evaluation mode.
        processor: Its processor.
        limits ([`Limits`]): `max_waiting`, `max_waiting_pixels` and `max_encoded_bytes` of it.
        metrics ([`Metrics`]): Where it counts.
        max_batch_size (`int`): Questions of one batch.
        max_wait (`float`): Seconds that the first question of a batch waits for others.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        processor: Any,
        limits: Limits,
        metrics: Metrics,
        max_batch_size: int = 8,
        max_wait: float = 0.01,
    ):
        self.name, self.model, self.processor = name, model, processor
        self.limits, self.metrics = limits, metrics
        self.max_batch_size, self.max_wait = max_batch_size, max_wait
        self.created = int(time.time())
        self._encoded: EncodedImages | None = None
        if draws_masks(processor, model) and hasattr(model, "encode_image"):
            self._encoded = EncodedImages(model, limits.max_encoded_bytes)
        self._waiting: deque[Job] = deque()
        self._answering: list[Job] = []
        self._changed = threading.Condition()
        self._is_closed = False
        metrics.waiting.labels(name).set_function(lambda: len(self._waiting))
        self._thread = threading.Thread(target=self._work, name=f"model {name}", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a question into the queue.

        Raises:
            RefusedError: As many as are allowed wait already (429), or the worker is closed (503).
        """
        with self._changed:
            if self._is_closed:
                raise RefusedError(503, f"The model {self.name!r} is being put away.", RETRY_AFTER)
            pixels = job.question.num_pixels + sum(waiting.question.num_pixels for waiting in self._waiting)
            full = len(self._waiting) >= self.limits.max_waiting
            if full or (self._waiting and pixels > self.limits.max_waiting_pixels):
                raise RefusedError(
                    429,
                    f"{len(self._waiting)} requests wait for {self.name!r}, as many as are allowed. Try again later.",
                    RETRY_AFTER,
                )
            self._waiting.append(job)
            self._changed.notify()

    def give_up(self, reason: RefusedError) -> None:
        """Tell all that wait, and those who are being answered, `reason` instead; their answers end after the token
        that is being written."""
        with self._changed:
            for job in (*self._waiting, *self._answering):
                job.cancel()
                job.fail(reason)

    def close(self) -> None:
        """End the thread once it has answered what it has begun; what waits is refused."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    # ---- the thread ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while batch := self._next_batch():
            started = time.monotonic()
            self.metrics.batch_size.labels(self.name).observe(len(batch))
            self._answer(batch)
            self.metrics.model_seconds.labels(self.name).observe(time.monotonic() - started)
        for job in self._waiting:
            job.fail(RefusedError(503, "The server has stopped.", RETRY_AFTER))

    def _next_batch(self) -> list[Job] | None:
        """The next questions that may share a batch, once it is full or the first has waited enough; `None` at the
        end."""
        with self._changed:
            while not self._is_closed:
                self._drop_cancelled()
                if not self._waiting:
                    self._changed.wait()
                    continue
                first = self._waiting[0]
                key = first.question.batch_key
                batch = [job for job in self._waiting if key is not None and job.question.batch_key == key]
                batch = batch[: self.max_batch_size] or [first]
                left = first.arrived + self.max_wait - time.monotonic()
                if key is None or len(batch) == self.max_batch_size or left <= 0:
                    for job in batch:
                        self._waiting.remove(job)
                    self._answering = batch
                    return batch
                self._changed.wait(left)
        return None

    def _drop_cancelled(self) -> None:
        """A client that is gone costs nothing any more."""
        for job in [job for job in self._waiting if job.is_cancelled]:
            self._waiting.remove(job)
            job.fail(ClientLeftError())

    def _answer(self, jobs: list[Job]) -> None:
        """Answer a batch; where that fails, each alone that was told nothing yet, as one of them may be at fault."""
        try:
            with torch.inference_mode():
                if jobs[0].question.messages is not None:
                    self._converse(jobs[0])
                else:
                    self._run(jobs)
        except Exception as error:
            for job in [job for job in jobs if not job.answer.done()]:
                if len(jobs) > 1 and not job.is_begun:
                    self._answer([job])
                else:
                    job.fail(self._refusal(error))

    def _tell(self, job: Job, event: Any) -> None:
        """Hand an event to who waits for it; one who takes none any more is no longer answered."""
        if job.on_event is None or job.is_cancelled:
            return
        job.is_begun = True
        try:
            job.on_event(event)
        except Exception as error:
            job.cancel()
            job.fail(self._refusal(error))

    def _succeed(self, job: Job, answer: Answer) -> None:
        self.metrics.written_tokens.labels(self.name).inc(answer.new_tokens)
        if job.is_cancelled:
            job.fail(ClientLeftError())
        else:
            job.succeed(answer)

    def _refusal(self, error: Exception) -> BaseException:
        """An exception of a model or processor as the answer to a client."""
        if isinstance(error, (RefusedError, ClientLeftError)):
            return error
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            log.error("%s: out of memory", self.name)
            if self._encoded is not None:
                self._encoded.clear()
            return RefusedError(
                503, f"{self.name!r} has not enough memory for this request. Send a smaller one.", RETRY_AFTER
            )
        if isinstance(error, ValueError):  # worded for users throughout this package
            return RefusedError(422, str(error))
        log.error("%s failed", self.name, exc_info=error)
        return RefusedError(
            500, f"{self.name!r} failed on this request ({type(error).__name__}); the server's log says how."
        )

    # ---- answers ------------------------------------------------------------------------------------------------

    def _converse(self, job: Job) -> None:
        """Answer a conversation in the model's own chat template, which shares no batch."""
        question, row = job.question, _OnlyRow(self, job)
        thresholds = {"mask_threshold": question.mask_threshold, "reject_threshold": question.reject_threshold}
        options: dict[str, Any] = {"max_new_tokens": self.longest(question), "stopping_criteria": [row]}
        options |= question.sampling or {"do_sample": False}
        with _sampling(question):
            conversation, text = Conversation.of_messages(
                self.model, self.processor, list(question.messages or ()), **thresholds
            )
            if job.on_event is None:
                self._succeed(job, row.answer(conversation.ask(text, **options)))
                return
            with closing(conversation.stream(text, **options)) as events:
                for event in events:
                    self._tell(job, event)
                    if isinstance(event, AnswerEnd):
                        self._succeed(job, row.answer(event.result))  # now, not once the model is at rest

    def _run(self, jobs: Sequence[Job]) -> None:
        """Answer questions of one kind about one image each in one batch."""
        questions = [job.question for job in jobs]
        images = {question.images[0].key: question.images[0].pixels for question in questions}
        arguments: dict[str, Any] = {"images": list(images.values())}
        draws = draws_masks(self.processor, self.model)
        if not draws:  # transformers' models take one image per row
            arguments["images"] = [question.images[0].pixels for question in questions]
        elif len(images) < len(questions):
            index_of = {key: index for index, key in enumerate(images)}
            arguments["image_index"] = [index_of[question.images[0].key] for question in questions]
        kind = "text" if questions[0].phrases is None else "phrases"
        arguments[kind] = [question.text if kind == "text" else list(question.phrases) for question in questions]
        inputs = self._inputs(**arguments)
        rows, lengths = getattr(inputs, "rows", None), [0] * len(questions)
        for row, length in enumerate(inputs["attention_mask"].sum(-1).tolist()):
            # IVM reads each phrase of a question in a row of its own.
            asked = row if rows is None else getattr(rows[row], "request", row)
            lengths[asked] = max(lengths[asked], length)
        asks = kind == "text" or inputs.awaits_answers
        writes = asks and (not draws or hasattr(self.model, "generate_with_masks"))
        room = [self.room(length, question) for length, question in zip(lengths, questions, strict=True)]
        rejection, prompt_length = questions[0].reject_threshold, inputs["input_ids"].shape[1]
        cache = None
        if self._encoded is not None:
            pixels, first = list(images.values()), arguments[kind][0]
            cache = self._encoded.take(
                list(images),
                inputs,
                lambda some: self._inputs([pixels[i] for i in some], **{kind: [first] * len(some)}),
            )
        # What is read of a prompt is kept for no other, unless others of the batch are about its image.
        sharing = {} if cache is None or len(images) < len(questions) else {"share_prefixes": False}
        if writes:
            # Each row ends at its own length, so that its answer is what it would be alone.
            options = {"max_new_tokens": max(room), "do_sample": False, **questions[0].sampling, **sharing}
            options["stopping_criteria"] = [_EndOfRows(jobs, room, prompt_length)]
            with _sampling(questions[0]):
                if any(job.on_event is not None for job in jobs):
                    self._stream(jobs, inputs, lengths, room, {**options, "image_cache": cache})
                    output = None
                else:
                    options = answer_options(self.model, draws, rejection, cache, options)
                    output = (self.model.generate_with_masks if draws else self.model.generate)(**inputs, **options)
        else:
            options = {"image_cache": cache, "reject_threshold": rejection}
            if "share_prefixes" in inspect.signature(self.model.forward).parameters:
                options |= sharing
            output = self.model(**inputs, **{name: value for name, value in options.items() if value is not None})
        if self._encoded is not None and cache is not None:
            self._encoded.keep(list(images), cache)
        if output is None:
            return
        rows, written = [], [(0, False)] * len(questions)
        if writes:
            rows = sequences_of(output)[:, prompt_length:].tolist()
            ends = (self.end_tokens, self.pad_token)
            written = [count_tokens(row, longest, *ends) for row, longest in zip(rows, room, strict=True)]
        if draws:
            thresholds = {"mask_threshold": questions[0].mask_threshold}
            results = self.processor.post_process_segmentation(output, inputs, **thresholds)
        else:
            results = [
                text_result(self.processor, row[:count], question.images[0].pixels)
                for row, (count, _), question in zip(rows, written, questions, strict=True)
            ]
        for job, result, length, counted in zip(jobs, results, lengths, written, strict=True):
            self._succeed(job, Answer(result, length, *counted))

    def _stream(
        self, jobs: Sequence[Job], inputs: Any, lengths: list[int], room: list[int], options: dict[str, Any]
    ) -> None:
        """Answer questions side by side, of which some are told what is written while it is."""
        first, written = jobs[0].question, [[] for _ in jobs]

        def has_ended(row: int, ids: list[int]) -> bool:
            written[row] = ids
            return len(ids) >= room[row] or ids[-1] in self.end_tokens or jobs[row].is_cancelled

        events = stream_batch(
            *(self.model, self.processor, inputs, has_ended, first.mask_threshold, first.reject_threshold),
            images=[job.question.images[0].pixels for job in jobs],
            **options,
        )
        with closing(events):
            for row, event in events:
                self._tell(jobs[row], event)
                if isinstance(event, AnswerEnd):  # now, not once the longest answer is complete
                    counted = count_tokens(written[row], room[row], self.end_tokens, self.pad_token)
                    self._succeed(jobs[row], Answer(event.result, lengths[row], *counted))

    def longest(self, question: Question) -> int:
        """How many tokens the answer may have at most, where the prompt leaves as many."""
        if question.max_new_tokens is not None:
            return question.max_new_tokens
        return min(answer_length(self.model, None), self.limits.max_new_tokens)

    def _inputs(self, images: list[Any], **arguments: Any) -> Any:
        """What the processor makes of them, on the model's device."""
        return self.processor(images=images, **arguments, return_tensors="pt").to(self.model.device)

    def room(self, prompt_tokens: int, question: Question) -> int:
        """How many tokens the answer may have: as many as were asked for, or for which the model has positions.

        Raises:
            RefusedError: The prompt leaves none (422).
        """
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if positions is None:
            return self.longest(question)
        if prompt_tokens >= positions:
            raise RefusedError(
                422,
                f"The prompt has {prompt_tokens} tokens with its images, and {self.name!r} can read {positions} with "
                "the answer. Shorten the text.",
            )
        return min(self.longest(question), positions - prompt_tokens)

    @property
    def pad_token(self) -> int | None:
        """`int`, *optional*: What fills a row up that has ended."""
        return getattr(self.model.generation_config, "pad_token_id", None)

    @property
    def end_tokens(self) -> set[int]:
        """`set[int]`: Those that end an answer."""
        given = getattr(self.model.generation_config, "eos_token_id", None)
        return set() if given is None else {given} if isinstance(given, int) else set(given)


class _EndOfRows(StoppingCriteria):
    """Ends the row of each job at its own length, or when its client is gone."""

    def __init__(self, jobs: Sequence[Job], lengths: Sequence[int], prompt_length: int):
        self.jobs, self.lengths, self.prompt_length = jobs, lengths, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs) -> torch.BoolTensor:
        written = input_ids.shape[1] - self.prompt_length
        ended = [job.is_cancelled or written >= length for job, length in zip(self.jobs, self.lengths, strict=True)]
        return torch.tensor(ended, device=input_ids.device)


class _OnlyRow(StoppingCriteria):
    """Sees the only row of a generation; ends it when its client is gone."""

    def __init__(self, worker: ModelWorker, job: Job):
        self.worker, self.job = worker, job
        self.prompt_tokens, self.room = 0, worker.longest(job.question)
        self.written: list[int] = []

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs) -> torch.BoolTensor:
        if not self.written:
            self.prompt_tokens = input_ids.shape[1] - 1
            self.room = self.worker.room(self.prompt_tokens, self.job.question)
        self.written = input_ids[0, self.prompt_tokens :].tolist()
        is_ended = self.job.is_cancelled or len(self.written) >= self.room
        return torch.tensor([is_ended], device=input_ids.device)

    def answer(self, result: SegmentationResult) -> Answer:
        """The answer that was seen."""
        return Answer(result, self.prompt_tokens, *count_tokens(self.written, self.room, self.worker.end_tokens))


# torch draws for all threads from one place, so that one model at a time samples.
_SAMPLING = threading.Lock()


@contextmanager
def _sampling(question: Question) -> Iterator[None]:
    """Draw from the question's seed, where it samples."""
    if not question.sampling:
        yield
        return
    with _SAMPLING:
        if question.seed is not None:
            torch.manual_seed(question.seed)
        yield


def count_tokens(
    ids: Sequence[int], limit: int, end_tokens: set[int], pad_token: int | None = None
) -> tuple[int, bool]:
    """Tokens of an answer whose row may be padded, its end included, and whether it was cut off at `limit`."""
    own = ids[:limit]
    end = next((index for index, token in enumerate(own) if token in end_tokens), None)
    if end is not None:
        return end + 1, False
    # What a word ended that is no token has no end token before its padding.
    count = len(own)
    while count and own[count - 1] == pad_token:
        count -= 1
    return count, count == limit


__all__ = ["Answer", "ClientLeftError", "Job", "ModelWorker", "count_tokens"]
