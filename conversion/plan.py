"""How every published tensor is made, with shape and type known before anything is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..loading import code_stays_off
from .drawing import Drawing, seed_of
from .errors import ConversionError
from .inventory import Inventory, Piece
from .rules import BASE, LORA_A, LORA_B, ROWS, WEIGHT
from .rules_lisa_gsva import MM_PROJECTOR, PROJECTOR, SEGMENTER, TEXT_MODEL, VISION_TOWER, VLM
from .tensor_operations import (
    ADD_DELTA,
    APPEND_FIRST_ROW,
    APPEND_ZERO_ROW,
    CAST,
    DRAW_ROWS,
    IDENTITY,
    JOIN_ROWS,
    MEAN_ROWS,
    MERGE_LORA,
    SKIP_FIRST,
    SPLIT_ROWS,
    ZEROS,
    TensorOperations,
    common_rank,
    lora_rank,
)


EMBEDDING, HEAD = f"{TEXT_MODEL}embed_tokens.weight", f"{VLM}lm_head.weight"
_REMEDIES = {
    f"{SEGMENTER}mask_decoder.": (
        "SAM's mask decoder",
        "It is trained with the model, so only a checkpoint that holds it can be converted.",
    ),
    SEGMENTER: ("SAM's image or prompt encoder", "Pass sam= with SAM's own file (sam_vit_h_4b8939.pth)."),
    PROJECTOR: (
        "text_hidden_fcs",
        "It is trained with the model, so only a checkpoint that holds it can be converted.",
    ),
    VISION_TOWER: ("the CLIP tower", "Pass vision_tower= with its folder (openai/clip-vit-large-patch14)."),
    MM_PROJECTOR: ("the multimodal projector", "Pass a checkpoint that holds it as `mm_projector`."),
    EMBEDDING: (
        "the input embedding",
        "It is trained with the model, so only a checkpoint that holds it can be converted.",
    ),
    VLM: ("the language model", "Pass base= with the LLaVA folder the checkpoint was trained from, with its weights."),
}


@dataclass(frozen=True)
class NewRows:
    """Rows of the vocabulary that belong to tokens which the sources do not know.

    Args:
        first (`int`): Index of the first one. A row that the sources have there is one that no token uses.
        count (`int`): How many.
        deviation (`float`, *optional*): Standard deviation of the normal distribution they are drawn from; by default
            each is the mean of the rows before them.
        seed (`int`): Of the drawing.
    """

    first: int
    count: int
    deviation: float | None = None
    seed: int = 0

    def operations(self, name: str) -> TensorOperations:
        """What sets them in a parameter."""
        rows = (self.first, self.count)
        if self.deviation is None:
            return TensorOperations((MEAN_ROWS,), rows=rows)
        return TensorOperations(
            (DRAW_ROWS,), drawing=Drawing("normal", self.deviation, seed_of(self.seed, name)), rows=rows
        )


@dataclass(frozen=True)
class Scheme:
    """How the parameters of one kind of model are called.

    Args:
        vlm, text_model (`str`): Prefixes of the vision-language model and of its language model.
        segmenter (`str`, *optional*): Prefix of the segmenter.
        remedies (`Mapping[str, tuple[str, str]]`): What a component is called and what to do when it is in none of the
            sources, by the prefix of its parameters. Every prefix must have parameters.
        embedding, head (`str`): The parameters with a row per token of the vocabulary.
        appended_rows (`int`): Rows both have beyond those of the sources, for tokens the original does not embed.
        new_rows ([`NewRows`], *optional*): Rows both have for tokens that are new; those that are appended follow.
    """

    vlm: str
    text_model: str
    segmenter: str | None
    remedies: Mapping[str, tuple[str, str]]
    embedding: str
    head: str
    appended_rows: int = 1
    new_rows: NewRows | None = None

    def rows_of_new_tokens(self, name: str) -> TensorOperations:
        """What gives a parameter the rows of new tokens; nothing for one that has no rows per token."""
        if self.new_rows is None or not self.new_rows.count or name not in (self.embedding, self.head):
            return TensorOperations()
        return self.new_rows.operations(name)

    def source_rows(self, name: str, rows: int, found: int) -> int:
        """How many rows a source must have of a parameter.

        Args:
            name (`str`): The parameter.
            rows (`int`): Its rows in the model.
            found (`int`): Its rows in the source.
        """
        rows -= len(self.append(name))
        new = self.rows_of_new_tokens(name).rows
        return rows if new is None or found < new[0] or sum(new) < rows else min(found, rows)

    def append(self, name: str) -> tuple[str, ...]:
        """The operations that append vocabulary rows to a parameter."""
        operation = {self.embedding: APPEND_ZERO_ROW, self.head: APPEND_FIRST_ROW}.get(name)
        return () if operation is None else (operation,) * self.appended_rows


SEGMENTATION = Scheme(VLM, TEXT_MODEL, SEGMENTER, _REMEDIES, EMBEDDING, HEAD)


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the published checkpoint.

    Args:
        name (`str`): Parameter name.
        shape (`tuple[int, ...]`): Its shape.
        dtype (`torch.dtype`): Its stored type.
        origin (`str`): Where it comes from.
        build (`Callable[[], torch.Tensor]`): Reads and computes it.
        operations (`TensorOperations`): What `build` does, for the manifest.
        pieces (`Mapping[str, Piece]`): What `build` reads, by part.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    origin: str
    build: Callable[[], torch.Tensor]
    operations: TensorOperations = field(default_factory=TensorOperations)
    pieces: Mapping[str, Piece] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def empty_model(kind: type, config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model on the meta device; code that its config names is not run.

    Args:
        kind (`type`): The model's class, or an Auto class.
        config (`PreTrainedConfig`): Its config.
    """
    build: Callable = getattr(kind, "from_config", kind)
    options = {} if build is kind else {"trust_remote_code": False}
    with code_stays_off(), torch.device("meta"):
        return build(config, **options)


