"""Attend-and-segment of parts: any vision-language model, also LLaVA as a delta or with a projector, any segmenter."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Unpack

from .components import add_llava_component, add_segmenter, add_vlm
from .compose_reasoning_segmentation import VlmOptions, VlmSources, new_projector_tensors
from .composed_card import composed_values
from .convert import ConversionReport, Parts, convert
from .convert_attend_and_segment import attend_and_segment_parts
from .inventory import Inventory
from .locations import Location, locate
from .systems import ATTEND_AND_SEGMENT


def compose_attend_and_segment(
    *,
    segmenter: Location,
    out: str | os.PathLike,
    heads: str | list[int] | None = None,
    phrase_extractor: str = "auto",
    seed: int = 0,
    **options: Unpack[VlmOptions],
) -> ConversionReport:
    """Put a vision-language model and a segmenter into one repository, as [`convert_attend_and_segment`] does.

    Args:
        heads, phrase_extractor: See [`convert_attend_and_segment`].
        segmenter, out, seed, options: See [`compose_lisa`].

    Returns:
        `ConversionReport`: Where the tensors came from.

    Raises:
        ConversionError: A part is missing, unreadable or does not fit; nothing is then left behind.
    """
    sources, written = VlmSources.split_off(options)

    def read_parts() -> Parts:
        inventory, folder = Inventory(), sources.folder()
        llava = sources.original_llava(folder)
        if llava is None:
            component = add_vlm(inventory, folder)
        else:
            component = add_llava_component(inventory, llava, sources.template or "llava_v1")
        drawer = add_segmenter(inventory, locate(segmenter))
        fields = {} if heads is None else {"heads": heads}
        parts = attend_and_segment_parts(inventory, component, drawer, folder, fields, phrase_extractor)
        return replace(
            parts,
            card=composed_values(ATTEND_AND_SEGMENT, {**sources.as_options, "segmenter": segmenter}),
            new_tensors=new_projector_tensors(parts.model, component, seed) if sources.new_projector else {},
        )

    return convert(ATTEND_AND_SEGMENT, None, out, read_parts, template=sources.template, **written)


__all__ = ["compose_attend_and_segment"]
