"""Visual masking as a plug: hide what a question does not need before any model sees the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from ..loading import load_pretrained
from ..processing.answer_rendering import answer_html
from ..processing.image_loading import MAX_IMAGE_PIXELS, ImageSource, load_rgb_image
from ..processing.masked_images import DEFAULT_COLOR, DEFAULT_SPREAD, DEFAULT_THRESHOLD, MaskedImage, mask_image


@dataclass(frozen=True)
class MaskingOptions:
    """How a heat-map becomes a masked image; see `mask_image`.

    Args:
        threshold (`float`): pixels with a larger value of the heat-map are kept, 0..1.
        crop (`bool`): cut the image to what is kept.
        overlay_color: what the rest is painted with: `(red, green, blue)`, a name or a hex code.
        dilate, blur (`float`): how far the kept part is widened and softened, as shares of the height.
        min_kept_ratio (`float`): keep the whole image where a smaller share of it would be kept, 0..1.
    """

    threshold: float = DEFAULT_THRESHOLD
    crop: bool = False
    overlay_color: Any = DEFAULT_COLOR
    dilate: float = DEFAULT_SPREAD
    blur: float = DEFAULT_SPREAD
    min_kept_ratio: float = 0.0


class Masker:
    """An IVM model with its processor: images and instructions in, masked images out.

    Args:
        model: an `IvmForVisualMasking`, or the folder or Hub name of a converted checkpoint.
        processor (*optional*): its processor; loaded from where `model` was, when omitted.
        options (`MaskingOptions`, *optional*): how to mask.

    Raises:
        ValueError: The checkpoint is of another system, or the processor of a loaded model is missing.
    """

    def __init__(self, model: Any, processor: Any = None, options: MaskingOptions | None = None):
        if isinstance(model, torch.nn.Module):
            if processor is None:
                raise ValueError("A loaded model needs its processor too: pass processor=.")
        else:
            processor = processor or load_pretrained(AutoProcessor, model)
            model = load_pretrained(AutoModel, model, dtype="auto").eval()
        if not hasattr(processor, "post_process_masking"):
            raise ValueError(
                f"{type(model).__name__} draws no heat-map of what an instruction needs. Masking takes an IVM "
                "checkpoint; `reasonseg convert ivm --help` shows how to make one."
            )
        self.model, self.processor, self.options = model, processor, options or MaskingOptions()

    def __call__(self, images: Sequence[Image.Image], instructions: Sequence[str]) -> list[MaskedImage]:
        """Mask each image by its own instruction, all in one forward pass.

        Args:
            images: RGB images of any sizes.
            instructions: one for each.
        """
        heatmaps = self.rate(self.prepare(images, instructions))
        return [self.paint(image, heatmap) for image, heatmap in zip(images, heatmaps, strict=True)]

    def prepare(self, images: Sequence[Image.Image], instructions: Sequence[str]) -> Any:
        """Return the model's inputs for these images, each with its own instruction."""
        return self.processor(images=list(images), text=list(instructions), return_tensors="pt")

    def rate(self, inputs: Any) -> list[np.ndarray]:
        """Return the heat-map of each image of such inputs: float32 in 0..1, `(height, width)`."""
        with torch.inference_mode():
            output = self.model(**inputs.to(self.model.device))
        return self.processor.post_process_heatmaps(output, inputs)

    def paint(self, image: Image.Image, heatmap: np.ndarray) -> MaskedImage:
        """Mask one image by its heat-map."""
        options = {name: value for name, value in vars(self.options).items() if name != "crop"}
        return mask_image(image, heatmap, **options)

    def load(self, image: ImageSource) -> Image.Image:
        """Read one image, no larger than the processor allows (`processor.image_processor.max_image_pixels`).

        Raises:
            ValueError: It is too large or cannot be read.
        """
        return load_rgb_image(image, getattr(self.processor, "max_image_pixels", MAX_IMAGE_PIXELS))

    def shown(self, masked: MaskedImage) -> Image.Image:
        """What is shown to the next model: the masked image, cut where the options say so."""
        return masked.crop if self.options.crop else masked.masked_image


@dataclass
class MaskedAnswer:
    """An answer to a masked image, and what led to it.

    Args:
        text (`str`): the answer.
        image (`PIL.Image.Image`): the image that was asked about.
        masked (`MaskedImage`): heat-map, mask, kept ratio and whether anything was found.
        original_image (`PIL.Image.Image`): the whole image.
        original_text (`str`, *optional*): the answer to the whole image, where it was asked for.
    """

    text: str
    image: Image.Image
    masked: MaskedImage
    original_image: Image.Image
    original_text: str | None = None

    def _repr_html_(self) -> str:
        whole = "" if self.original_text is None else f"whole image: {self.original_text}"
        return answer_html("\n".join(filter(None, (self.text, whole))), [], self.image)


