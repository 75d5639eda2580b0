"""Generation that is read while it goes on, and what is computed beside it: threads that see torch as their caller."""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from transformers import StoppingCriteria
from transformers.utils import ModelOutput

from .outputs import ReasoningSegmentationOutput


# ---- computing in a thread ------------------------------------------------------------------------------------------


class TorchModes:
    """
    What torch keeps per thread, as the thread that makes this has it: whether gradients are computed, autocast, and on
    an Nvidia GPU the stream of work.

    Args:
        device (`torch.device`): Where will be computed.
        beside (`bool`): On an Nvidia GPU, compute on a stream of its own, after what was started before.
    """

    def __init__(self, device: torch.device, beside: bool = False):
        self.inference, self.grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        kinds = [kind for kind in {"cpu", device.type} - {"meta"} if torch.is_autocast_enabled(kind)]
        self.autocast = {kind: torch.get_autocast_dtype(kind) for kind in kinds}
        self.caches_casts = torch.is_autocast_cache_enabled()
        self.stream = None
        if device.type == "cuda":
            self.stream = torch.cuda.current_stream(device)
            if beside:
                callers, self.stream = self.stream, torch.cuda.Stream(device)
                self.stream.wait_stream(callers)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While open, this thread computes so."""
        with ExitStack() as modes:
            modes.enter_context(torch.inference_mode(self.inference))
            modes.enter_context(torch.set_grad_enabled(self.grad))
            for kind, dtype in self.autocast.items():
                modes.enter_context(torch.autocast(kind, dtype, cache_enabled=self.caches_casts))
            if self.stream is not None:
                modes.enter_context(torch.cuda.stream(self.stream))
            yield


class Beside:
    """
    A function that runs in a thread of its own, from now on.

    Args:
        function (`Callable[[], Any]`): What to compute.
        modes ([`TorchModes`]): How.
    """

    def __init__(self, function: Callable[[], Any], modes: TorchModes):
        self._function, self._modes = function, modes
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="reasonseg", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._modes.applied():
                self._result = self._function()
        except BaseException as error:  # belongs to who waits for the result
            self._error = error

    def join(self) -> None:
        """Waits for the end; what went wrong stays untold."""
        self._thread.join()

    def result(self) -> Any:
        """Waits for what the function returns; what it raised is raised here."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._result

    def hand_over(self) -> None:
        """Waits for the end, and lets this thread's work use the tensors of the result, whatever stream made them."""
        self.join()
        if self._modes.stream is not None:
            here = torch.cuda.current_stream(self._modes.stream.device)
            here.wait_stream(self._modes.stream)
            for tensor in self._result or ():
                tensor.record_stream(here)


# ---- slots as they are written --------------------------------------------------------------------------------------


def takes_slots(streamer: Any) -> bool:
    """Whether a streamer of `generate` wants every mask as soon as its slot is written."""
    return hasattr(streamer, "put_slot")


class SlotStreamer:
    """
    Hands the tokens of answers on, one of each row at a time, and after slot tokens what is drawn for them.

    Args:
        streamer: Has `put` and `end`, as streamers of transformers, and `put_slot(output)`.
        slot_token_ids (`list[int]`): The tokens that open a slot.
        draw (`Callable[[int, dict[int, int]], ReasoningSegmentationOutput]`):
            (position, token of each row that wrote a slot there) -> the output of these slots.
        waits (`bool`): A slot can be drawn once the token after it is known; it is still handed on before that.
    """

    def __init__(
        self, streamer: Any, slot_token_ids: list[int], draw: Callable[[int, dict[int, int]], Any], waits: bool = False
    ):
        self.streamer, self.slot_token_ids, self.draw, self.waits = streamer, set(slot_token_ids), draw, waits
        self.slots: list[ReasoningSegmentationOutput] = []
        self._shape: tuple[int, int] | None = None
        self._waiting: tuple[int, dict[int, int]] | None = None

    def put(self, value: torch.Tensor) -> None:
        if self._shape is None:  # the prompts come first
            self._shape = (value.shape[0], value.shape[1])
            self.streamer.put(value)
            return
        num_rows, length = self._shape
        for token_ids in value.reshape(num_rows, -1).T:  # decoding with an assistant hands over several of its row
            self._put_waiting()
            self.streamer.put(token_ids)
            written = {row: token for row, token in enumerate(token_ids.tolist()) if token in self.slot_token_ids}
            if written:
                self._waiting = (length, written)
                if not self.waits:
                    self._put_waiting()
            length += 1
        self._shape = (num_rows, length)

    def _put_waiting(self) -> None:
        if self._waiting is not None:
            self.slots.append(self.draw(*self._waiting))
            self.streamer.put_slot(self.slots[-1])
            self._waiting = None

    def end(self) -> None:
        self.streamer.end()


