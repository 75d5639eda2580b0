"""Sa2VA's processor: prompts of its vision-language models, both views of the image, `[SEG]` and `<p>`."""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria
from transformers.processing_utils import MultiModalData

from .chat import GENERIC_WORDING, IMAGE_TOKEN
from .chat_processor import LlavaChatProcessor
from .slot_processor import SEG_TOKEN, SlotProcessor


if TYPE_CHECKING:
    # So that it travels with a saved processor: files named in such lines are copied.
    from .image_processing_sa2va import Sa2VaImageProcessor  # noqa: F401
    from .image_processing_sa2va_tiles import Sa2VaTileImageProcessor  # noqa: F401


# The question of the authors' RefCOCO evaluation; the line break is what they leave of "<image>\n". Training has many
# others, and as many answers.
SA2VA_WORDING = {
    **GENERIC_WORDING,
    "question": "\n Please segment {phrases} in this image.",
    "questions": "\n Please segment {phrases} in this image.",
    "answer": "Sure, {seg}.",
    "item": "{phrase} {seg}",
}
# The templates of the variants on LLaVA and InternVL write the line break themselves.
SA2VA_LLAVA_WORDING = {**SA2VA_WORDING, **dict.fromkeys(("question", "questions"), SA2VA_WORDING["question"][1:])}

PHRASE_TOKENS = ("<p>", "</p>")
REGION_TOKENS = ("<vp>", "</vp>")
ADDED_TOKENS = (SEG_TOKEN, *PHRASE_TOKENS, *REGION_TOKENS)
"""What training adds to the tokenizer, in this order."""

# Turns without a system message.
_TURNS = """\
{%- macro text_of(content) -%}
  {%- if content is string -%}{{ content }}{%- else -%}
    {%- for part in content -%}{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
  {%- set text = text_of(message['content']) -%}
  {%- if message['role'] == 'user' -%}
    {{- USER if loop.first else AGAIN -}}
    {%- if message['content'] is not string -%}
      {%- for part in message['content'] -%}
        {%- if part['type'] == 'image' -%}{{- IMAGE -}}{%- endif -%}
      {%- endfor -%}
    {%- endif -%}
    {{- text + ASKED -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- ASSISTANT -}}
    {%- generation -%}{{- text + END -}}{%- endgeneration -%}{{- BREAK -}}
  {%- else -%}
    {{- raise_exception('Roles are user and assistant; this model knows no system message.') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ASSISTANT -}}{%- endif -%}"""


def _template(**words: str) -> str:
    words = {"AGAIN": words["USER"], **words}
    return re.sub("|".join(words), lambda found: json.dumps(words[found[0]]), _TURNS)


# LLaVA's, without a space before the answer.
SA2VA_LLAVA_TEMPLATE = _template(
    USER="USER: ", IMAGE=f"{IMAGE_TOKEN}\n", ASKED=" ", ASSISTANT="ASSISTANT:", END="</s>", BREAK=""
)
TILE_TOKEN, TILES_START, TILES_END = "<IMG_CONTEXT>", "<img>", "</img>"
"""What stands for a part of a tile in the prompts of InternVL's variant, and what it writes around an image."""
SA2VA_INTERNVL_TEMPLATE = _template(
    USER="<|im_start|>user\n",
    IMAGE=f"{TILE_TOKEN}\n",
    ASKED="<|im_end|>\n",
    ASSISTANT="<|im_start|>assistant\n",
    END="<|im_end|>",
    BREAK="\n",
)
# That of Sa2VA-4B, whose words are no tokens of its language model, Qwen2.5. The line break after an answer is left to
# the next turn: with the answer's end it would make up tokens that no training saw.
SA2VA_PHI_3_TEMPLATE = _template(
    USER="<|user|>\n",
    AGAIN="\n<|user|>\n",
    IMAGE=f"{TILE_TOKEN}\n",
    ASKED="<|end|>\n",
    ASSISTANT="<|assistant|>\n",
    END="<|end|>",
    BREAK="",
)
SA2VA_PHI_3_STOP_WORDS = ("<|end|>",)


class StopWords(StoppingCriteria):
    """
    Ends an answer whose text ends with a word, line breaks aside, as the original does; no token need be that word.
    Goes to the model with its inputs.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Decodes the answer.
        words (`Sequence[str]`): The words.
    """

    # Beside one token per letter of the longest word: line breaks.
    _more_tokens = 8
    # By this name transformers knows that rows which have ended are to be filled up.
    eos_token_id = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase, words: Sequence[str]):
        self.tokenizer, self.words = tokenizer, tuple(words)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        read = max(map(len, self.words)) + self._more_tokens
        texts = [self.tokenizer.decode(ids) for ids in input_ids[:, -read:].tolist()]
        ended = [re.sub(r"[\r\n]", "", text).endswith(self.words) for text in texts]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


