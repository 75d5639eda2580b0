"""Processors with the recorded checkpoints' tokenizers, and the recorded conversations taken apart."""

import re
from dataclasses import dataclass
from functools import cache

import torch
from PIL import Image

from reasonseg.conversion.tokenizers import build_tokenizer
from reasonseg.processing.image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor
from reasonseg.processing.processing_gsva import GsvaProcessor
from reasonseg.processing.processing_lisa import LisaProcessor
from tests.support.parity_data import PARITY, load_case, load_meta


TOKENIZER_FOLDERS = {"lisa": PARITY / "lisa" / "checkpoint", "gsva": PARITY / "gsva" / "base_llava"}
PROCESSOR_CLASSES = {"lisa": LisaProcessor, "gsva": GsvaProcessor}
PATCHES = 256
PLACEHOLDER = -200
PARTS = re.compile(r"(?P<prompt>.*<im_end>\n(?P<question>.*?) (?:ASSISTANT:|\[/INST\])) (?P<answer>.*?) ?</s>", re.S)


@cache
def tokenizer(system: str):
    """Shared: do not change it."""
    return build_tokenizer(TOKENIZER_FOLDERS[system], system)


def processor(system: str, side: int = 224, segmenter_side: int = 64, **fields):
    """The recorded checkpoint's processor; the segmenter's view is small, as most tests are not about it."""
    image_processor = ReasoningSegmentationImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        segmenter_size={"longest_edge": segmenter_side},
    )
    return PROCESSOR_CLASSES[system](image_processor, tokenizer(system), **fields)


def small_processor(system: str, **fields):
    """Four image tokens instead of 256."""
    return processor(system, side=28, **fields)


@dataclass(frozen=True)
class RecordedCase:
    """
    One recorded batch.

    Args:
        system, name (`str`): Which one.
        conversations (`list[str]`): Whole conversations.
        prompts, questions, answers (`list[str]`): Their parts; prompts end where the answer begins.
        input_ids, attention_mask, labels (`list[list[int]]`): As recorded, with 256 image tokens.
    """

    system: str
    name: str
    conversations: list[str]
    prompts: list[str]
    questions: list[str]
    answers: list[str]
    input_ids: list[list[int]]
    attention_mask: list[list[int]]
    labels: list[list[int]]

    @property
    def template(self) -> str:
        return "llava_llama_2" if self.conversations[0].startswith("[INST]") else "llava_v1"


def training_cases(system: str) -> list[str]:
    """Names of the cases with given answers."""
    return [name.removesuffix("/conversations") for name in load_meta(system) if name.endswith("/conversations")]


def recorded_case(system: str, name: str) -> RecordedCase:
    conversations, tensors = load_meta(system)[f"{name}/conversations"], load_case(system, name)
    parts = [PARTS.fullmatch(conversation) for conversation in conversations]
    ids = tensors["input_ids"]
    return RecordedCase(
        system=system,
        name=name,
        conversations=conversations,
        prompts=[part["prompt"] for part in parts],
        questions=[part["question"] for part in parts],
        answers=[part["answer"] for part in parts],
        input_ids=expand(ids, ids, tokenizer(system).image_token_id),
        attention_mask=expand(ids, tensors["attention_mask"].long(), 1),
        labels=expand(ids, tensors["labels"], -100),
    )


def expand(ids: torch.Tensor, values: torch.Tensor, fill: int) -> list[list[int]]:
    """Replaces the value at each row's image placeholder by 256 times `fill`."""
    rows = []
    for row_ids, row in zip(ids.tolist(), values.tolist(), strict=True):
        index = row_ids.index(PLACEHOLDER)
        rows.append([*row[:index], *[fill] * PATCHES, *row[index + 1 :]])
    return rows


def recorded_image(system: str, name: str = "img0") -> Image.Image:
    return Image.open(PARITY / system / "images" / f"{name}.png")
