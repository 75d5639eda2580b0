"""Batches of unequal rows of ids: labels, truncation, padding."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import PaddingStrategy


IGNORED_LABEL = -100
# What fills the rows of everything that the tokenizer's own `pad` does not know.
_FILL = {"labels": IGNORED_LABEL, "offset_mapping": (0, 0)}

TokenRows = dict[str, list[list[Any]]]


def as_list(values: Any) -> list:
    """Rows, ids or numbers as Python lists, whatever they came in."""
    return values.tolist() if isinstance(values, (torch.Tensor, np.ndarray)) else list(values)


def label_answers(
    tokenizer: PreTrainedTokenizerBase,
    conversation: str,
    answers: Sequence[tuple[int, int]],
    input_ids: list[int],
    **tokenizer_kwargs,
) -> list[int]:
    """
    Labels of the answers, end markers included; everything else is -100.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A fast tokenizer, which knows where tokens stand in the text.
        conversation (`str`): The prompt with its answers, image tokens not expanded.
        answers (`Sequence[tuple[int, int]]`): Character ranges of the answers.
        input_ids (`list[int]`): Ids of the same prompt with expanded image tokens, not truncated.

    Returns:
        `list[int]`: One label per id.

    Raises:
        ValueError: If an answer stands in front of the image, so that its place among the ids is unknown.
    """
    encoded = tokenizer(conversation, return_offsets_mapping=True, **tokenizer_kwargs)
    shift = len(input_ids) - len(encoded["input_ids"])
    labels = [IGNORED_LABEL] * len(input_ids)
    for start, stop in answers:
        # Tokens without a width (the space that LLaMA tokenizers put behind an added token) belong to what surrounds
        # them, hence the first and the last token of the answer rather than each on its own.
        inside = [
            place
            for place, (token_start, token_stop) in enumerate(encoded["offset_mapping"])
            if token_start < stop and token_stop > start and token_stop > token_start
        ]
        if not inside:
            continue
        for place in range(inside[0], inside[-1] + 1):
            label = encoded["input_ids"][place]
            if input_ids[place + shift] != label:
                raise ValueError(
                    "An answer stands in front of the image, so it cannot be labelled. Put the image into the first "
                    "message."
                )
            labels[place + shift] = label
    return labels


def truncate(rows: TokenRows, max_length: int, side: str) -> TokenRows:
    """Cuts every row to at most `max_length` tokens; `side` is the side that loses them."""
    cut = slice(None, max_length) if side == "right" else slice(-max_length, None)
    return {name: [row[cut] for row in values] for name, values in rows.items()}


def check_nothing_cut(
    before: TokenRows, after: TokenRows, watched: dict[str, Callable[[list[int]], int]], max_length: int
) -> None:
    """
    Args:
        before, after: Rows before and after truncation.
        watched (`dict[str, Callable]`): Counts tokens that must survive, by their name.

    Raises:
        ValueError: If truncation removed some; with both counts.
    """
    for name, count in watched.items():
        old, new = [[count(row) for row in rows["input_ids"]] for rows in (before, after)]
        if old != new:
            raise ValueError(
                f"Truncation to max_length={max_length} cut off {name} tokens: the rows have {old}, {new} are left. "
                f"The longest row has {max(map(len, before['input_ids']))} tokens; raise max_length or shorten the "
                "text."
            )


def pad(
    tokenizer: PreTrainedTokenizerBase,
    rows: TokenRows,
    padding: bool | str | PaddingStrategy,
    max_length: int | None,
    pad_to_multiple_of: int | None,
    side: str,
) -> TokenRows:
    """Pads every row on `side`; `padding` and the rest as in the tokenizer's own call."""
    lengths = [len(row) for row in rows["input_ids"]]
    known = {"input_ids", "attention_mask", "token_type_ids", "special_tokens_mask"}
    padded = tokenizer.pad(
        {name: values for name, values in rows.items() if name in known},
        padding=padding,
        max_length=max_length,
        pad_to_multiple_of=pad_to_multiple_of,
        padding_side=side,
        return_attention_mask="attention_mask" in rows,
    )
    result = dict(padded)
    for name in rows.keys() - result.keys():
        result[name] = []
        for row, length, padded_ids in zip(rows[name], lengths, padded["input_ids"], strict=True):
            filling = [_FILL.get(name, 0)] * (len(padded_ids) - length)
            result[name].append([*row, *filling] if side == "right" else [*filling, *row])
    return {name: result[name] for name in rows}


__all__ = ["IGNORED_LABEL", "as_list", "check_nothing_cut", "label_answers", "pad", "truncate"]
