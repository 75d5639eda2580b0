"""Reduces the attention to the image while a model runs: one small map per token, never all layers and heads."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import LogitsProcessor, PreTrainedModel


HeadChoice = str | list[int]

# Per thread the reducer of the call that runs. What is of a thread is traced, so that compiled models have one graph.
_ACTIVE = threading.local()


def _reduce_attention(module: nn.Module, args: tuple, output: tuple) -> None:
    reducer = getattr(_ACTIVE, "reducer", None)
    if reducer is None or module not in reducer.indices:
        return
    layer, entry = reducer.indices[module]
    weights = output[entry] if isinstance(output, tuple) and len(output) > entry else None
    if weights is None:
        raise ValueError(
            f"The attention layers of {reducer.model_name} return no weights: their attn_implementation computes "
            'none. Load the model without attn_implementation, or with {"text_config": "eager"} for the language '
            "model."
        )
    reducer.observe(layer, weights)


def attention_modules(model: PreTrainedModel) -> dict[nn.Module, int]:
    """
    The attention layers of a model's language model, in order, as transformers itself records them, and which entry of
    the output of each holds its weights.
    """
    decoder = model.get_decoder()
    specification = (getattr(decoder, "_can_record_outputs", None) or {}).get("attentions")
    found: dict[nn.Module, int] = {}
    for kind in specification if isinstance(specification, list) else [specification]:
        # A class, a class name, or a recorder that names one of both, an entry of the output and a sub-module.
        target = getattr(kind, "target_class", kind)
        ending = getattr(kind, "class_name", kind)
        part = (getattr(kind, "layer_name", None) or "").strip(".")
        for name, module in decoder.named_modules():
            matches = isinstance(target, type) and isinstance(module, target)
            matches = matches or (isinstance(ending, str) and name.endswith(ending))
            if matches and (not part or f".{part}." in f".{name}."):
                found[module] = getattr(kind, "index", 1)
    if not found:
        raise ValueError(
            f"{type(decoder).__name__} exposes no attentions, so it cannot point at anything. Use a vision-language "
            "model whose language model records `attentions` in transformers."
        )
    return found


@dataclass(frozen=True)
class ImageColumns:
    """
    Where the cells of each row's grid are in its sequence.

    Args:
        positions (`torch.LongTensor` of shape `(rows, cells)`): Position of each cell; short rows are filled with 0.
        counts (`list[int]`): Cells of each row.
        last (`int`): The greatest position.
    """

    positions: torch.LongTensor
    counts: list[int]
    last: int

    @classmethod
    def find(
        cls, input_ids: torch.LongTensor, image_token_id: int, grid_tokens: Sequence[torch.LongTensor]
    ) -> "ImageColumns":
        """From ids `(rows, length)` and, per row, which of its image tokens form the grid, row by row of the grid."""
        positions = []
        for row, (ids, cells) in enumerate(zip(input_ids, grid_tokens, strict=True)):
            image_tokens = (ids == image_token_id).nonzero()[:, 0]
            if not len(cells) or int(cells.max()) >= len(image_tokens):
                raise ValueError(
                    f"Row {row} has {len(image_tokens)} image tokens, but its grid names token "
                    f"{int(cells.max()) if len(cells) else 'nothing'}. Pass `input_ids` and the grid as the processor "
                    "returned them together."
                )
            positions.append(image_tokens[cells.to(image_tokens.device)])
        padded = nn.utils.rnn.pad_sequence(positions, batch_first=True)
        # A number, not a tensor: it is compared in every layer of every step.
        return cls(padded, [len(found) for found in positions], int(padded.max()))


class AttentionReducer:
    """
    Adds up, layer by layer, what the asked queries see of each grid cell.

    Args:
        model (`PreTrainedModel`): The vision-language model.
        columns (`ImageColumns`): The cells.
        heads (`str` or `list[int]`): See [`AttendAndSegmentConfig`].
        layers (`list[int]`, *optional*): Which attention layers count; all by default.
        queries (`torch.LongTensor` of shape `(rows, queries)`, *optional*):
            Positions whose attention is wanted; by default the last position of every pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        columns: ImageColumns,
        heads: HeadChoice = "paper",
        layers: list[int] | None = None,
        queries: torch.LongTensor | None = None,
    ):
        self.model_name = type(model).__name__
        self.columns = columns
        self.heads = heads
        self.queries = queries
        modules = list(attention_modules(model).items())
        wanted = range(len(modules)) if layers is None else layers
        if out := [layer for layer in wanted if not -len(modules) <= layer < len(modules)]:
            raise ValueError(f"attention_layers names {out}, but {self.model_name} has {len(modules)} of them.")
        chosen = sorted({layer % len(modules) for layer in wanted})
        self.indices = {modules[layer][0]: (index, modules[layer][1]) for index, layer in enumerate(chosen)}
        self._sum: torch.Tensor | None = None
        self._layers = 0
        self._keys = 0

    def observe(self, layer: int, weights: torch.Tensor) -> None:
        """Takes the weights `(rows, heads, queries, keys)` of one of the counted layers, 0 for the first."""
        if layer == 0:
            # A prompt that is read in pieces passes several times; the last piece predicts.
            self._sum, self._layers, self._keys = None, 0, weights.shape[-1]
        self._keys = min(self._keys, weights.shape[-1])
        if self._sum is not None and weights.device != self._sum.device:
            weights = weights.to(self._sum.device)
        maps = self._cells(self._heads(weights.detach()))
        self._sum = maps if self._sum is None else self._sum + maps
        self._layers += 1

    def take(self) -> torch.FloatTensor:
        """The mean over layers `(rows, queries, cells)` of the last complete pass."""
        if self._layers != len(self.indices):
            raise RuntimeError(
                f"{self._layers} of {len(self.indices)} attention layers of {self.model_name} ran in a pass; name "
                "those that always run in `attention_layers`."
            )
        result = self._sum / self._layers
        self._sum, self._layers = None, 0
        return result

    def _heads(self, weights: torch.Tensor) -> torch.Tensor:
        """Picks or averages heads: `(rows, queries, keys)`, of all passed queries or the last one."""
        if self.queries is None:
            weights = weights[:, :, -1:]
        count = weights.shape[1]
        if self.heads == "mean":
            return weights.float().mean(1)
        # The released code means to average over heads, but its slice `x[:, -2:-1, :]` of a tensor (1, heads, q, k)
        # keeps the second-last head alone; all published numbers of the LLaVA models were made so.
        chosen = [-2] if self.heads == "paper" else list(self.heads)
        if bad := [head for head in chosen if not -count <= head < count]:
            raise ValueError(f"heads names {bad}, but a layer of {self.model_name} has {count}.")
        return weights[:, chosen[0]].float() if len(chosen) == 1 else weights[:, chosen].float().mean(1)

    def _cells(self, weights: torch.Tensor) -> torch.Tensor:
        """Picks the asked queries and the columns of the grid: `(rows, queries, cells)`."""
        positions = self.columns.positions.to(weights.device)
        if self.columns.last >= weights.shape[-1]:
            raise self._window_error()
        if len(positions) != len(weights):  # beams and returned sequences multiply rows
            positions = positions.repeat_interleave(len(weights) // len(positions), dim=0)
        if self.queries is not None:
            queries = self.queries.to(weights.device)[:, :, None].expand(-1, -1, weights.shape[-1])
            weights = weights.gather(1, queries)
        return weights.gather(2, positions[:, None].expand(-1, weights.shape[1], -1))

    def _window_error(self) -> ValueError:
        return ValueError(
            f"An attention layer of {self.model_name} sees the last {self._keys} positions only (a sliding window), "
            "so that the image may be outside of them. Name the layers with full attention in `attention_layers`."
        )


class AttentionMapCollector(LogitsProcessor, AttentionReducer):
    """
    During generation, keeps for every sequence length p the map of the step that predicts the token at position p.

    Costs `(rows, cells)` numbers per token: 1.2 MB for 512 tokens of a LLaVA-1.5, where all attentions take hundreds.
    """

    def __init__(self, model: PreTrainedModel, columns: ImageColumns, heads: HeadChoice, layers: list[int] | None):
        AttentionReducer.__init__(self, model, columns, heads, layers)
        self._by_length: dict[int, torch.Tensor] = {}

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self._keys < input_ids.shape[1]:
            # A cache that drops what leaves the window; its columns are no positions any more.
            raise self._window_error()
        self._by_length[input_ids.shape[1]] = self.take()[:, 0]
        return scores

    @property
    def num_bytes(self) -> int:
        """Memory of the kept maps."""
        return sum(maps.nbytes for maps in self._by_length.values())

    def maps_of(self, rows: torch.LongTensor, start: int, source: int) -> torch.FloatTensor:
        """
        The maps `(steps, cells)` of the tokens after the first `start`, which `rows` `(steps,)` of the running batch
        wrote (the beams', for beams), for the input row `source`.
        """
        maps = [self._by_length[start + step][row] for step, row in enumerate(rows.tolist())]
        cells = self.columns.counts[source]
        return torch.stack(maps)[:, :cells] if maps else torch.zeros(0, cells)


@contextmanager
def reduce_attentions(reducer: AttentionReducer) -> Iterator[AttentionReducer]:
    """
    While open, `reducer` sees the attention weights of its layers that this thread computes.

    The hook is registered once per layer and never removed, so that concurrent calls do not disturb each other.
    """
    for module in reducer.indices:
        if _reduce_attention not in module._forward_hooks.values():
            module.register_forward_hook(_reduce_attention)
    with _active(reducer):
        yield reducer


@contextmanager
def no_attention_reduced() -> Iterator[None]:
    """While open, no reducer sees what this thread computes: reading that predicts nothing."""
    with _active(None):
        yield


@contextmanager
def _active(reducer: AttentionReducer | None) -> Iterator[None]:
    outer, _ACTIVE.reducer = getattr(_ACTIVE, "reducer", None), reducer
    try:
        yield
    finally:
        _ACTIVE.reducer = outer


# ---- which steps wrote the tokens of an answer ----------------------------------------------------------------------


def predicting_positions(ranges: list[tuple[int, int]]) -> torch.LongTensor:
    """Positions that predict each answer's tokens, `(rows, longest answer)`; short rows are filled with 0."""
    longest = max(1, max(stop - start for start, stop in ranges))
    positions = torch.zeros(len(ranges), longest, dtype=torch.long)
    for row, (start, stop) in enumerate(ranges):
        positions[row, : stop - start] = torch.arange(start - 1, stop - 1)
    return positions


__all__ = [
    "AttentionMapCollector",
    "AttentionReducer",
    "ImageColumns",
    "attention_modules",
    "predicting_positions",
    "reduce_attentions",
]
