"""Key-value caches: the name under which a model takes one, and prompts that continue what was read before."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from transformers import DynamicCache, DynamicLayer, PreTrainedModel

from .outputs import find_cache, without_placeholder


# Tokens for which a cache has room when it grows: as much of it is copied for each of them as one in so many takes.
_ROOM = 16

# transformers 5.24 renamed the argument; a model takes one of them.
CACHE_NAMES = ("cache", "past_key_values")


def with_cache_named_for(vlm: PreTrainedModel, kwargs: dict) -> dict:
    """`kwargs` with the key-value cache, given under either of its names, under the one that `vlm` takes."""
    given = [kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None]
    if len(given) > 1:
        raise ValueError("`cache` and `past_key_values` are two names of one argument; give one of them.")
    others = {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}
    accepted = inspect.signature(vlm.prepare_inputs_for_generation).parameters if given else {}
    return {**others, **{name: given[0] for name in CACHE_NAMES if name in accepted}}


def can_continue(vlm: PreTrainedModel) -> bool:
    """
    Whether a row of `vlm` may continue what another row has read: encoded images and position ids are inputs, no
    token looks at later ones (a model that does makes masks of its own), and every layer caches plain keys and values
    of all tokens: no sliding window, no recurrent state.
    """
    parameters = inspect.signature(vlm.forward).parameters
    layers = DynamicCache(config=vlm.config.get_text_config(decoder=True)).layers
    return (
        {"mm_encoder_outputs", "position_ids"} <= set(parameters)
        and not hasattr(vlm, "create_masks_for_generate")
        and all(type(layer) is DynamicLayer for layer in layers)
    )


@dataclass
class _Room:
    """
    Keys and values `(rows, heads, columns or more, head_dim)`, and what of them is written: tensors that show it, and
    that copies of a layer have in common.
    """

    memory: tuple[torch.Tensor, ...]
    written: tuple[torch.Tensor, ...]

    @classmethod
    def behind(cls, parts: tuple[torch.Tensor, ...]) -> "_Room":
        """Room for more than `parts`, which are copied."""
        size = parts[0].shape[-2] + 1 + _ROOM
        memory = tuple(part.new_empty(*part.shape[:-2], size, part.shape[-1]) for part in parts)
        return cls(memory, ()).write(0, parts)

    def write(self, start: int, parts: tuple[torch.Tensor, ...]) -> "_Room":
        end = start + parts[0].shape[-2]
        for memory, part in zip(self.memory, parts, strict=True):
            memory[..., start:end, :] = part
        self.written = tuple(memory[..., :end, :] for memory in self.memory)
        return self

    def can_follow(self, parts: tuple[torch.Tensor, ...]) -> bool:
        """
        Whether one more may be written behind `parts`. They are not what was written last where rows were chosen or
        columns taken away since, or a copy of the layer has gone on.
        """
        return (
            all(part is written for part, written in zip(parts, self.written, strict=True))
            and self.memory[0].shape[-2] > parts[0].shape[-2]
            and (torch.is_inference_mode_enabled() or not self.memory[0].is_inference())
        )


class RoomyLayer(DynamicLayer):
    """Given keys and values `(rows, heads, columns, head_dim)`, and those of tokens that follow one by one, most of
    which are only written behind them: transformers' own layer copies all of it with every token."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._room: _Room | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        parts, new = (self.keys, self.values), (key_states, value_states)
        # What gradients were computed with must not be written to, and what is traced is to be transformers' own.
        is_step = (
            self.is_initialized
            and key_states.shape[-2] == 1
            and all(part.dtype == states.dtype for part, states in zip(parts, new, strict=True))
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
        )
        if not is_step:
            self._room = None
            return super().update(key_states, value_states, *args, **kwargs)
        if self._room is None or not self._room.can_follow(parts):
            self._room = _Room.behind(parts)
        self.keys, self.values = self._room.write(parts[0].shape[-2], new).written
        return self.keys, self.values