# ---- an iterator over a generation ----------------------------------------------------------------------------------


@dataclass
class StreamStep:
    """
    What happened in a generation; one of its fields is set, beside `row`.

    Args:
        row (`int`): Of the batch, in which it happened; 0 for the output, which is that of all.
        token_ids (`list[int]`, *optional*): Tokens that were written.
        slot ([`ReasoningSegmentationOutput`], *optional*): What was drawn for the last token.
        output (*optional*): What the generation returned, at its end.
    """

    row: int = 0
    token_ids: list[int] | None = None
    slot: ReasoningSegmentationOutput | None = None
    output: ModelOutput | torch.Tensor | None = None


class _QueueStreamer:
    """Puts what a generation writes into a queue, each row's apart."""

    takes_rows = True

    def __init__(self, steps: SimpleQueue):
        self.steps = steps
        self._num_rows: int | None = None
        self._last: list[Callable[[], None]] = []

    def put(self, value: torch.Tensor) -> None:
        if self._num_rows is None:  # the prompts come first
            self._num_rows = len(value)
            return
        for row, token_ids in enumerate(value.reshape(self._num_rows, -1).tolist()):
            self.steps.put(StreamStep(row, token_ids=token_ids))

    def put_slot(self, slot: ReasoningSegmentationOutput) -> None:
        for row, positions in enumerate(slot["slot_positions"]):
            if len(positions):
                alone = {name: [values[row]] for name, values in slot.items()}
                self.steps.put(StreamStep(row, slot=ReasoningSegmentationOutput(**alone)))

    def end(self) -> None:
        """The output follows."""

    def finish_later(self, last: Callable[[], None]) -> None:
        """Takes what the output need not wait for."""
        self._last.append(last)

    def finish(self) -> None:
        """Does it."""
        for last in self._last:
            last()


class _StoppedByReader(StoppingCriteria):
    """Stops once nobody reads any more."""

    def __init__(self):
        self.event = threading.Event()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device, dtype=torch.bool)


def stream_generation(
    generate: Callable[..., Any], device: torch.device, stopping_criteria: list | None = None
) -> Generator[StreamStep, None, None]:
    """
    Runs a generation in a thread of its own, from the first step that is asked for.

    Args:
        generate (`Callable`): Takes `streamer` and `stopping_criteria`, as `generate` of transformers.
        device (`torch.device`): Where the model is.
        stopping_criteria (`list`, *optional*): What else may end the generation.

    Returns:
        `Generator[StreamStep]`: Every token, every slot after its token, and at the end the output. A row that ended
        before others goes on with padding. Closing the iterator stops the generation after the token that is being
        written and waits for that; what the generation raises is raised here.
    """
    return _steps(generate, TorchModes(device), list(stopping_criteria or []))


def _steps(
    generate: Callable[..., Any], modes: TorchModes, stopping_criteria: list
) -> Generator[StreamStep, None, None]:
    steps: SimpleQueue = SimpleQueue()
    stopped = _StoppedByReader()

    def run() -> None:
        streamer = _QueueStreamer(steps)
        try:
            output = generate(streamer=streamer, stopping_criteria=[*stopping_criteria, stopped])
            steps.put(StreamStep(output=output))
        finally:
            streamer.finish()
            steps.put(None)

    generation = Beside(run, modes)
    try:
        while (step := steps.get()) is not None:
            yield step
        generation.result()
    finally:
        stopped.event.set()
        generation.join()


def check_one_answer(num_rows: int, num_beams: int | None, num_return_sequences: int | None) -> None:
    """A ValueError for a generation that cannot be read while it goes on."""
    if num_rows != 1 or (num_return_sequences or 1) != 1:
        raise ValueError(
            f"{num_rows} rows with {num_return_sequences or 1} answers each were asked for, but one answer is read "
            "while it is written. Stream each row by itself or all by stream_batch_with_masks, or call "
            "generate_with_masks without a streamer."
        )
    if (num_beams or 1) != 1:
        raise ValueError(
            f"num_beams is {num_beams}: which beam is the answer is known at its end only. Stream with num_beams=1, "
            "or call generate_with_masks without a streamer."
        )
