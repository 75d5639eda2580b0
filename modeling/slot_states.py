"""Reads the state that predicts each token where any model computes it: at the input of its output embedding."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn
from transformers import LogitsProcessor


# (output embedding, recorder) of the call that runs in this thread. An assistant model of the same class has another
# output embedding, so its states never reach the recorder.
_ACTIVE: ContextVar[tuple | None] = ContextVar("reasonseg_active_recorder", default=None)


@torch.compiler.disable
def _record_head_input(head: nn.Module, args: tuple) -> None:
    active = _ACTIVE.get()
    if active is not None and active[0] is head:
        active[1].observe(args[0])


class HeadInputRecorder:
    """
    Keeps the last input of the output embedding: the final hidden states, after the last normalisation.

    Attributes:
        states (`torch.FloatTensor` of shape `(batch_size, positions, hidden_size)`): `None` before the first pass.
    """

    def __init__(self):
        self.states = None

    def observe(self, states: torch.Tensor) -> None:
        self.states = states


class SlotStateCollector(LogitsProcessor, HeadInputRecorder):
    """
    During generation, keeps for every sequence length p the states that predict the token at position p.

    As a logits processor it is called once per predicted position, with the ids so far; that aligns states with
    tokens whatever the decoding loop does in between (chunked prefill, several candidates at once, rejected ones).
    Costs `(batch_size, hidden_size)` numbers per token.
    """

    def __init__(self):
        super().__init__()
        self._by_length: dict[int, torch.Tensor] = {}
        self._fresh = False
        self._chunk_start = 0

    def observe(self, states: torch.Tensor) -> None:
        super().observe(states)
        self._fresh = True

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        length = input_ids.shape[1]
        if self._fresh:
            # A model that ignores logits_to_keep hands over the whole prompt; only its last position predicts.
            whole_prompt = self.states.shape[1] >= length
            self._chunk_start = length - (self.states.shape[1] - 1 if whole_prompt else 0)
            self._fresh = False
        # An assistant that proposes tokens runs the same logits processors on its own scores; they belong to no state
        # of this model, or to one that the verifying pass replaces.
        offset = length - self._chunk_start
        if self.states is not None and 0 <= offset < self.states.shape[1]:
            self._by_length[length] = self.states[:, offset].detach()
        return scores

    def states_at(self, rows: torch.LongTensor, positions: torch.LongTensor) -> torch.FloatTensor:
        """
        Args:
            rows (`torch.LongTensor` of shape `(slots,)`): Row of the running batch (the beam's, for beams).
            positions (`torch.LongTensor` of shape `(slots,)`): Positions of the predicted tokens in the sequence.

        Returns:
            `torch.FloatTensor` of shape `(slots, hidden_size)`.

        Raises:
            RuntimeError: If the model predicted one of the tokens without calling its output embedding.
        """
        if missing := sorted(set(positions.tolist()) - self._by_length.keys()):
            raise RuntimeError(
                f"No state was seen for the tokens at positions {missing}: the vision-language model predicted them "
                "without calling `get_output_embeddings()`, or with a decoding method that skips logits processors."
            )
        return torch.stack(
            [self._by_length[position][row] for row, position in zip(rows.tolist(), positions.tolist(), strict=True)]
        )


@contextmanager
def record_head_inputs(model: nn.Module, recorder: HeadInputRecorder) -> Iterator[HeadInputRecorder]:
    """
    While open, `recorder` sees every input of `model`'s output embedding that this thread computes.

    The hook is registered once per output embedding and never removed, so that concurrent calls do not disturb each
    other; the embedding is looked up per call because resizing and adapters replace it.

    Raises:
        ValueError: If the model has no output embedding.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(model).__name__} has no output embedding, so it cannot predict [SEG] tokens.")
    if _record_head_input not in head._forward_pre_hooks.values():
        head.register_forward_pre_hook(_record_head_input)
    token = _ACTIVE.set((head, recorder))
    try:
        yield recorder
    finally:
        _ACTIVE.reset(token)


__all__ = ["HeadInputRecorder", "SlotStateCollector", "record_head_inputs"]