def cache_of(layers: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> DynamicCache:
    """A cache that holds these keys and values themselves, not copies."""
    cache = DynamicCache()
    cache.layers = [RoomyLayer(*layer) for layer in layers]
    return cache


@dataclass
class ReadTokens:
    """
    Rows of tokens, each from the first column on, and what a language model keeps of them once it has read them.

    Args:
        ids (`torch.LongTensor` of shape `(rows, columns)`): -1 after the end of a row.
        position_ids (`torch.LongTensor` of shape `(..., rows, columns)`): As the model takes them.
        layers (`list[tuple[torch.Tensor, torch.Tensor]]`, *optional*):
            Keys and values of each layer, `(rows, heads, columns or more, head_dim)`.
        states (`torch.FloatTensor` of shape `(rows, columns or more, hidden_size)`, *optional*):
            What entered the output embedding, or the norm before it.
    """

    ids: torch.LongTensor
    position_ids: torch.LongTensor
    layers: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    states: torch.FloatTensor | None = None

    @property
    def lengths(self) -> torch.LongTensor:
        return (self.ids >= 0).sum(1)

    def rows(self, index: torch.LongTensor, with_kept: bool = True) -> "ReadTokens":
        """Other rows, each any number of times."""
        layers = states = None
        if with_kept and self.layers is not None:
            layers = [tuple(part[index.to(part.device)] for part in layer) for layer in self.layers]
        if with_kept and self.states is not None:
            states = self.states[index.to(self.states.device)]
        return ReadTokens(self.ids[index], self.position_ids[..., index, :], layers, states)

    def cut(self, lengths: torch.LongTensor) -> "ReadTokens":
        """The beginnings of the rows."""
        columns = torch.arange(int(lengths.max()), device=self.ids.device)
        ids = self.ids[:, : len(columns)].masked_fill(columns >= lengths[:, None], -1)
        return ReadTokens(ids, self.position_ids[..., : len(columns)], self.layers, self.states)

    def common_lengths(self, other: "ReadTokens") -> torch.LongTensor:
        """How many tokens, `(rows,)`, each row begins with that `other` begins with at the same positions."""
        columns = min(self.ids.shape[1], other.ids.shape[1])
        same = (self.ids[:, :columns] == other.ids[:, :columns]) & (self.ids[:, :columns] >= 0)
        same_positions = self.position_ids[..., :columns] == other.position_ids[..., :columns]
        same &= same_positions.reshape(-1, *same.shape).all(0)
        return same.long().cumprod(1).sum(1)


def align_left(values: torch.Tensor, pads: torch.LongTensor) -> torch.Tensor:
    """`values` `(..., rows, columns)` without the `pads` `(rows,)` columns before each row, the last one repeated."""
    columns = torch.arange(values.shape[-1], device=values.device) + pads[:, None]
    return values.gather(-1, columns.clamp(max=values.shape[-1] - 1).expand(values.shape))


def stack_rows(rows: list[ReadTokens | None]) -> ReadTokens | None:
    """Single rows as one batch; where there is none, a row of no tokens. `None` where there is none at all."""
    known = [row for row in rows if row is not None]
    if len(rows) == 1 or not known:
        return known[0] if known else None
    longest = max(known, key=lambda row: row.ids.shape[1])

    def stack(of, fill: int, column: int, row: int) -> torch.Tensor:
        like = of(longest).narrow(column, 0, longest.ids.shape[1])
        stacked = torch.cat([torch.full_like(like, fill)] * len(rows), row)
        for i, tokens in enumerate(rows):
            if tokens is not None:
                length = tokens.ids.shape[1]
                own = of(tokens).narrow(column, 0, length)
                stacked.narrow(row, i, 1).narrow(column, 0, length).copy_(own)
        return stacked

    layers = [
        tuple(stack(lambda tokens, i=i, part=part: tokens.layers[i][part], 0, 2, 0) for part in (0, 1))
        for i in range(len(longest.layers))
    ]
    has_states = all(row.states is not None for row in known)
    return ReadTokens(
        stack(lambda tokens: tokens.ids, -1, 1, 0),
        stack(lambda tokens: tokens.position_ids, 0, -1, -2),
        layers,
        stack(lambda tokens: tokens.states, 0, 1, 0) if has_states else None,
    )


def read_on(
    model,
    known: ReadTokens | None,
    prompts: ReadTokens,
    image_inputs: Callable[[torch.LongTensor], dict] | None = None,
    known_rows: torch.LongTensor | None = None,
    recorder=None,
    keep_layers: bool = True,
) -> tuple[ReadTokens, torch.FloatTensor | None, torch.LongTensor]:
    """
    Reads `prompts`, each row from where it leaves its row of `known`.

    Args:
        model ([`ComposedModel`]): Whose language model reads.
        known ([`ReadTokens`], *optional*): What was read before.
        prompts ([`ReadTokens`]): What is to be read.
        image_inputs (`Callable[[torch.LongTensor], dict]`, *optional*):
            The encoded images of rows as inputs of the language model. A row is read from its first token on if it has
            image tokens that were not read.
        known_rows (`torch.LongTensor` of shape `(rows,)`, *optional*): The row of `known` for each prompt.
        recorder ([`SlotStateRecorder`], *optional*): Watches its output embedding; without it no states are kept.
        keep_layers (`bool`): Whether anything will continue the prompts.

    Returns:
        `prompts` with what was kept; the logits `(rows, new tokens, vocab_size)` of the tokens that were read now,
        `None` if there was none; and `(rows,)`, how many tokens of each row were known.
    """
    ids, position_ids, lengths, device = prompts.ids, prompts.position_ids, prompts.lengths, prompts.ids.device
    if known_rows is None:
        known_rows = torch.arange(len(ids), device=device)
    starts = (
        torch.zeros_like(lengths) if known is None else known.rows(known_rows, with_kept=False).common_lengths(prompts)
    )
    columns = torch.arange(ids.shape[1], device=device)
    if image_inputs is not None:
        unread_images = ((ids == model.config.image_token_id) & (columns >= starts[:, None])).any(1)
        starts = starts.masked_fill(unread_images, 0)
    width, kept = int((lengths - starts).max()), int(starts.max())
    if not width:
        known = known.rows(known_rows)
        return ReadTokens(ids, position_ids, known.layers, known.states), None, starts

    new = torch.arange(width, device=device)
    source = (starts[:, None] + new).clamp(max=ids.shape[1] - 1)
    is_token = new < (lengths - starts)[:, None]
    inputs = {
        # What fills a row up must not ask for an image.
        "input_ids": ids.gather(1, source).masked_fill(~is_token, int(model.config.image_token_id == 0)),
        "attention_mask": torch.cat([torch.arange(kept, device=device) < starts[:, None], is_token], 1).long(),
        "position_ids": position_ids.gather(-1, source.expand(*position_ids.shape[:-1], width)),
    }
    if image_inputs is not None and bool(unread_images.any()):
        inputs |= image_inputs(unread_images.nonzero().flatten())
    if kept:
        beginnings = (tuple(_rows_of(part[:, :, :kept], known_rows) for part in layer) for layer in known.layers)
        inputs = with_cache_named_for(model.vlm, {**inputs, "cache": cache_of(beginnings)})
    if recorder is None and "logits_to_keep" in inspect.signature(model.vlm.forward).parameters:
        inputs["logits_to_keep"] = 1
    output = model.vlm(**inputs, use_cache=True, return_dict=True)

    # The columns are known ones, whose number differs by row, then new ones: the gaps between are taken out.
    order = (columns + (columns >= starts[:, None]) * (kept - starts[:, None])).clamp(max=kept + width - 1)
    has_gaps = bool((starts != kept).any())

    def without_gaps(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return values.take_along_dim(index.to(values.device), dim=-2) if has_gaps else values

    layers = states = None
    if keep_layers:
        layers = [
            tuple(without_gaps(part, order[:, None, :, None]) for part in (layer.keys, layer.values))
            for layer in find_cache(output).layers
        ]
    if recorder is not None:
        recorder.take_states()
        before = [known.states[known_rows.to(known.states.device), :kept]] if kept else []
        states = without_gaps(torch.cat([*before, recorder.states], 1), order[..., None])
    return ReadTokens(ids, position_ids, layers, states), output.logits, starts


def _rows_of(part: torch.Tensor, index: torch.LongTensor) -> torch.Tensor:
    """Rows of a tensor, each any number of times; a single one is not copied."""
    return part.expand(len(index), *part.shape[1:]) if len(part) == 1 else part[index.to(part.device)]


@dataclass
class ReadPrompts:
    """
    A batch of prompts that was read with each shared beginning read once.

    Args:
        rows ([`ReadTokens`]): The prompts, without padding.
        pads (`torch.LongTensor` of shape `(rows,)`): Columns of padding before each prompt of the batch.
        logits (`torch.FloatTensor` of shape `(rows, sequence_length, vocab_size)`, *optional*):
            As a pass over the batch gives them, 0 at padding.
    """

    rows: ReadTokens
    pads: torch.LongTensor
    logits: torch.FloatTensor | None = None

    def states_at(self, rows: torch.LongTensor, positions: torch.LongTensor) -> torch.FloatTensor:
        """The states at `positions` of the batch."""
        states = self.rows.states
        return states[rows.to(states.device), (positions - self.pads.to(positions.device)[rows]).to(states.device)]

    def read_again(self, model, input_ids: torch.LongTensor, recorder) -> "ReadPrompts":
        """Reads the prompts with other words in them: each row from the first of these on."""
        ids = align_left(input_ids, self.pads)[:, : self.rows.ids.shape[1]].masked_fill(self.rows.ids < 0, -1)
        rows, _, _ = read_on(model, self.rows, ReadTokens(ids, self.rows.position_ids), recorder=recorder)
        return ReadPrompts(rows, self.pads)

    def cache(self, columns: int, copies: int) -> DynamicCache:
        """The cache of the batch with its padding, `columns` wide, for `copies` answers to each prompt."""
        source = (torch.arange(columns, device=self.pads.device) - self.pads[:, None]).clamp(min=0)
        is_padded = bool((self.rows.lengths != columns).any())

        def padded(part: torch.Tensor) -> torch.Tensor:
            part = part.take_along_dim(source.to(part.device)[:, None, :, None], 2) if is_padded else part
            part = part[:, :, :columns]
            return part if copies == 1 else part.repeat_interleave(copies, 0)

        return cache_of(tuple(map(padded, layer)) for layer in self.rows.layers)

    def with_answers(
        self, sequences: torch.LongTensor, position_ids: torch.LongTensor, cache: DynamicCache
    ) -> list[ReadTokens]:
        """Each row by itself as it was read: after a generation from `cache`, one answer to each prompt."""
        columns, new = cache.get_seq_length(), torch.arange(1, sequences.shape[1], device=sequences.device)
        position_ids = torch.cat([position_ids, position_ids[..., -1:] + new], -1)
        return [
            ReadTokens(
                sequences[row : row + 1, pad:columns],
                position_ids[..., row : row + 1, pad:columns],
                [
                    tuple(part[row : row + 1, :, pad:].contiguous() for part in (layer.keys, layer.values))
                    for layer in cache.layers
                ],
            )
            for row, pad in enumerate(self.pads.tolist())
        ]


def read_prompts(
    model,
    input_ids: torch.LongTensor,
    attention_mask: torch.Tensor,
    position_ids: torch.LongTensor,
    images,
    image_index: torch.LongTensor,
    keep: bool = False,
    recorder=None,
    read_again: bool = False,
) -> ReadPrompts | None:
    """
    Reads a batch of prompts: of each image what all of its prompts begin with, once, then the rest of each prompt.

    Args:
        model ([`ComposedModel`]): Whose language model reads.
        input_ids, attention_mask: The batch `(rows, sequence_length)`, padded on either side.
        position_ids (`torch.LongTensor` of shape `(..., rows, sequence_length)`): As the model takes them.
        images ([`ImageCache`]): Encoded images.
        image_index (`torch.LongTensor` of shape `(rows,)`): The image of each row.
        keep (`bool`):
            Continue what `images` hold of earlier prompts, and leave there, per image, what its prompts share: a
            single prompt whole.
        recorder ([`SlotStateRecorder`], *optional*): Watches its output embedding; without it no logits, no states.
        read_again (`bool`):
            Read this way where nothing is shared, too, and so that [`ReadPrompts.read_again`] can continue it.

    Returns:
        [`ReadPrompts`], or `None` where nothing was read because nothing would be gained: no two rows share an image,
        or their prompts differ before its end; or because a row has padding inside.
    """
    mask = attention_mask.bool()
    lengths, pads = mask.sum(1), mask.long().argmax(1)
    columns = torch.arange(mask.shape[1], device=mask.device)
    is_token = columns < lengths[:, None]
    if not bool((align_left(mask, pads) & is_token).sum(1).eq(lengths).all()) or not bool(lengths.all()):
        return None
    ids = align_left(input_ids, pads).masked_fill(~is_token, -1)
    prompts = ReadTokens(ids, align_left(position_ids, pads)).cut(lengths)

    used, prefix_of = image_index.unique(return_inverse=True)
    first = torch.stack([(prefix_of == i).nonzero()[0, 0] for i in range(len(used))])
    common = prompts.rows(first[prefix_of]).common_lengths(prompts)
    shared = torch.stack([common[prefix_of == i].min() for i in range(len(used))])
    is_image = prompts.ids == model.config.image_token_id
    in_prefix = columns[: prompts.ids.shape[1]] < shared[prefix_of][:, None]
    has_whole_image = is_image.any(1) & ~(is_image & ~in_prefix).any(1)
    if not bool(has_whole_image.all()) or (len(used) == len(ids) and not keep and not read_again):
        return None

    held = images.prefixes or [None] * images.num_images
    known = None
    if keep:
        entries = [held[image] for image in used.tolist()]
        known = stack_rows([row if row and (recorder is None or row.states is not None) else None for row in entries])
    prefixes, new_logits, starts = read_on(
        model,
        known,
        prompts.rows(first).cut(shared),
        lambda rows: model._vlm_image_inputs(images, used[rows]),
        recorder=recorder,
    )
    prefix_logits = None if recorder is None else _all_logits(model, prefixes, new_logits, starts)
    if keep:
        for i, image in enumerate(used.tolist()):
            own = prefixes.rows(torch.tensor([i])) if len(used) > 1 else prefixes
            held[image] = own.cut(shared[i : i + 1])
        images.prefixes = held

    continues = read_again or recorder is None
    options = {"known_rows": prefix_of, "recorder": recorder, "keep_layers": continues}
    rows, own_logits, _ = read_on(model, prefixes, prompts, **options)
    if recorder is None:
        return ReadPrompts(rows, pads)
    own_logits = None if own_logits is None else without_placeholder(own_logits, model.config.image_token_id)
    logits = prefix_logits.new_zeros(*input_ids.shape, prefix_logits.shape[-1])
    numbers = zip(prefix_of.tolist(), pads.tolist(), shared[prefix_of].tolist(), prompts.lengths.tolist(), strict=True)
    for row, (prefix, start, common, length) in enumerate(numbers):
        logits[row, start : start + common] = prefix_logits[prefix, :common]
        if length > common:
            logits[row, start + common : start + length] = own_logits[row, : length - common]
    return ReadPrompts(rows, pads, logits)


def _all_logits(
    model, read: ReadTokens, new_logits: torch.FloatTensor | None, starts: torch.LongTensor
) -> torch.FloatTensor:
    """Logits of all tokens; of those that were known only the states were kept, from which the head makes them."""
    if bool((starts == 0).all()):
        return without_placeholder(new_logits, model.config.image_token_id)
    return without_placeholder(model.logits_of(read.states[:, : read.ids.shape[1]]), model.config.image_token_id)
