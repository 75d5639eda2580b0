"""DiffLMM's processor: LLaVA-v1 prompts, one view of the picture for both towers."""

from typing import TYPE_CHECKING

from transformers.image_utils import ImageInput
from transformers.processing_utils import Unpack

from .chat_processor import ChatInputs, ChatProcessorKwargs
from .chat_templates import IMAGE_TOKEN
from .llava_chat_processor import LlavaChatProcessor, picture_of_rows
from .prompt_rows import read_texts


if TYPE_CHECKING:
    # So that it travels with a saved processor: files named in such lines are copied.
    from .image_processing_vip_llava import DiffLmmImageProcessor  # noqa: F401


class DiffLmmProcessorKwargs(ChatProcessorKwargs, total=False):
    pass


class DiffLmmProcessor(LlavaChatProcessor):
    r"""
    Turns pictures and messages into inputs of [`DiffLmmForConditionalGeneration`].

    Args:
        image_processor ([`DiffLmmImageProcessor`]): Makes the view.
        tokenizer (`PreTrainedTokenizerBase`): Knows `image_token`.
        patch_size (`int`): Side in pixels of what one image token stands for; `config.patch_size`.
        vision_feature_select_strategy (`str`): `"full"`: no image token is left out.
        chat_template (`str` or `dict`, *optional*): Jinja template; that of the name `template` by default.
        image_token (`str`): What stands for a picture in texts.
        num_additional_image_tokens (`int`): Image tokens that are none of the grid's.
        template (`str`): Name of the prompt format; LLaVA's `"llava_v1"`, with which the authors' scripts ask.

    Example:
        ```python
        inputs = processor(images=image, text="Describe the image.", return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=64)
        processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        ```
    """

    valid_processor_kwargs = DiffLmmProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        patch_size=16,
        vision_feature_select_strategy="full",
        chat_template=None,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=0,
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
        answer: str | list[str] | None = None,
        image_index: list[int] | None = None,
        **kwargs: Unpack[DiffLmmProcessorKwargs],
    ) -> ChatInputs:
        r"""
        Every row is one prompt, about one picture or none.

        Args:
            images (`ImageInput`, *optional*):
                One picture per row, or one for all rows; of any kind that `load_rgb_image` reads. `None` in a list is
                a row without a picture.
            text (`str` or `list[str]`, *optional*):
                The user's message, put behind the picture in the chat template. A text that holds the image token is
                the whole prompt up to the answer, and stays as it is.
            answer (`str` or `list[str]`, *optional*):
                The answer to each text. Spacing and end token are the chat template's.
            image_index (`list[int]`, *optional*):
                The image of each row, where rows share images.
            kwargs:
                `return_labels`, `apply_template`, `padding_side` (by default left if a row awaits its answer, right if
                all have one), and arguments of the tokenizer and the image processor.

        Returns:
            [`ChatInputs`]: `input_ids`, `attention_mask`, `pixel_values` with one entry per row that has a picture,
            and `labels` where asked for. With `images` alone only `pixel_values`.

        Raises:
            ValueError: If texts, answers and images do not match, or truncation would cut off image tokens.
        """
        if images is None and text is None:
            raise ValueError(f"{type(self).__name__} needs `text`, `images` or both; nothing was given.")
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        if text is None:
            if answer is not None:
                raise ValueError("`answer` was given without `text`. Give the message that it answers.")
            return self._views_alone(images, options, kwargs)
        texts = read_texts(text, answer)
        return self._inputs_of_rows(texts, picture_of_rows(images, len(texts), image_index), options, kwargs)


__all__ = ["DiffLmmProcessor"]
