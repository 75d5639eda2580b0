"""Which steps of a model wrote the tokens of an answer."""

from collections.abc import Sequence

import torch


def check_ranges(answer_ranges: torch.LongTensor, input_ids: torch.LongTensor) -> list[tuple[int, int]]:
    """
    Args:
        answer_ranges (`torch.LongTensor` of shape `(rows, 2)`): First position of each answer, and behind its last.
        input_ids (`torch.LongTensor` of shape `(rows, length)`): The prompts with their answers.

    Raises:
        ValueError: If they do not match.
    """
    ranges = [(int(start), int(stop)) for start, stop in answer_ranges]
    if len(ranges) != len(input_ids) or any(not 1 <= start <= stop <= input_ids.shape[1] for start, stop in ranges):
        raise ValueError(
            f"answer_ranges {ranges} must name one range per row ({len(input_ids)}) behind its first position and "
            f"within the {input_ids.shape[1]} of input_ids."
        )
    return ranges


def predicting_positions(ranges: list[tuple[int, int]]) -> torch.LongTensor:
    """Positions that predict each answer's tokens, `(rows, longest answer)`; short rows are filled with 0."""
    longest = max(1, max(stop - start for start, stop in ranges))
    positions = torch.zeros(len(ranges), longest, dtype=torch.long)
    for row, (start, stop) in enumerate(ranges):
        positions[row, : stop - start] = torch.arange(start - 1, stop - 1)
    return positions


def stop_ids_of(eos_token_id: int | Sequence[int] | torch.Tensor | None) -> set[int]:
    """The end tokens of a generation, in whatever form it takes them."""
    if eos_token_id is None:
        return set()
    if isinstance(eos_token_id, torch.Tensor):
        eos_token_id = eos_token_id.tolist()
    return {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id)


def answer_ids(new_ids: list[int], stop_ids: set[int], pad_id: int | None) -> list[int]:
    """
    The ids a row has written, its end token included: that one has a map too, and takes part in the mean, as in the
    released code. What fills the row up behind it belongs to no step of this row.
    """
    for place, token_id in enumerate(new_ids):
        if token_id in stop_ids:
            return new_ids[: place + 1]
    while new_ids and new_ids[-1] == pad_id:
        new_ids = new_ids[:-1]
    return new_ids


__all__ = ["answer_ids", "check_ranges", "predicting_positions", "stop_ids_of"]