class MaskedInput:
    """Puts IVM before any `image-text-to-text` pipeline: mask first, ask then.

    Example:
        ```python
        ask = MaskedInput(pipeline("image-text-to-text", model="llava-hf/llava-1.5-7b-hf"), "ivm-repo", threshold=0.5)
        ask("kitchen.jpg", "What colour is the cup?", max_new_tokens=20).text
        both = ask(["a.jpg", "b.jpg"], "Where can I sit?", compare=True, batch_size=2)
        both[0].text, both[0].original_text, both[0].image
        ```

    Args:
        pipe: a pipeline of transformers for `image-text-to-text`.
        model, processor: as in `Masker`; a `Masker` of your own as `model` is taken as it is.
        options: fields of `MaskingOptions`.

    Raises:
        TypeError: An option is unknown.
        ValueError: The pipeline is for another task, or `model` is not an IVM.
    """

    def __init__(self, pipe: Any, model: Any, processor: Any = None, **options: Any):
        task = getattr(pipe, "task", None)
        if task not in (None, "image-text-to-text"):
            raise ValueError(
                f"The pipeline's task is {task!r}. Masked images go to pipeline('image-text-to-text', ...)."
            )
        if isinstance(model, Masker):
            if options or processor is not None:
                raise ValueError("The Masker brings its own options; set them there.")
            self.masker = model
        else:
            self.masker = Masker(model, processor, MaskingOptions(**options))
        self.pipe = pipe

    def __call__(
        self,
        images: Any,
        text: str | Sequence[str],
        instruction: str | Sequence[str] | None = None,
        compare: bool = False,
        batch_size: int = 1,
        **kwargs: Any,
    ) -> MaskedAnswer | list[MaskedAnswer]:
        """
        Args:
            images: one image or a list of them, of any kind `load_rgb_image` reads.
            text (`str` or `Sequence[str]`): the question, one for all images or one for each.
            instruction (`str` or `Sequence[str]`, *optional*): what the image is masked by, if not the question:
                without answer options or demands on the form of the answer, for example.
            compare (`bool`): ask about the whole image too.
            batch_size (`int`): images per forward pass, of both models.
            kwargs: options of the pipeline, such as `max_new_tokens`.

        Returns:
            `MaskedAnswer`, or a list of them where a list of images was given.

        Raises:
            ValueError: Images and questions do not match, a question is blank, or an image cannot be read.
        """
        is_list = isinstance(images, (list, tuple))
        loaded = [self.masker.load(image) for image in (images if is_list else [images])]
        questions = _for_each(text, len(loaded), "texts")
        if not all(question.strip() for question in questions):
            raise ValueError("The question is empty. Ask something.")
        instructions = questions if instruction is None else _for_each(instruction, len(loaded), "instructions")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}. It must be at least 1.")
        masked = [
            one
            for start in range(0, len(loaded), batch_size)
            for one in self.masker(loaded[start : start + batch_size], instructions[start : start + batch_size])
        ]
        shown = [self.masker.shown(one) for one in masked]
        answers = self._ask(shown, questions, batch_size, kwargs)
        whole = self._ask(loaded, questions, batch_size, kwargs) if compare else [None] * len(loaded)
        results = [MaskedAnswer(*parts) for parts in zip(answers, shown, masked, loaded, whole, strict=True)]
        return results if is_list else results[0]

    def _ask(
        self, images: list[Image.Image], questions: list[str], batch_size: int, options: dict[str, Any]
    ) -> list[str]:
        """The pipeline's answer to each image, without the question."""
        if not images:
            return []
        options = {"return_full_text": False, "batch_size": batch_size, **options}
        if getattr(self.pipe.processor, "chat_template", None) is None:
            # The question is the whole prompt then, with the model's own image token.
            rows = [{"images": image, "text": question} for image, question in zip(images, questions, strict=True)]
            return [_generated(self.pipe(**row, **options)) for row in rows]
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
            for image, question in zip(images, questions, strict=True)
        ]
        return [_generated(answer) for answer in self.pipe(text=chats, **options)]


def _for_each(values: str | Sequence[str], count: int, what: str) -> list[str]:
    values = [values] * count if isinstance(values, str) else list(values)
    if len(values) != count:
        raise ValueError(f"{count} images and {len(values)} {what} were given. Give one for each, or one for all.")
    return values


def _generated(answer: Any) -> str:
    record = answer[0] if isinstance(answer, list) else answer
    return record["generated_text"].strip()


__all__ = ["MaskedAnswer", "MaskedInput", "Masker", "MaskingOptions"]
