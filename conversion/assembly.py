"""The last steps of every conversion: the repository with its weights, code, card and manifest, written as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from .card import render_card
from .errors import ConversionError
from .inventory import Dropped, Inventory
from .manifest import write_manifest
from .plan import PlannedTensor
from .progress import ProgressCallback, no_progress
from .systems import PublishedSystem
from .tokenizers import IMAGE_TOKEN
from .verify import check_staged
from .writer import check_free_space, staging_folder, write_repository


FLOAT_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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


def float_type(name: str, value: torch.dtype | str | None) -> torch.dtype | None:
    """A number format to store weights in, by its name or as it is.

    Raises:
        ConversionError: It is none of those that are published.
    """
    if value is not None and value not in (*FLOAT_TYPES, *FLOAT_TYPES.values()):
        raise ConversionError(f"{name} is {value!r}; allowed are {', '.join(FLOAT_TYPES)}.")
    return FLOAT_TYPES.get(value, value)


def generation_defaults(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Defaults of `generate`."""
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # A generated placeholder would be taken for an image by the next forward pass.
        suppress_tokens=[tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)],
    )


def assemble(
    system: PublishedSystem,
    out: str | Path,
    *,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    tensors: Sequence[PlannedTensor],
    inventory: Inventory,
    dtype: torch.dtype,
    card: str,
    max_shard_size: int | str,
    progress: ProgressCallback | None,
    generation_config: GenerationConfig | None = None,
    finish: Callable[[Path], None] | None = None,
    folders: Mapping[str, Path] | None = None,
    beside: Sequence[PlannedTensor] = (),
) -> ConversionReport:
    """Write a complete, verified repository, or nothing.

    Args:
        system (`PublishedSystem`): Which model it is.
        out (`str` or `Path`): The repository's folder; it must not exist or be empty.
        model (`PreTrainedModel`): The model with the right sizes, on the meta device.
        processor (`ProcessorMixin`): The processor.
        tensors (`Sequence[PlannedTensor]`): The weights.
        inventory (`Inventory`): What the sources hold.
        dtype (`torch.dtype`): Type of the vision-language model.
        card (`str`): Name of the model card's values.
        max_shard_size (`int` or `str`): Largest weight file.
        progress (`ProgressCallback`, *optional*): Told about bytes written.
        generation_config (`GenerationConfig`, *optional*): Defaults of `generate`, where `generation_defaults` are not
            enough.
        finish (`Callable[[Path], None]`, *optional*): Given the folder, last changes to its small files.
        folders (`Mapping[str, Path]`, *optional*): See `write_manifest`.
        beside (`Sequence[PlannedTensor]`, *optional*): Tensors that `finish` writes to a weight file of their own.

    Raises:
        ConversionError: The disk is too small, a value is not finite, or what was written does not verify.
    """
    out, everything = Path(out), [*tensors, *beside]
    check_free_space(out, sum(tensor.num_bytes for tensor in everything))
    # also where nobody has registered the classes with transformers
    system.publish_code()
    with staging_folder(out) as folder:
        digests = write_repository(
            folder,
            model=model,
            tensors=tensors,
            dtype=dtype,
            generation_config=generation_config or generation_defaults(processor.tokenizer),
            processor=processor,
            card=render_card(system.name, card, model.config, dtype),
            max_shard_size=max_shard_size,
            progress=progress or no_progress,
            release=inventory.release,
        )
        if finish is not None:
            finish(folder)
        write_manifest(
            folder,
            system=system.name,
            dtype=dtype,
            tensors=everything,
            dropped=inventory.dropped,
            digests=digests,
            folders=folders,
        )
        check_staged(folder)
    return ConversionReport(
        out=out,
        num_parameters=sum(tensor.num_bytes // tensor.dtype.itemsize for tensor in everything),
        dtype=dtype,
        origins=dict(Counter(tensor.origin for tensor in everything)),
        dropped=inventory.dropped,
    )