def expected_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors a saved model consists of: its state without tied copies.

    Args:
        model (`PreTrainedModel`): The model, which may be on the meta device.
    """
    tied = set(model.all_tied_weights_keys)
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}


def require_components(inventory: Inventory, scheme: Scheme = SEGMENTATION) -> None:
    """Check that every component has at least one parameter.

    Raises:
        ConversionError: A component is in none of the sources; names it and says what to pass.
    """
    for prefix, (component, next_step) in scheme.remedies.items():
        if not inventory.has(prefix):
            raise ConversionError(f"The checkpoint does not hold {component}.", next_step=next_step)


def dominant_dtype(inventory: Inventory, scheme: Scheme = SEGMENTATION) -> torch.dtype:
    """The type most of the language model is stored in; some checkpoints keep trained parts in float32."""
    sizes = Counter()
    for target, parts in inventory.pieces.items():
        if target.startswith(scheme.text_model) and WEIGHT in parts:
            info = parts[WEIGHT].info
            sizes[info.dtype] += math.prod(info.shape)
    return max(sizes, key=lambda dtype: (sizes[dtype], dtype.itemsize))


def plan_tensors(
    inventory: Inventory,
    expected: Mapping[str, tuple[int, ...]],
    *,
    dtype: torch.dtype,
    alpha_of_rank: Callable[[int], float],
    identity_projector: bool,
    segmenter_dtype: torch.dtype = torch.float32,
    scheme: Scheme = SEGMENTATION,
    new_tensors: Mapping[str, TensorOperations] | None = None,
) -> list[PlannedTensor]:
    """Match what the sources hold with what the model needs.

    Args:
        inventory (`Inventory`): The sources' parameters.
        expected (`Mapping[str, tuple[int, ...]]`): Every parameter of the model and its shape, in the model's order.
        dtype (`torch.dtype`): Type of the vision-language model; the projector is stored in float32.
        alpha_of_rank (`Callable[[int], float]`): LoRA's alpha for the rank found in the checkpoint.
        identity_projector (`bool`): Whether the projector is one Linear, to be completed by an identity.
        segmenter_dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Type of the segmenter.
        scheme (`Scheme`, *optional*): How the model's parameters are called; LISA's and GSVA's by default.
        new_tensors (`Mapping[str, TensorOperations]`, *optional*): How parameters that have learned nothing yet are
            made; they are in none of the sources.

    Returns:
        `list[PlannedTensor]`: One for every expected parameter, in the same order.

    Raises:
        ConversionError: Parameters are missing, superfluous, or of another shape than the configs say.
    """
    adapted = inventory.adapted()
    alpha = _check_adapters(adapted, alpha_of_rank)
    made = {name: (operations, "new") for name, operations in (new_tensors or {}).items()}
    made |= {name: (operations, "identity") for name, operations in _IDENTITY.items()} if identity_projector else {}
    _compare(inventory, expected, made, scheme)
    planned = []
    for name, shape in expected.items():
        stored = torch.float32
        if name.startswith(scheme.vlm):
            stored = dtype
        elif scheme.segmenter is not None and name.startswith(scheme.segmenter):
            stored = segmenter_dtype
        if name in made:
            operations, origin = made[name]
            build = partial(_make, operations, shape, stored)
            planned.append(PlannedTensor(name, shape, stored, origin, build, operations))
            continue
        rows, appended = scheme.rows_of_new_tokens(name), scheme.append(name)
        planned.append(_from_sources(name, inventory.pieces[name], shape, stored, alpha, rows, appended))
    return planned


def _from_sources(
    name: str,
    parts: Mapping[str, Piece],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    alpha: float,
    rows: TensorOperations,
    appended: tuple[str, ...],
) -> PlannedTensor:
    split = parts[WEIGHT].split
    names = [JOIN_ROWS] if ROWS[0] in parts else []
    names = [*names, SPLIT_ROWS] if split is not None else names
    names = [*names, SKIP_FIRST] if parts[WEIGHT].skip_first else names
    if LORA_A in parts:
        names.append(MERGE_LORA)
    if BASE in parts:
        names.append(ADD_DELTA)
    if parts[WEIGHT].info.dtype != dtype:
        names.append(CAST)
    operations = TensorOperations(
        (*names, *rows.names, *appended), float(alpha) if LORA_A in parts else None, rows.drawing, rows.rows, split
    )
    origin = " + ".join(sorted({piece.origin for piece in parts.values()}))

    def build() -> torch.Tensor:
        return operations.compute(lambda part: parts[part].load(), shape, dtype)

    return PlannedTensor(name, shape, dtype, origin, build, operations, parts)


# The second layer that turns transformers' two-layer projector into LLaVA v1's single Linear.
_IDENTITY = {
    f"{MM_PROJECTOR}linear_2.weight": TensorOperations((IDENTITY,)),
    f"{MM_PROJECTOR}linear_2.bias": TensorOperations((ZEROS,)),
}


def _make(operations: TensorOperations, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor that needs no source."""
    return operations.compute({}.__getitem__, shape, dtype)


