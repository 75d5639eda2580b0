"""LISA: published folders (v0 and v1) and `zero_to_fp32` output with unmerged adapters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .assembly import ConversionReport
from .convert_lisa_gsva import Options, Sources, check_request, convert
from .errors import ConversionError
from .locations import locate, location_name, pin
from .progress import ProgressCallback
from .systems import LISA
from .wrong_system import names_other_systems


_TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")


@names_other_systems(LISA)
def convert_lisa(
    source: str | os.PathLike,
    *,
    vision_tower: str | os.PathLike | None,
    out: str | os.PathLike,
    base: str | os.PathLike | None = None,
    sam: str | os.PathLike | None = None,
    lora_alpha: float = 16.0,
    dtype: torch.dtype | str | None = None,
    template: str = "llava_v1",
    max_shard_size: int | str = "5GB",
    sam_options: Mapping[str, Any] | None = None,
    card: str | None = None,
    progress: ProgressCallback | None = None,
    segmenter_dtype: torch.dtype | str | None = None,
) -> ConversionReport:
    """Convert a LISA checkpoint into a complete repository.

    Args:
        source (`str` or `os.PathLike`): A published folder (merged; one file or shards), or the file or folder that
            `zero_to_fp32.py` wrote (adapters unmerged); also its name on the Hub (`xinlai/LISA-7B-v1`, also with
            `@revision`).
        vision_tower (`str` or `os.PathLike`): The CLIP model, whose weights published folders leave out: its folder,
            or its name on the Hub (`openai/clip-vit-large-patch14`, also with `@revision`).
        out (`str` or `os.PathLike`): The repository's folder; it must not exist or be empty.
        base (`str` or `os.PathLike`, *optional*): The base LLaVA, as a folder or its name on the Hub: config and
            tokenizer for a source that has none, and weights for parts of the language model the source lacks.
        sam (`str` or `os.PathLike`, *optional*): SAM's own file, for a source without SAM's frozen encoders; also
            `org/name/file.pth` on the Hub.
        lora_alpha (`float`, *optional*, defaults to 16.0): LoRA's alpha in training; only unmerged sources need it.
        dtype (`torch.dtype` or `str`, *optional*): Type of the vision-language model, by default the one most of the
            source's language model is stored in. The projector is float32 always.
        template (`str`, *optional*, defaults to `"llava_v1"`): The conversation template the model was trained with.
        max_shard_size (`int` or `str`, *optional*, defaults to `"5GB"`): Largest weight file.
        sam_options (`Mapping[str, Any]`, *optional*): `num_attention_heads`, `window_size` and `global_attn_indexes`
            of a SAM without relative positions.
        card (`str`, *optional*): Name of the values in `model_cards/`; by default the source's name, where known.
        progress (`ProgressCallback`, *optional*): Told about bytes written; `rich_progress` makes one.
        segmenter_dtype (`torch.dtype` or `str`, *optional*): Type the segmenter is stored in, by default float32;
            transformers loads it as float32 in any case.

    Returns:
        `ConversionReport`: Where the tensors came from and which were dropped.

    Raises:
        ConversionError: Something is missing, unreadable or does not fit; nothing is then left behind.
    """
    if vision_tower is None:
        raise ConversionError(
            "LISA needs the CLIP tower it was trained with.",
            next_step="Pass vision_tower= with its folder or its name on the Hub (openai/clip-vit-large-patch14).",
        )
    options = Options(
        lambda rank: lora_alpha, dtype, template, max_shard_size, sam_options, card, progress, segmenter_dtype
    )
    check_request(LISA, out, options)
    name, source = location_name(source), locate(source)
    if not source.exists():
        raise ConversionError("There is no such file or folder.", path=source, next_step="Check the path.")
    base = None if base is None else pin(base)
    base_folder = None if base is None else locate(base, weights=False)
    own = source if source.is_dir() else source.parent
    folders = [own, base_folder] if source.is_dir() or base is None else [base_folder, own]
    sources = Sources(
        checkpoint=source,
        name=name,
        config=_first_with(folders, ("config.json",), "config.json"),
        tokenizer=_first_with(folders, _TOKENIZER_FILES, "tokenizer"),
        # LISA's merge script leaves the tower out, and its loader always takes CLIP's own weights.
        tower_first=True,
        # The projector is frozen in training, so that it equals the base's.
        base_projector=True,
        vision_tower=locate(vision_tower),
        base=base,
        sam=None if sam is None else locate(sam),
    )
    return convert(LISA, sources, out, options)


def _first_with(folders: list[Path | None], names: tuple[str, ...], what: str) -> Path:
    """The first folder that holds one of the files."""
    for folder in folders:
        if folder is not None and any((folder / name).exists() for name in names):
            return folder
    raise ConversionError(
        f"There is no {what} beside the weights{' or in the base' if any(folders[1:]) else ''}.",
        path=folders[0],
        next_step="Pass base= with the LLaVA folder the checkpoint was trained from.",
    )