class Sa2VaProcessor(SlotProcessor, LlavaChatProcessor):
    r"""
    Turns images and questions into inputs of [`Sa2VaForReasoningSegmentation`], and its outputs into segments.

    A message may hold `<image>`, as the original's messages do. On Qwen-VL it is taken out; on LLaVA and InternVL the
    image takes its place. A text that holds the words of the chat template around it is a whole prompt. Regions of an
    image as part of a question, which InternVL's variant knows, are not supported.

    Args:
        image_processor:
            [`Sa2VaImageProcessor`] for Qwen-VL, [`ReasoningSegmentationImageProcessor`] for LLaVA,
            [`Sa2VaTileImageProcessor`] for InternVL; makes both views.
        tokenizer (`PreTrainedTokenizerBase`): Knows `image_token`, `seg_token`, `<p>` and `</p>`.
        patch_size, vision_feature_select_strategy, num_additional_image_tokens:
            Of the image tokens of LLaVA and of InternVL's tiles; Qwen-VL's follow from the image processor.
        chat_template (`str`, *optional*): Qwen-VL's own; LLaVA's without a system message by default.
        image_token (`str`): What stands for an image in prompts.
        seg_token (`str`): The token that asks for a mask.
        wording (`dict`, *optional*): Fields of the checkpoint's wording of phrases that differ from `default_wording`.
        stop_words (`list[str]`, *optional*):
            Words that end an answer, where no token does (Sa2VA-4B); they are no part of its text. Inputs that await
            their answer then hold a `stop_criterion`, which goes to the model.

    Example:
        ```python
        inputs = processor(images=image, phrases=["the red cup"], return_tensors="pt")
        result = processor.post_process_segmentation(model(**inputs), inputs)[0]
        ```
    """

    default_wording = SA2VA_WORDING

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=None,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
        seg_token=SEG_TOKEN,
        wording=None,
        stop_words=None,
        **kwargs,
    ):
        self._set_slots(seg_token, None, wording)
        self.stop_words = list(stop_words or ())
        super().__init__(
            image_processor,
            tokenizer,
            patch_size,
            vision_feature_select_strategy,
            SA2VA_LLAVA_TEMPLATE if chat_template is None else chat_template,
            image_token,
            num_additional_image_tokens,
            template=None,
        )
        self.image_token_ids = [self.image_token_id]

    @property
    def _sees_patches(self) -> bool:
        """Whether the vision-language model is a Qwen-VL."""
        return hasattr(self.image_processor, "merge_size")

    @property
    def _sees_tiles(self) -> bool:
        """Whether the vision-language model is an InternVL."""
        return hasattr(self.image_processor, "crop_to_patches")

    # ---- prompts ------------------------------------------------------------------------------------------------

    def _options(self, kwargs):
        options = super()._options(kwargs)
        # By them Qwen-VL finds the positions of its tokens.
        return {**options, "return_mm_token_type_ids": options["return_mm_token_type_ids"] or self._sees_patches}

    def _prompt_row(self, message, answer, apply_template, has_images):
        if apply_template is not False and IMAGE_TOKEN in message:
            message = message.replace(IMAGE_TOKEN, "" if self._sees_patches else self.image_token)
            is_question = apply_template is None and not self._sees_patches
            if is_question and (markers := self._markers()) and markers.before.strip() not in message:
                message = self._render([{"role": "user", "content": message}], True)
        return super()._prompt_row(message, answer, apply_template, has_images)

    def _model_inputs(self, rows, images, index, options):
        inputs = super()._model_inputs(rows, images, index, options)
        if self.stop_words and inputs.awaits_answers:
            inputs["stop_criterion"] = StopWords(self.tokenizer, self.stop_words)
        return inputs

    def replace_image_token(self, image_inputs, image_idx, **kwargs) -> str:
        """The image token as often as the image has features."""
        if "tile_counts" in image_inputs:
            tile = super().replace_image_token(image_inputs, 0, **kwargs)  # all have the same size
            return f"{TILES_START}{tile * int(image_inputs['tile_counts'][image_idx])}{TILES_END}"
        if "image_grid_thw" not in image_inputs:
            return super().replace_image_token(image_inputs, image_idx, **kwargs)
        merged = kwargs.get("merge_size") or self.image_processor.merge_size
        return self.image_token * (int(image_inputs["image_grid_thw"][image_idx].prod()) // merged**2)

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        if image_sizes is None or not (self._sees_patches or self._sees_tiles):
            return super()._get_num_multimodal_tokens(image_sizes, **kwargs)
        options = self._merge_kwargs(**kwargs)["images_kwargs"]
        patches = [self.image_processor.get_number_of_image_patches(*size, options) for size in image_sizes]
        if self._sees_tiles:
            per_tile = self._num_image_tokens(*self._view_size(options))
            return MultiModalData(num_image_tokens=[per_tile * tiles for tiles in patches], num_image_patches=patches)
        merged = options.get("merge_size") or self.image_processor.merge_size
        return MultiModalData(num_image_tokens=[number // merged**2 for number in patches], num_image_patches=patches)

    def _view_size(self, images_kwargs):
        size = images_kwargs.get("size") or self.image_processor.size
        return size["height"], size["width"]

    # ---- answers ------------------------------------------------------------------------------------------------

    @property
    def shown_tokens(self) -> set[int]:
        """Ids of the special tokens that belong to an answer: those around phrases and regions."""
        return set(self.tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS))) - {None, self.tokenizer.unk_token_id}

    def decode_answer(self, ids: list[int]) -> str:
        """Decodes the ids of an answer, without the word that ends it."""
        text = super().decode_answer(ids)
        ended = text.rstrip()
        return next((ended.removesuffix(word) for word in self.stop_words if ended.endswith(word)), text)


__all__ = [
    "ADDED_TOKENS",
    "SA2VA_INTERNVL_TEMPLATE",
    "SA2VA_LLAVA_TEMPLATE",
    "SA2VA_LLAVA_WORDING",
    "SA2VA_PHI_3_STOP_WORDS",
    "SA2VA_PHI_3_TEMPLATE",
    "SA2VA_WORDING",
    "TILE_TOKEN",
    "Sa2VaProcessor",
    "StopWords",
]
