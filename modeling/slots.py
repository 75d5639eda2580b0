"""Finds `[SEG]` and `[REJ]` in a batch of ids, decides which of them are rejections, and splits results by row."""

from dataclasses import dataclass

import torch


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


__all__ = ["Slots", "find_slots", "rejected_by_argmax", "seg_probabilities"]
