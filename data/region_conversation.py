"""A conversation about regions of an image, before the visual prompts that point at them are drawn."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..processing.chat import IMAGE_TOKEN, assistant_message, user_message
from ..processing.image_loading import load_rgb_image
from ..processing.regions import Region, read_region
from ..processing.visual_prompt_sampling import CONSTANT, PromptRandom, PromptStyle, sample_visual_prompt
from ..processing.visual_prompts import ANCHOR, SHAPES, VisualPrompt, draw_visual_prompts
from .data_files import DataFileError
from .region_wording import ANSWER_BY_LETTER, LETTERS


# Each data set's shapes and the style of `sample_visual_prompt`; visual_prompt_organizer.py, `visual_prompt_config`.
SHAPES_OF = {
    "refcocog": (SHAPES, ""),
    "vcr": (tuple(shape for shape in SHAPES if shape != "point"), ""),
    "vg_rel": (("rectangle", "ellipse"), ""),
    "flickr30k": (("rectangle", "ellipse", "arrow"), ""),
    "v7w": (("rectangle",), CONSTANT),
    "pointQA_twice": (("rectangle",), CONSTANT),
    "custom": (SHAPES, ""),
    # the tests of VCR
    "vcr_qa": (("point",), CONSTANT),
    "vcr_qar": (("point",), CONSTANT),
}


@dataclass
class PromptedRegion:
    """
    Args:
        style ([`PromptStyle`]): Shape and colour.
        box (`list[float]`): `[x1, y1, x2, y2]` in pixels of the image.
        segmentation: Polygons, a COCO run-length encoding or `None`.
    """

    style: PromptStyle
    box: list[float]
    segmentation: Any = None


@dataclass
class RegionConversation:
    """
    Args:
        turns (`list[tuple[str, str]]`): Messages of the user and answers; `<image>` stands for the image.
        regions (`list[PromptedRegion]`): What to draw, in this order.
        drawing_style (`str`): `constant` for the widths and radii of the tests, empty to sample them.
    """

    turns: list[tuple[str, str]]
    regions: list[PromptedRegion] = field(default_factory=list)
    drawing_style: str = ""

    @property
    def has_image(self) -> bool:
        return any(IMAGE_TOKEN in message for turn in self.turns for message in turn)

    def with_image(self) -> "RegionConversation":
        """The same, with the image in the first message if no message has it."""
        if self.has_image:
            return self
        (question, answer), *others = self.turns
        return RegionConversation([(f"{IMAGE_TOKEN}\n{question}", answer), *others], self.regions, self.drawing_style)

    def messages(self) -> list[dict[str, Any]]:
        """As chat templates take them; the image comes first in its message (LLaVA, `preprocess_multimodal`)."""
        messages = []
        for question, answer in self.turns:
            has_image = IMAGE_TOKEN in question
            text = question.replace(IMAGE_TOKEN, "").strip() if has_image else question
            messages += [user_message(text, has_image=has_image), assistant_message(answer)]
        return messages


def multiple_choice(question: str, choices: list[str]) -> str:
    """Question, four lettered choices, and how to answer.

    Raises:
        DataFileError: If there are not four choices.
    """
    if len(choices) != len(LETTERS):
        raise DataFileError(f"{question!r} has {len(choices)} choices; there must be four.")
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    return "\n".join([question, *lines, ANSWER_BY_LETTER])


def sample_prompts(
    conversation: RegionConversation,
    image_size: tuple[int, int],
    rng: PromptRandom,
    alpha: int | None = None,
    anchor: int = ANCHOR,
) -> list[VisualPrompt]:
    """
    Args:
        conversation ([`RegionConversation`]): What `build_conversation` returned with the same `rng`.
        image_size (`tuple[int, int]`): (height, width) of the image.
        rng ([`PromptRandom`]): Source of everything that is not given.
        alpha (`int`, *optional*): Opacity of all visual prompts, 0 to 255; sampled for each by default.
        anchor (`int`): Side in pixels of the model's input, by which widths scale.

    Returns:
        `list[VisualPrompt]`: One visual prompt per region, in order.

    Raises:
        DataFileError: If a region is invalid or lies outside the image.
    """
    prompts = []
    for region in conversation.regions:
        try:
            prompts.append(
                sample_visual_prompt(
                    rng,
                    read_segmented_region(region.box, region.segmentation),
                    image_size,
                    shape=region.style.shape,
                    color=region.style.color,
                    style=conversation.drawing_style,
                    alpha=alpha,
                    anchor=anchor,
                )
            )
        except (TypeError, ValueError) as error:  # TypeError for a list that does not hold numbers
            raise DataFileError(f"The region {reprlib.repr(region.box)} cannot be drawn: {error}") from error
    return prompts


def read_segmented_region(box: list[float], segmentation: Any) -> Region:
    """A box with polygons, COCO run lengths or nothing, as rows of region data have them."""
    if not segmentation:
        return read_region(box_xyxy=box)
    if isinstance(segmentation, Mapping):
        return read_region(box_xyxy=box, rle=segmentation)
    return read_region(box_xyxy=box, polygons=segmentation)


def image_with_prompts(image: Any, conversation: RegionConversation, rng: PromptRandom, **options) -> Image.Image:
    """The image with all visual prompts; arguments as for [`sample_prompts`]."""
    image = load_rgb_image(image)
    prompts = sample_prompts(conversation, (image.height, image.width), rng, **options)
    return draw_visual_prompts(image, prompts)


__all__ = [
    "SHAPES_OF",
    "PromptedRegion",
    "RegionConversation",
    "image_with_prompts",
    "multiple_choice",
    "read_segmented_region",
    "sample_prompts",
]
