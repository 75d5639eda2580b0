"""IVM's processor: one instruction and one squashed image in, one heat-map and one masked image out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.image_utils import ImageInput
from transformers.processing_utils import Unpack

from .chat import IMAGE_TOKEN, PromptRow, check_phrase, read_image_index, read_images, read_phrases
from .chat_processor import ChatInputs, ChatProcessorKwargs, LlavaChatProcessor, image_of_row
from .masked_images import DEFAULT_COLOR, DEFAULT_SPREAD, DEFAULT_THRESHOLD, MaskedImage, mask_image
from .segments import Segment, SegmentationResult, masks_to_numpy, post_process_masks, read_mask_sizes


if TYPE_CHECKING:
    # So that these travel with a saved processor: files named in such lines are copied.
    from .image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor  # noqa: F401
    from .pipeline_reasoning_segmentation import ReasoningSegmentationPipeline  # noqa: F401


# LLaVA-1.5's turns, without a system message unless one is given; the white space around the second line break is
# IVM's own.
IVM_CHAT_TEMPLATE = """
{%- macro text_of(content) -%}
  {%- if content is string -%}{{ content }}{%- else -%}
    {%- for part in content -%}{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {{- 'USER: ' -}}
    {%- if message['content'] is not string -%}
      {%- for part in message['content'] -%}
        {%- if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endif -%}
      {%- endfor -%}
    {%- endif -%}
    {{- text_of(message['content']) + ' \\n ' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- 'ASSISTANT:' -}}
    {%- generation -%}{{- ' ' + text_of(message['content']) + '</s>' -}}{%- endgeneration -%}
  {%- elif loop.first and message['role'] == 'system' -%}
    {{- text_of(message['content']) + ' ' -}}
  {%- else -%}
    {{- raise_exception('Roles are user and assistant, and system for the first message only.') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
""".strip()


@dataclass(frozen=True)
class InstructionRow(PromptRow):
    """
    One row of a batch as text: one instruction about one image.

    Args:
        request (`int`): Which of the given rows asked for it; several phrases of one row become rows of their own.
        label (`str`): The instruction, as given.
    """

    request: int = 0
    label: str | None = None


class IvmProcessor(LlavaChatProcessor):
    r"""
    Turns images and instructions into inputs of [`IvmForVisualMasking`], and its outputs into heat-maps, segments and
    masked images.

    The model writes no text and reads no answer: `text` is the instruction, and `phrases` are as many instructions,
    each a row of its own that shares the image.

    Further arguments are those of [`LlavaChatProcessor`].

    Args:
        image_processor ([`ReasoningSegmentationImageProcessor`]):
            Makes both views of the squashed image (`squash_first=True`).
        chat_template (`str` or `dict`, *optional*): Jinja template; IVM's wording by default.

    Example:
        ```python
        inputs = processor(images=image, text="pick up the red cup", return_tensors="pt")
        output = model(**inputs)
        masked = processor.post_process_masking(output, inputs, [image], threshold=0.5)[0]
        masked.masked_image.save("masked.png")
        ```
    """

    reads_history = False

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=None,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
        **kwargs,
    ):
        super().__init__(
            image_processor,
            tokenizer,
            patch_size,
            vision_feature_select_strategy,
            IVM_CHAT_TEMPLATE if chat_template is None else chat_template,
            image_token,
            num_additional_image_tokens,
            template=None,
        )

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        answer: str | list[str] | None = None,
        phrases: str | list[str] | list[list[str]] | None = None,
        image_index: list[int] | None = None,
        **kwargs: Unpack[ChatProcessorKwargs],
    ) -> ChatInputs:
        r"""
        Args:
            images (`ImageInput`):
                One image per row, or one for all rows; of any kind that `load_rgb_image` reads.
            text (`str` or `list[str]`, *optional*):
                The instruction. A text that holds the image token is the whole prompt and stays as it is.
            answer: IVM reads none; only there for the common interface.
            phrases (`str`, `list[str]` or `list[list[str]]`, *optional*):
                Instructions, instead of `text`. Each becomes a row of the inputs; `post_process_segmentation` gives
                one result per given row, with a segment per phrase. A single list is one row, a single string one
                instruction.
            image_index (`list[int]`, *optional*): The image of each given row, where rows share images.
            kwargs: Further arguments of the tokenizer and of the image processor.

        Returns:
            [`ChatInputs`]: `input_ids`, `attention_mask`, `pixel_values`, `sam_pixel_values`, `original_sizes`,
            `reshaped_input_sizes`, and `image_index` where rows share images.

        Raises:
            ValueError: If an answer or labels are asked for, or texts, phrases and images do not match.
        """
        if answer is not None or kwargs.get("return_labels"):
            raise ValueError(
                "IVM writes no answer, so it takes neither `answer` nor `return_labels`. Give the instruction as "
                "`text`; targets are passed to the model as `mask_labels`."
            )
        if phrases is not None and text is not None:
            raise ValueError("`phrases` are instructions, as `text` is. Give either of them.")
        if phrases is not None:
            phrases = read_phrases(phrases)
            if images is not None and any(len(row) > 1 for row in phrases):
                images = read_images(images)
                index = read_image_index(image_index, len(phrases), len(images)) or range(len(phrases))
                image_index = [image for row, image in zip(phrases, index, strict=True) for _ in row]
        inputs = super().__call__(images=images, text=text, phrases=phrases, image_index=image_index, **kwargs)
        inputs.awaits_answers = False
        return inputs

    def _prompt_rows(
        self, text: Any, answer: Any, phrases: Any, apply_template: bool | None, has_images: bool
    ) -> list[InstructionRow]:
        if phrases is None:
            text = [text] if isinstance(text, str) else list(text)
            asked = list(enumerate(text))
        else:
            asked = [(request, phrase) for request, row in enumerate(phrases) for phrase in row]
            phrases = [[phrase] for _, phrase in asked]
        rows = super()._prompt_rows(text, answer, phrases, apply_template, has_images)
        return [
            InstructionRow(row.conversation, row.phrases, row.answer_start, request, label)
            for row, (request, label) in zip(rows, asked, strict=True)
        ]

    def question_of(self, phrases: Sequence[str]) -> str:
        """The instructions; each is asked by itself."""
        return "; ".join(super(IvmProcessor, self).question_of([phrase]) for phrase in phrases)

    def _word_phrases(self, phrases: list[str]) -> tuple[str, None]:
        (phrase,) = phrases
        check_phrase(phrase, phrase.strip(), [self.image_token])
        return phrase.strip(), None

    def post_process_heatmaps(
        self,
        outputs: Mapping[str, Any],
        inputs: Mapping[str, Any] | None = None,
        target_sizes: Any = None,
        through_square: bool = True,
    ) -> list[np.ndarray]:
        r"""
        Args:
            outputs ([`ReasoningSegmentationOutput`]): What the model returned.
            inputs ([`ChatInputs`], *optional*): What the processor returned; tells the sizes.
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor`, *optional*):
                (height, width) of the heat-maps, one per image, one per row, or one for all; `original_sizes` of
                `inputs` by default.
            through_square (`bool`, *optional*, defaults to `True`):
                Whether logits take the way over the segmenter's square, as in the original's images. `False` brings
                them straight to the image's size, as its `get_ratio` and `get_bounding_box` do.

        Returns:
            `list[np.ndarray]`: per row of the output float32 in 0..1, of shape `(height, width)`.

        Raises:
            ValueError: If the output has no masks, or rows and sizes do not match.
        """
        return [
            logits.sigmoid().cpu().numpy() for logits in self._logits(outputs, inputs, target_sizes, through_square)
        ]

    def _logits(
        self, outputs: Mapping[str, Any], inputs: Any, target_sizes: Any, through_square: bool = True
    ) -> list[torch.Tensor]:
        """Per row of the output, mask logits at the size of the image."""
        masks = outputs.get("pred_masks")
        if masks is None:
            raise ValueError("The output has no pred_masks. Pass what the model returned.")
        inputs = {} if inputs is None else inputs
        if "input_ids" in inputs and len(inputs["input_ids"]) != len(masks):
            raise ValueError(
                f"The output has {len(masks)} rows and the inputs {len(inputs['input_ids'])}; pass the inputs that "
                "led to this output."
            )
        if any(len(row) != 1 for row in masks):
            raise ValueError(f"The rows have {[len(row) for row in masks]} masks; IVM draws one per row.")
        logits = []
        for row, sizes in enumerate(read_mask_sizes(inputs, target_sizes, range(len(masks)), self._segmenter_view)):
            if not through_square:
                sizes = sizes._replace(reshaped=tuple(masks[row].shape[-2:]), padded=tuple(masks[row].shape[-2:]))
            logits.append(post_process_masks(masks[row], *sizes, mask_threshold=None)[0])
        return logits

    def post_process_segmentation(
        self,
        outputs: Mapping[str, Any],
        inputs: Mapping[str, Any] | None = None,
        mask_threshold: float = 0.0,
        target_sizes: Any = None,
        reject_threshold: float | None = None,
        rows: Sequence[PromptRow] | None = None,
        heatmap_threshold: float | None = None,
    ) -> list[SegmentationResult]:
        r"""
        Args:
            outputs ([`ReasoningSegmentationOutput`]): What the model returned.
            inputs ([`ChatInputs`], *optional*): What the processor returned.
            mask_threshold (`float`, *optional*, defaults to 0.0):
                Pixels with a larger mask logit belong to the segment; 0 is 0.5 in the heat-map.
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor`, *optional*):
                (height, width) of the masks; `original_sizes` of `inputs` by default.
            reject_threshold: IVM rejects nothing and takes none; only there for the common interface.
            rows (`list[PromptRow]`, *optional*): `inputs.rows`, where `inputs` has lost it on the way.
            heatmap_threshold (`float`, *optional*): Instead of `mask_threshold`, the value in the heat-map, 0..1.

        Returns:
            `list[SegmentationResult]`: One per row that was given to the processor. Each instruction is a segment:
            `mask` is where the heat-map exceeds the threshold (empty if nothing does), `heatmap` the heat-map, `score`
            its largest value, `label` the instruction. `text` is empty, as IVM writes none.

        Raises:
            ValueError: If rows and inputs do not match, a threshold is out of its range, or `reject_threshold` is
                given.
        """
        if reject_threshold is not None:
            raise ValueError(
                f"reject_threshold is {reject_threshold!r}, but IVM rejects nothing: every instruction gets a mask, "
                "empty where nothing is needed. Leave it out, or choose how much is kept by `mask_threshold`."
            )
        if heatmap_threshold is not None and not 0 <= heatmap_threshold <= 1:
            raise ValueError(f"heatmap_threshold is {heatmap_threshold!r}. It must lie in 0..1.")
        logits = self._logits(outputs, inputs, target_sizes)
        rows = rows if rows is not None else getattr(inputs, "rows", None)
        if rows is None:
            rows = [InstructionRow("", request=row) for row in range(len(logits))]
        if len(rows) != len(logits):
            raise ValueError(f"The output has {len(logits)} rows, but {len(rows)} prompts are known.")
        results: dict[int, SegmentationResult] = {}
        for index, (row, values) in enumerate(zip(rows, logits, strict=True)):
            heatmap = values.sigmoid()
            mask = values > mask_threshold if heatmap_threshold is None else heatmap > heatmap_threshold
            segment = Segment(
                label=row.label,
                mask=masks_to_numpy(mask),
                score=float(heatmap.max()),
                heatmap=heatmap.cpu().numpy(),
            )
            if row.request not in results:
                image = image_of_row(inputs, index)
                results[row.request] = SegmentationResult("", [], tuple(values.shape), image)
            results[row.request].segments.append(segment)
        return list(results.values())

    def post_process_masking(
        self,
        outputs: Mapping[str, Any],
        inputs: Mapping[str, Any],
        images: Any,
        threshold: float = DEFAULT_THRESHOLD,
        overlay_color: Any = DEFAULT_COLOR,
        dilate: float = DEFAULT_SPREAD,
        blur: float = DEFAULT_SPREAD,
        min_kept_ratio: float = 0.0,
    ) -> list[MaskedImage]:
        r"""
        Masks the images, as `forward_batch` of the original does.

        Args:
            outputs ([`ReasoningSegmentationOutput`]): What the model returned.
            inputs ([`ChatInputs`]): What the processor returned.
            images: The images that the processor was called with, of any kind `load_rgb_image` reads.
            threshold (`float`, *optional*, defaults to 0.1):
                Pixels with a larger value of the heat-map are kept. The paper's users take up to 0.99.
            overlay_color, dilate, blur, min_kept_ratio: See [`mask_image`].

        Returns:
            `list[MaskedImage]`: One per row of the output.

        Raises:
            ValueError: If rows and images do not match, or an option is out of its range.
        """
        heatmaps = self.post_process_heatmaps(outputs, inputs)
        images = read_images(images)
        if len(images) != len(inputs["original_sizes"]):
            raise ValueError(
                f"{len(images)} images were given and the inputs were made of {len(inputs['original_sizes'])}; pass "
                "the images that the processor was called with."
            )
        index = inputs.get("image_index")
        index = read_image_index(index, len(heatmaps), len(images)) or range(len(heatmaps))
        return [
            mask_image(images[image], heatmap, threshold, overlay_color, dilate, blur, min_kept_ratio)
            for image, heatmap in zip(index, heatmaps, strict=True)
        ]


__all__ = ["IVM_CHAT_TEMPLATE", "IvmProcessor"]
