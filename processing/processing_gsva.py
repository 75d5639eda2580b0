"""GSVA's processor: LISA's, with `[REJ]` and GSVA's wording of phrases."""

from .chat import GENERIC_WORDING
from .processing_lisa import LisaProcessor
from .slot_processor import REJ_TOKEN


# GSVA's evaluation (data/refer_seg_dataset.py). `omit_space_after_phrases` repeats a slip of that code, "umbrellain
# this image": the published numbers were measured with it.
GSVA_WORDING = {
    **GENERIC_WORDING,
    "question": " What are {phrases} in this image? Please output segmentation masks.",
    "questions": " What are {phrases} in this image? Please output segmentation masks.",
    "answer": "Sure,{items}.",
    "answers": "Sure,{items}.",
    "item": "{phrase}:{seg}",
    "lower_case": True,
    "strip_full_stops": True,
    "omit_space_after_phrases": True,
}


class GsvaProcessor(LisaProcessor):
    r"""
    Turns images and questions into inputs of [`GsvaForReasoningSegmentation`], and its outputs into segments.

    Arguments are those of [`LisaProcessor`]; `rej_token` is `"[REJ]"` by default. `phrases` are put into one question,
    in lower case and without full stops around them, word for word as GSVA was evaluated on gRefCOCO; every phrase
    gets a `[SEG]`, and the model's own prediction at that point decides whether it is rejected.
    """

    default_wording = GSVA_WORDING
    default_rej_token = REJ_TOKEN


__all__ = ["GSVA_WORDING", "GsvaProcessor"]
