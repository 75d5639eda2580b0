"""ViP-LLaVA's processor: visual prompts drawn on the picture, words for them in the text, LLaVA's prompts around."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers.image_utils import ImageInput
from transformers.processing_utils import Unpack

from .chat_processor import ChatInputs, ChatProcessorKwargs
from .chat_templates import IMAGE_TOKEN
from .llava_chat_processor import LlavaChatProcessor, picture_of_rows
from .prompt_rows import read_texts
from .visual_prompts import VisualPrompt, draw_visual_prompts, fill_placeholders


if TYPE_CHECKING:
    # So that it travels with a saved processor: files named in such lines are copied.
    from .image_processing_vip_llava import VipLlavaImageProcessor  # noqa: F401


class VipLlavaProcessorKwargs(ChatProcessorKwargs, total=False):
    pass


class VipLlavaProcessor(LlavaChatProcessor):
    r"""
    Turns pictures, marks on them and messages into inputs of [`VipLlavaForConditionalGeneration`].

    Args:
        image_processor ([`VipLlavaImageProcessor`]): Pads pictures to a square and makes CLIP's view.
        tokenizer (`PreTrainedTokenizerBase`): Knows `image_token`.
        patch_size (`int`): Side of CLIP's patches in pixels.
        vision_feature_select_strategy (`str`): `"default"` leaves CLIP's class token out, as the model does.
        chat_template (`str` or `dict`, *optional*): Jinja template; that of the name `template` by default.
        image_token (`str`): What stands for a picture in texts.
        num_additional_image_tokens (`int`): Tokens that CLIP adds to its patches; 1 for the class token.
        template (`str`, *optional*): `"llava_v1"` (Vicuna), `"llava_llama_3"` or `"llava_phi_3"`.

    Example:
        ```python
        mug = {"shape": "rectangle", "box_xyxy": (40, 30, 120, 100), "color": "red"}
        inputs = processor(image, "What is the thing <bbox0> for?", visual_prompts=[mug], return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=64)
        answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        ```
    """

    valid_processor_kwargs = VipLlavaProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=None,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
        template="llava_v1",
        **kwargs,
    ):
        super().__init__(
            image_processor,
            tokenizer,
            patch_size,
            vision_feature_select_strategy,
            chat_template,
            image_token,
            num_additional_image_tokens,
            template,
        )

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        visual_prompts: Sequence[VisualPrompt | dict] | Sequence[Sequence[VisualPrompt | dict]] | None = None,
        answer: str | list[str] | None = None,
        image_index: list[int] | None = None,
        **kwargs: Unpack[VipLlavaProcessorKwargs],
    ) -> ChatInputs:
        r"""
        Every row is one prompt, about one picture or none.

        Args:
            images (`ImageInput`, *optional*):
                One picture per row, or one for all rows; of any kind that `load_rgb_image` reads. `None` in a list is
                a row without a picture.
            text (`str` or `list[str]`, *optional*):
                The user's message, put behind the picture in the checkpoint's chat template. A text that holds the
                image token is the whole prompt up to the answer, and stays as it is. `<bboxN>` and `<region N>` (from
                0; `<bbox>` where there is one) become the phrase for the visual prompt: "within the red rectangle".
            visual_prompts (`list[list[VisualPrompt]]`, *optional*):
                Per row what to draw on its picture, at the picture's own size; also as dicts of the arguments of
                [`VisualPrompt`]. A single list is one row. Prompts without a colour get one that tells them apart,
                and sizes that are not given scale with the side of what the model sees.
            answer (`str` or `list[str]`, *optional*):
                The answer to each text, with the same placeholders. Spacing and end token are the chat template's.
            image_index (`list[int]`, *optional*):
                The image of each row, where rows share images.
            return_labels (`bool`, *optional*, defaults to `False`):
                Whether to return `labels`: ids of the answers, -100 elsewhere.
            apply_template (`bool`, *optional*):
                Whether to wrap `text` in the chat template; by default unless it holds the image token.
            padding_side (`str`, *optional*):
                `"left"` or `"right"`; by default left if a row awaits its answer, right if all have one.
            kwargs:
                Further arguments of the tokenizer (`padding`, `truncation`, `max_length`, `return_tensors`, ...) and
                of the image processor.

        Returns:
            [`ChatInputs`]: `input_ids`, `attention_mask`, `pixel_values` with one entry per row that has a picture,
            and `labels` where asked for. With `images` alone only `pixel_values`.

        Raises:
            ValueError: If texts, answers, images and visual prompts do not match, or truncation would cut off an
                image.
        """
        if images is None and text is None:
            raise ValueError(f"{type(self).__name__} needs `images`, `text` or both; nothing was given.")
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        if text is None:
            if answer is not None or visual_prompts is not None:
                raise ValueError("`answer` or `visual_prompts` came without `text`. Give the message they belong to.")
            return self._views_alone(images, options, kwargs)
        texts = read_texts(text, answer)
        pictures = picture_of_rows(images, len(texts), image_index)
        for place, prompts in enumerate(_read_visual_prompts(visual_prompts, pictures)):
            if prompts is None:
                continue
            message, reply = texts[place]
            texts[place] = (
                fill_placeholders(message, prompts),
                None if reply is None else fill_placeholders(reply, prompts),
            )
            if prompts:
                side, _ = self._view_size(options["images_kwargs"])
                limit = options["images_kwargs"].get("max_image_pixels") or self.max_image_pixels
                pictures[place] = draw_visual_prompts(pictures[place], prompts, side, limit)
        return self._inputs_of_rows(texts, pictures, options, kwargs)


def _read_visual_prompts(visual_prompts: Any, pictures: Sequence[Any]) -> list[Sequence[VisualPrompt] | None]:
    """The prompts of each row; `None` where none were given at all, so that texts keep their placeholders."""
    if visual_prompts is None:
        return [None] * len(pictures)
    rows = [visual_prompts] if _is_prompt(visual_prompts) else list(visual_prompts)
    if any(_is_prompt(row) for row in rows) or (not rows and len(pictures) == 1):
        rows = [rows]
    if len(rows) != len(pictures):
        raise ValueError(
            f"{len(pictures)} texts and {len(rows)} rows of visual prompts were given. Give one list per text, empty "
            "for a text without any."
        )
    for place, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
        row = [] if row is None else list(row)
        wrong = [type(prompt).__name__ for prompt in row if not _is_prompt(prompt)]
        if wrong:
            raise ValueError(
                f"Row {place} of visual_prompts holds a {wrong[0]}; each entry must be a VisualPrompt or a dict of "
                "its arguments."
            )
        if row and picture is None:
            raise ValueError(f"Row {place} has {len(row)} visual prompts and no image to draw them on.")
        rows[place] = [VisualPrompt(**prompt) if isinstance(prompt, Mapping) else prompt for prompt in row]
    return rows


def _is_prompt(value: Any) -> bool:
    # Code that a checkpoint brings along may define the class a second time, so its kind is told by what it has.
    return isinstance(value, Mapping) or (hasattr(value, "shape") and hasattr(value, "region"))


__all__ = ["VipLlavaProcessor"]
