"""GSVA: the released `.bin` files, with the base LLaVA folder they do not contain."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Unpack

import torch

from .convert import ConversionOptions, ConversionReport, Parts, convert
from .convert_lisa_gsva import Sources, read_lisa_gsva
from .errors import ConversionError
from .locations import locate, location_name, pin
from .systems import GSVA


# Ranks of the released training commands (7B, 13B) and the alpha they leave at its default.
_ALPHA_OF_RANK = {8: 16.0, 64: 16.0}


def convert_gsva(
    source: str | os.PathLike,
    *,
    base: str | os.PathLike,
    out: str | os.PathLike,
    vision_tower: str | os.PathLike | None = None,
    sam: str | os.PathLike | None = None,
    lora_alpha: float | None = None,
    template: str = "llava_v1",
    sam_options: Mapping[str, Any] | None = None,
    segmenter_dtype: torch.dtype | str | None = None,
    **options: Unpack[ConversionOptions],
) -> ConversionReport:
    """Convert a GSVA checkpoint into a complete repository.

    Args:
        source (`str` or `os.PathLike`): The released `.bin`, or what `zero_to_fp32.py` wrote (adapters unmerged); also
            `org/name/file.bin` or `org/name` on the Hub.
        base (`str` or `os.PathLike`): The base LLaVA, as a folder or its name on the Hub (`org/name`, also with
            `@revision`): config, tokenizer, and weights for parts of the language model the source lacks.
        out (`str` or `os.PathLike`): The repository's folder; it must not exist or be empty.
        vision_tower (`str` or `os.PathLike`, *optional*): The CLIP model, as a folder or its name on the Hub. Its
            weights are used where the source has none; its config is needed for towers other than ViT-L.
        sam (`str` or `os.PathLike`, *optional*): SAM's own file, for a source without SAM's frozen encoders; also
            `org/name/file.pth` on the Hub.
        lora_alpha (`float`, *optional*): LoRA's alpha in training; known for the released ranks 8 and 64.
        template, sam_options, segmenter_dtype: See `convert_lisa`.
        options: See [`ConversionOptions`].

    Returns:
        `ConversionReport`: Where the tensors came from and which were dropped.

    Raises:
        ConversionError: Something is missing, unreadable or does not fit; nothing is then left behind.
    """

    def alpha_of_rank(rank: int) -> float:
        if lora_alpha is not None:
            return lora_alpha
        if rank not in _ALPHA_OF_RANK:
            raise ConversionError(
                f"The adapters have rank {rank}; alpha is known for the released ranks 8 and 64 only.",
                path=source,
                next_step="Pass lora_alpha= with the value of the training command (its default is 16).",
            )
        return _ALPHA_OF_RANK[rank]

    def read_parts() -> Parts:
        pinned = pin(base)
        base_folder = locate(pinned, weights=False)
        sources = Sources(
            checkpoint=locate(source),
            name=location_name(source),
            config=base_folder,
            tokenizer=base_folder,
            # GSVA loads the .bin last, over CLIP's own weights.
            tower_first=False,
            # GSVA draws a new projector before training, so the base's is another one.
            base_projector=False,
            vision_tower=None if vision_tower is None else locate(vision_tower),
            base=pinned,
            sam=None if sam is None else locate(sam),
        )
        return read_lisa_gsva(GSVA, sources, template, alpha_of_rank, sam_options)

    return convert(GSVA, source, out, read_parts, template=template, segmenter_dtype=segmenter_dtype, **options)