def _check_adapters(adapted: Mapping[str, Mapping[str, Piece]], alpha_of_rank: Callable[[int], float]) -> float:
    """The alpha of all adapters; 0 without any."""
    if not adapted:
        return 0.0
    ranks = [
        lora_rank(*(parts[part].info.shape for part in (WEIGHT, LORA_A, LORA_B)), target)
        for target, parts in adapted.items()
    ]
    return alpha_of_rank(common_rank(ranks))


def _compare(
    inventory: Inventory,
    expected: Mapping[str, tuple[int, ...]],
    made: Mapping[str, tuple[TensorOperations, str]],
    scheme: Scheme,
) -> None:
    found = inventory.shapes()
    if missing := [name for name in expected if name not in found and name not in made]:
        component, next_step = next(
            value for prefix, value in scheme.remedies.items() if missing[0].startswith(prefix)
        )
        raise ConversionError(
            f"The sources lack {len(missing)} parameters of {component}, the first is {missing[0]!r}.",
            next_step=next_step,
        )
    if extra := [name for name in found if name not in expected]:
        piece = inventory.pieces[extra[0]][WEIGHT]
        raise ConversionError(
            f"{len(extra)} tensors do not belong to the model the configs describe, the first is {piece.key!r} of the "
            f"{piece.origin}.",
            path=piece.source.path,
            next_step="Check that config, base and checkpoint belong together.",
        )
    for name, shape in found.items():
        wanted = expected[name]
        if name in (scheme.embedding, scheme.head):
            wanted = (scheme.source_rows(name, wanted[0], shape[0]), *wanted[1:])
        if shape != wanted:
            piece = inventory.pieces[name][WEIGHT]
            raise ConversionError(
                f"{piece.key!r} of the {piece.origin} has the shape {shape}; the configs ask for {wanted}.",
                path=piece.source.path,
                next_step="Check that base and vision tower are the ones the checkpoint was trained from.",
            )
