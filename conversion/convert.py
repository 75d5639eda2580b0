"""What every conversion does around its system's own part: look at the request, and write the repository as a whole.

A system's convert function says with [`Parts`] what it made of its sources; `convert` does the rest.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import torch
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from ..processing.chat import CHAT_TEMPLATE_NAMES
from .card import Values, check_card, render_card
from .configs import generation_defaults
from .errors import ConversionError
from .inventory import Dropped, Inventory
from .locations import Location, locate
from .manifest import write_manifest
from .plan import SEGMENTATION, PlannedTensor, Scheme, dominant_dtype, expected_shapes, plan_tensors
from .progress import ProgressCallback, no_progress
from .recognition import inspect_checkpoint
from .systems import ATTEND_AND_SEGMENT, SOURCE_MODELS, SYSTEMS, PublishedSystem
from .tensor_operations import TensorOperations, no_adapters
from .verify import check_staged
from .writer import check_free_space, refuse_existing, staging_folder, write_repository


FLOAT_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class ConversionOptions(TypedDict, total=False):
    """What every convert function takes beside its own arguments.

    Args:
        dtype (`torch.dtype` or `str`, *optional*): Type of the vision-language model, by default the one most of the
            source's language model is stored in. Adapters are merged in float32 and rounded once.
        max_shard_size (`int` or `str`, *optional*, defaults to `"5GB"`): Largest weight file.
        card (`str`, *optional*): Name of the values in `model_cards/`, or path of a values file (`.yaml`); by default
            the source's name, where known.
        progress (`ProgressCallback`, *optional*): Told about bytes written; `rich_progress` makes one.
    """

    dtype: torch.dtype | str | None
    max_shard_size: int | str
    card: str | None
    progress: ProgressCallback | None


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Args:
        out (`Path`): The repository.
        num_parameters (`int`): Parameters written.
        dtype (`torch.dtype`): Type of the vision-language model.
        origins (`dict[str, int]`): Number of tensors by where they come from.
        dropped (`list[Dropped]`): Tensors of the sources that were not used, with the reason.
    """

    out: Path
    num_parameters: int
    dtype: torch.dtype
    origins: dict[str, int]
    dropped: list[Dropped]


@dataclass(frozen=True)
class Parts:
    """What a system's convert function makes of its sources.

    Args:
        card (`str` or `Mapping[str, Any]`): What the checkpoint is called: the name of its card's values, where these
            are known; or the values.
        inventory (`Inventory`): What the sources hold.
        model (`PreTrainedModel`): The model with the right sizes, on the meta device.
        processor (`ProcessorMixin`): The processor.
        scheme (`Scheme`, *optional*): How the model's parameters are called; LISA's and GSVA's by default.
        alpha_of_rank (`Callable[[int], float]`, *optional*): LoRA's alpha for the rank found; by default adapters are
            refused.
        identity_projector (`bool`): Whether the projector is one Linear, to be completed by an identity.
        generation_config (`GenerationConfig`, *optional*): Defaults of `generate`, where `generation_defaults` are not
            enough.
        finish (`Callable[[Path], None]`, *optional*): Given the folder, last changes to its small files.
        beside (`Sequence[PlannedTensor]`): Tensors that `finish` writes to a weight file of their own.
        folders (`Mapping[str, Path]`): See `write_manifest`.
        new_tensors (`Mapping[str, TensorOperations]`): See `plan_tensors`.
    """

    card: Values
    inventory: Inventory
    model: PreTrainedModel
    processor: ProcessorMixin
    scheme: Scheme = SEGMENTATION
    alpha_of_rank: Callable[[int], float] = no_adapters
    identity_projector: bool = False
    generation_config: GenerationConfig | None = None
    finish: Callable[[Path], None] | None = None
    beside: Sequence[PlannedTensor] = ()
    folders: Mapping[str, Path] = field(default_factory=dict)
    new_tensors: Mapping[str, TensorOperations] = field(default_factory=dict)


