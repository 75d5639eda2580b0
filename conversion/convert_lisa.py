"""LISA: published folders (v0 and v1) and `zero_to_fp32` output with unmerged adapters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import torch

from .convert import ConversionOptions, ConversionReport, Parts, convert
from .convert_lisa_gsva import Sources, read_lisa_gsva
from .errors import ConversionError
from .locations import locate, location_name, pin
from .systems import LISA


_TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")


def convert_lisa(
    source: str | os.PathLike,
    *,
    vision_tower: str | os.PathLike | None,
    out: str | os.PathLike,
    base: str | os.PathLike | None = None,
    sam: str | os.PathLike | None = None,
    lora_alpha: float = 16.0,
    template: str = "llava_v1",
    sam_options: Mapping[str, Any] | None = None,
    segmenter_dtype: torch.dtype | str | None = None,
    **options: Unpack[ConversionOptions],
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
        template (`str`, *optional*, defaults to `"llava_v1"`): The conversation template the model was trained with.
        sam_options (`Mapping[str, Any]`, *optional*): `num_attention_heads`, `window_size` and `global_attn_indexes`
            of a SAM without relative positions.
        segmenter_dtype (`torch.dtype` or `str`, *optional*): Type the segmenter is stored in, by default float32;
            transformers loads it as float32 in any case.
        options: See [`ConversionOptions`]. The projector is float32 whatever `dtype` says.

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

    def read_parts() -> Parts:
        name, checkpoint = location_name(source), locate(source)
        if not checkpoint.exists():
            raise ConversionError("There is no such file or folder.", path=checkpoint, next_step="Check the path.")
        pinned = None if base is None else pin(base)
        base_folder = None if pinned is None else locate(pinned, weights=False)
        own = checkpoint if checkpoint.is_dir() else checkpoint.parent
        folders = [own, base_folder] if checkpoint.is_dir() or base is None else [base_folder, own]
        sources = Sources(
            checkpoint=checkpoint,
            name=name,
            config=_first_with(folders, ("config.json",), "config.json"),
            tokenizer=_first_with(folders, _TOKENIZER_FILES, "tokenizer"),
            # LISA's merge script leaves the tower out, and its loader always takes CLIP's own weights.
            tower_first=True,
            # The projector is frozen in training, so that it equals the base's.
            base_projector=True,
            vision_tower=locate(vision_tower),
            base=pinned,
            sam=None if sam is None else locate(sam),
        )
        return read_lisa_gsva(LISA, sources, template, lambda rank: lora_alpha, sam_options)

    return convert(LISA, source, out, read_parts, template=template, segmenter_dtype=segmenter_dtype, **options)


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
