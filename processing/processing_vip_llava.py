"""ViP-LLaVA's processor: visual prompts drawn on the image, words for them in the text, LLaVA's prompts around."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers.image_utils import ImageInput
from transformers.processing_utils import Unpack

from .chat import read_texts
from .chat_processor import ChatInputs, ChatProcessorKwargs
from .question_processor import LlavaQuestionProcessor, images_of_rows
from .visual_prompts import VisualPrompt, draw_visual_prompts, fill_placeholders


if TYPE_CHECKING:
    # So that it is saved with a processor: files named in such imports are copied.
    from .image_processing_vip_llava import VipLlavaImageProcessor  # noqa: F401


class VipLlavaProcessor(LlavaQuestionProcessor):
    r"""
    Turns images, visual prompts on them and messages into inputs of [`VipLlavaForConditionalGeneration`].

    Arguments are those of [`LlavaChatProcessor`]; `template` is `"llava_v1"` (Vicuna), `"llava_llama_3"` or
    `"llava_phi_3"`.

    Example:
        ```python
        mug = {"shape": "rectangle", "box_xyxy": (40, 30, 120, 100), "color": "red"}
        inputs = processor(image, "What is the thing <bbox0> for?", visual_prompts=[mug], return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=64)
        answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        ```
    """

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        visual_prompts: Sequence[VisualPrompt | dict] | Sequence[Sequence[VisualPrompt | dict]] | None = None,
        answer: str | list[str] | None = None,
        image_index: list[int] | None = None,
        **kwargs: Unpack[ChatProcessorKwargs],
    ) -> ChatInputs:
        r"""
        As [`LlavaQuestionProcessor`], with visual prompts on the images.

        Args:
            images (`ImageInput`, *optional*):
                One image per row, or one for all rows; of any kind that `load_rgb_image` reads. `None` in a list is a
                row without an image.
            text (`str` or `list[str]`, *optional*):
                The user's message, or with the image token the whole prompt. `<bboxN>` and `<region N>` (from 0;
                `<bbox>` where there is one) become the phrase for the visual prompt: "within the red rectangle".
            visual_prompts (`list[list[VisualPrompt]]`, *optional*):
                Per row what to draw on its image, at the image's own size; also as dicts of the arguments of
                [`VisualPrompt`]. A single list is one row. Prompts without a colour get one that tells them apart,
                and sizes that are not given scale with the side of what the model sees.
            answer (`str` or `list[str]`, *optional*):
                The answer to each text, with the same placeholders.
            image_index (`list[int]`, *optional*):
                The image of each row, where rows share images.
            kwargs: As in [`ChatProcessor`].

        Returns:
            [`ChatInputs`]: `input_ids`, `attention_mask`, `pixel_values` with one entry per row that has an image, and
            `labels` where asked for. With `images` alone only `pixel_values`.

        Raises:
            ValueError: If texts, answers, images and visual prompts do not match, or truncation would cut off an
                image.
        """
        options = self._options(kwargs)
        if text is None:
            return self._images_alone(images, options, answer=answer, visual_prompts=visual_prompts)
        texts = read_texts(text, answer)
        images = images_of_rows(images, len(texts), image_index)
        for index, prompts in enumerate(_read_visual_prompts(visual_prompts, images)):
            if prompts is None:
                continue
            message, reply = texts[index]
            texts[index] = (
                fill_placeholders(message, prompts),
                None if reply is None else fill_placeholders(reply, prompts),
            )
            if prompts:
                side, _ = self._view_size(options["images_kwargs"])
                limit = options["images_kwargs"].get("max_image_pixels") or self.max_image_pixels
                images[index] = draw_visual_prompts(images[index], prompts, side, limit)
        return self._inputs_of_rows(texts, images, options)


def _read_visual_prompts(visual_prompts: Any, images: Sequence[Any]) -> list[Sequence[VisualPrompt] | None]:
    """The prompts of each row; `None` where none were given at all, so that texts keep their placeholders."""
    if visual_prompts is None:
        return [None] * len(images)
    rows = [visual_prompts] if _is_prompt(visual_prompts) else list(visual_prompts)
    if any(_is_prompt(row) for row in rows) or (not rows and len(images) == 1):
        rows = [rows]
    if len(rows) != len(images):
        raise ValueError(
            f"{len(images)} texts and {len(rows)} rows of visual prompts were given. Give one list per text, empty "
            "for a text without any."
        )
    for index, (row, image) in enumerate(zip(rows, images, strict=True)):
        row = [] if row is None else list(row)
        wrong = [type(prompt).__name__ for prompt in row if not _is_prompt(prompt)]
        if wrong:
            raise ValueError(
                f"Row {index} of visual_prompts holds a {wrong[0]}; each entry must be a VisualPrompt or a dict of "
                "its arguments."
            )
        if row and image is None:
            raise ValueError(f"Row {index} has {len(row)} visual prompts and no image to draw them on.")
        rows[index] = [VisualPrompt(**prompt) if isinstance(prompt, Mapping) else prompt for prompt in row]
    return rows


def _is_prompt(value: Any) -> bool:
    # A checkpoint's own code may define the class a second time, so a prompt is recognised by its attributes.
    return isinstance(value, Mapping) or (hasattr(value, "shape") and hasattr(value, "region"))


__all__ = ["VipLlavaProcessor"]