def convert(
    system: PublishedSystem,
    source: Location | None,
    out: str | os.PathLike,
    read_parts: Callable[[], Parts],
    *,
    template: str | None = None,
    segmenter_dtype: torch.dtype | str | None = None,
    dtype: torch.dtype | str | None = None,
    max_shard_size: int | str = "5GB",
    card: str | None = None,
    progress: ProgressCallback | None = None,
) -> ConversionReport:
    """Write a complete, verified repository, or nothing.

    Args:
        system (`PublishedSystem`): Which model it is.
        source (`str` or `os.PathLike`, *optional*): What the user named; an error says which system's tensors these
            are, if not this one's. `None` where there is no checkpoint of a system.
        out (`str` or `os.PathLike`): The repository's folder; it must not exist or be empty.
        read_parts (`Callable[[], Parts]`): Reads the sources. What would fail only after everything has been
            downloaded and read was refused before.
        template (`str`, *optional*): The conversation template that `read_parts` uses.
        segmenter_dtype (`torch.dtype` or `str`, *optional*): Type of the segmenter, by default float32.
        dtype, max_shard_size, card, progress: See [`ConversionOptions`].

    Raises:
        ConversionError: Something is missing, unreadable or does not fit, an option is out of its range, or what was
            written does not verify.
    """
    out = Path(out)
    refuse_existing(out)
    stored, stored_segmenter = _float_type("dtype", dtype), _float_type("segmenter_dtype", segmenter_dtype)
    if template is not None and template not in CHAT_TEMPLATE_NAMES:
        raise ConversionError(f"template is {template!r}; allowed are {', '.join(CHAT_TEMPLATE_NAMES)}.")
    if card is not None:
        check_card(system.name, card)
    try:
        parts = read_parts()
        stored = stored or dominant_dtype(parts.inventory, parts.scheme)
        tensors = plan_tensors(
            parts.inventory,
            expected_shapes(parts.model),
            dtype=stored,
            alpha_of_rank=parts.alpha_of_rank,
            identity_projector=parts.identity_projector,
            segmenter_dtype=stored_segmenter or torch.float32,
            scheme=parts.scheme,
            new_tensors=parts.new_tensors,
        )
    except ConversionError as error:
        if not (hint := _whose_tensors(system, source, error)):
            raise
        next_step = " ".join(filter(None, [error.next_step, hint]))
        raise ConversionError(error.cause, path=error.path, next_step=next_step) from error.__cause__
    return _write(
        system,
        out,
        parts,
        tensors,
        stored,
        card=card or parts.card,
        max_shard_size=max_shard_size,
        progress=progress or no_progress,
    )


def _float_type(name: str, value: torch.dtype | str | None) -> torch.dtype | None:
    """A number format to store weights in, by its name or as it is."""
    if value is not None and value not in (*FLOAT_TYPES, *FLOAT_TYPES.values()):
        raise ConversionError(f"{name} is {value!r}; allowed are {', '.join(FLOAT_TYPES)}.")
    return FLOAT_TYPES.get(value, value)


def _write(
    system: PublishedSystem,
    out: Path,
    parts: Parts,
    tensors: Sequence[PlannedTensor],
    dtype: torch.dtype,
    *,
    card: Values,
    max_shard_size: int | str,
    progress: ProgressCallback,
) -> ConversionReport:
    """The weights, code, card and manifest, checked before they get their name."""
    everything = [*tensors, *parts.beside]
    check_free_space(out, sum(tensor.num_bytes for tensor in everything))
    # also where nobody has registered the classes with transformers
    system.publish_code()
    with staging_folder(out) as folder:
        digests = write_repository(
            folder,
            model=parts.model,
            tensors=tensors,
            dtype=dtype,
            generation_config=parts.generation_config or generation_defaults(parts.processor.tokenizer),
            processor=parts.processor,
            max_shard_size=max_shard_size,
            progress=progress,
            release=parts.inventory.release,
        )
        if parts.finish is not None:
            parts.finish(folder)
        readme = render_card(system.name, card, parts.model.config, dtype, repo=folder)
        (folder / "README.md").write_text(readme, encoding="utf-8")
        write_manifest(
            folder,
            system=system.name,
            dtype=dtype,
            tensors=everything,
            dropped=parts.inventory.dropped,
            digests=digests,
            folders=parts.folders,
        )
        check_staged(folder)
    return ConversionReport(
        out=out,
        num_parameters=sum(tensor.num_bytes // tensor.dtype.itemsize for tensor in everything),
        dtype=dtype,
        origins=dict(Counter(tensor.origin for tensor in everything)),
        dropped=parts.inventory.dropped,
    )


def _whose_tensors(system: PublishedSystem, source: Location | None, error: ConversionError) -> str:
    """What the tensors of a source that does not convert seem to be, in a sentence; empty where that is no news."""
    if source is None:
        return ""
    if not Path(source).exists() and error.path is None:
        return ""  # it may not have been downloaded at all
    try:
        found = inspect_checkpoint(locate(source)).recognised
    except (ConversionError, OSError):
        return ""
    is_repository = found.converted or found.loads_as_it_is
    if system == ATTEND_AND_SEGMENT and (is_repository or found.system == "llava"):
        return ""  # what it is made of
    if found.system in SOURCE_MODELS:
        return SOURCE_MODELS[found.system].belongs
    if is_repository:
        title = SYSTEMS[found.system].title if found.system in SYSTEMS else "a model of this package"
        return f"This is {title} as a repository that loads as it is; `reasonseg verify` checks it."
    if found.system == system.name:
        return ""
    others = [SYSTEMS[name] for name in found.systems if name in SYSTEMS and name != system.name]
    titles = " or ".join(f"{other.title}'s" for other in others)
    commands = " or ".join(f"`reasonseg convert {other.command_name}`" for other in others)
    if not others:
        return ""
    if system.name in found.systems:
        return f"The tensors may also be {titles}: then use {commands}."
    variant = f" ({found.variant})" if len(others) == 1 else ""
    return f"The tensors are {titles}{variant}: use {commands}."
