"""Where `[SEG]` and `[REJ]` stand in a batch of ids, and the states that predict them, for any language model."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import nn
from transformers import LogitsProcessor


@dataclass
class Slots:
    """
    All slots of a batch, in reading order, row after row.

    Args:
        rows, positions, token_ids (`torch.LongTensor` of shape `(slots,)`): Where each stands and what it is.
        num_rows (`int`): Number of rows of the batch, also those without a slot.
    """

    rows: torch.LongTensor
    positions: torch.LongTensor
    token_ids: torch.LongTensor
    num_rows: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def counts(self) -> list[int]:
        """Slots per row."""
        return torch.bincount(self.rows, minlength=self.num_rows).tolist()

    def per_row(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Splits `values`, one per slot along dimension 0, into one tensor per row."""
        if torch.compiler.is_exporting():  # without a number that is not known then
            return [values[self.rows == row] for row in range(self.num_rows)]
        return list(values.split(self.counts))


def find_slots(
    input_ids: torch.LongTensor,
    slot_token_ids: list[int],
    attention_mask: torch.Tensor | None = None,
    start: int = 1,
) -> Slots:
    """
    Args:
        input_ids (`torch.LongTensor` of shape `(rows, sequence_length)`): Ids, image placeholders expanded.
        slot_token_ids (`list[int]`): Ids of `[SEG]` and `[REJ]`.
        attention_mask (`torch.Tensor` of shape `(rows, cached_length + sequence_length)`, *optional*):
            0 for padding; longer than `input_ids` where a key-value cache holds what came before.
        start (`int`): First position that may hold a slot; the first token of a sequence has no predecessor.
    """
    is_slot = torch.isin(input_ids, torch.tensor(slot_token_ids, device=input_ids.device, dtype=input_ids.dtype))
    if attention_mask is not None:
        is_slot &= attention_mask[:, -input_ids.shape[1] :].bool()
    is_slot[:, :start] = False
    rows, positions = is_slot.nonzero(as_tuple=True)
    if torch.compiler.is_exporting():
        torch._check(rows.shape[0] > 0)  # a graph that draws; one for no slot would be another
    return Slots(rows, positions, input_ids[rows, positions], num_rows=len(input_ids))


def seg_probabilities(slot_logits: torch.FloatTensor, seg_id: int, rej_id: int | None) -> torch.FloatTensor:
    """Probability of `[SEG]` against `[REJ]` from the logits `(slots, vocab_size)` that predict each slot."""
    if rej_id is None:
        return torch.ones(slot_logits.shape[:1], device=slot_logits.device)
    return slot_logits[:, [seg_id, rej_id]].float().softmax(-1)[:, 0]


def rejected_by_argmax(
    slot_logits: torch.FloatTensor, token_ids: torch.LongTensor, seg_id: int, rej_id: int | None
) -> torch.BoolTensor:
    """
    GSVA's decision on a given answer (model/modeling_lisa_gsva.py): at a `[SEG]` the target is absent unless the most
    probable token is `[SEG]`; at a `[REJ]` it is absent only if the most probable token is `[REJ]`.
    """
    if rej_id is None:
        return torch.zeros(slot_logits.shape[:1], dtype=torch.bool, device=slot_logits.device)
    best = slot_logits.argmax(-1)
    return torch.where(token_ids == seg_id, best != seg_id, best == rej_id)


# ---- the states that predict slots ----------------------------------------------------------------------------------

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


__all__ = [
    "HeadInputRecorder",
    "SlotStateCollector",
    "Slots",
    "find_slots",
    "record_head_inputs",
    "rejected_by_argmax",
    "seg_probabilities",
]
