"""An Inference Endpoint of this checkpoint: an image and a question in, text and masks out, as JSON.

    handler = EndpointHandler("folder of the checkpoint")
    handler({"inputs": {"image": "<base64>", "text": "Where is the exit?"}, "parameters": {"max_new_tokens": 64}})
    handler({"inputs": {"image": "<base64>", "phrases": ["the cup"]}, "parameters": {"mask_format": "png"}})

It runs the code that lies in this folder, needs what requirements.txt names, and asks no other machine for anything.
"""

import base64
import binascii
import inspect
import io
import json
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module


DRAWING, WRITING = "reasoning-segmentation", "image-text-to-text"
MAX_IMAGE_CHARACTERS = 64 * 2**20
MAX_TEXT_CHARACTERS, MAX_PHRASES = 10_000, 100
MASK_FORMATS = ("rle", "png")
KINDS = {int: "whole number", float: "number"}
# Of what `generate` takes only what can neither load code nor run for hours: kind, smallest and largest value.
GENERATION = {
    "max_new_tokens": (int, 1, 1024),
    "num_beams": (int, 1, 8),
    "do_sample": (bool, False, True),
    "temperature": (float, 0.01, 10.0),
    "top_k": (int, 1, 1000),
    "top_p": (float, 0.01, 1.0),
    "repetition_penalty": (float, 0.1, 10.0),
}
THRESHOLDS = {"mask_threshold": (float, -100.0, 100.0), "reject_threshold": (float, 0.0, 1.0)}
MASKING = {
    "threshold": (float, 0.0, 1.0),
    "dilate": (float, 0.0, 0.5),
    "blur": (float, 0.0, 0.5),
    "min_kept_ratio": (float, 0.0, 1.0),
}
# A mask could also be a path, of a file that is not the caller's.
VISUAL_PROMPT = {"shape", "box_xyxy", "polygons", "rle", "color", "alpha", "width", "radius", "points"}
_DATA_URL = re.compile(r"data:[\w.+/-]*;base64,")


class EndpointHandler:
    """
    Args:
        path (`str`): The folder of the checkpoint; by default the one in which this file lies.
    """

    def __init__(self, path: str = ""):
        folder = Path(path or Path(__file__).parent).resolve()
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        task = DRAWING if DRAWING in config.get("custom_pipelines", {}) else WRITING
        device_map = "auto" if torch.cuda.is_available() else None
        self.pipe = pipeline(task, model=str(folder), trust_remote_code=True, device_map=device_map)
        self.draws = task == DRAWING
        # IVM hides what an instruction does not need, and writes no text.
        self.hides = hasattr(self.pipe.processor, "post_process_masking")
        self.folder = str(folder)
        self.open_image = self._code("image_loading.open_image")
        self.check_words = self._code("chat.check_words")
        self.load_rgb_image = self._code("image_loading.load_rgb_image")
        # An endpoint may call from several threads; two requests at once would share the accelerator's memory.
        self.lock = threading.Lock()

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            data (`dict`):
                `inputs`: `image` (base64 or a data URL of a file), and either `text` (a question) or `phrases` (what
                to segment; for models that draw). ViP-LLaVA also takes `visual_prompts`, a list of
                `{"shape": "rectangle", "box_xyxy": [x1, y1, x2, y2]}`, which a question calls `<bbox0>`, ...

                `parameters` (*optional*): `mask_format` (`"rle"` or `"png"`), `mask_threshold`, `reject_threshold`,
                those of `GENERATION`, and for IVM `masking` with those of `MASKING`.

        Returns:
            `dict`: `generated_text`; `image_size` as `[height, width]` of the upright image; `segments`, each with
            `label`, `score`, `rejected`, `span` (of its token in the text), `box_xyxy` and `mask`: COCO's compressed
            run lengths, or a PNG of 0 and 255 in base64, or None where it is rejected. IVM adds `masked_image`, a PNG
            in base64, to each segment; attend-and-segment says what found its phrases in `phrase_extractor`.

        Raises:
            ValueError: Says what is wrong with the request; an endpoint answers with the status 400 and this sentence.
        """
        data = read_fields(data, "The request", {"inputs", "parameters"})
        inputs = read_fields(data.get("inputs"), "inputs", {"image", "text", "phrases", "visual_prompts"})
        options = self._read_parameters({} if data.get("parameters") is None else data["parameters"])
        question = self._read_question(inputs)
        image = self._read_image(inputs.get("image"))
        with self.lock, torch.inference_mode():
            if not self.draws:
                answer = self._write(image, question["text"], inputs.get("visual_prompts"), options)
            elif inputs.get("visual_prompts") is not None:
                raise ValueError("This model takes no visual_prompts. Leave them out, and say in words what is meant.")
            elif self.hides:
                answer = self._hide(image, question, options)
            else:
                answer = self._draw(image, question, options)
        return {**answer, "image_size": [image.height, image.width]}

    def _draw(self, image: Image.Image, question: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        write = MASK_WRITERS[options.pop("mask_format")]
        answer = self.pipe(image, **question, **options)
        for segment in answer["segments"]:
            mask = segment["mask"]
            segment["mask"] = None if mask is None else write(np.asarray(mask) > 0)
            segment["span"] = None if segment["span"] is None else list(segment["span"])
        return answer

    def _hide(self, image: Image.Image, question: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        write, masking = MASK_WRITERS[options.pop("mask_format")], options.pop("masking", {})
        model, processor = self.pipe.model, self.pipe.processor
        if "phrases" in question:
            question = {"phrases": [question["phrases"]]}
        inputs = processor(images=[image], **question, return_tensors="pt")
        tensors = {
            name: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for name, value in inputs.items()
        }
        output = model(**tensors)
        (result,) = processor.post_process_segmentation(output, inputs, **options)
        masked = processor.post_process_masking(output, inputs, [image], **masking)
        segments = [
            {
                "label": segment.label,
                "score": segment.score,
                "rejected": False,
                "span": None,
                "box_xyxy": None if segment.box_xyxy is None else list(segment.box_xyxy),
                "mask": write(segment.mask),
                "masked_image": to_png(hidden.masked_image),
            }
            for segment, hidden in zip(result.segments, masked, strict=True)
        ]
        return {"generated_text": result.text, "segments": segments}

    def _write(self, image: Image.Image, text: str, prompts: Any, options: dict[str, Any]) -> dict[str, Any]:
        if prompts is not None:
            self._check_visual_prompts(prompts)
            options["processor_kwargs"] = {"visual_prompts": prompts}
        content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
        options = {"max_new_tokens": 256, "return_full_text": False, **options}
        (answer,) = self.pipe(text=[{"role": "user", "content": content}], **options)
        return {"generated_text": answer["generated_text"], "segments": []}

    def _code(self, name: str) -> Any:
        """A function or class of the code in this folder, as `file.name`."""
        return get_class_from_dynamic_module(name, self.folder)

    # ---- reading a request ------------------------------------------------------------------------------------------

    def _read_image(self, image: Any) -> Image.Image:
        """The image upright and in RGB, by the checks of the checkpoint's own code."""
        if not isinstance(image, str) or not image:
            raise ValueError(f"inputs.image is of type {type(image).__name__}. Give a file's bytes as base64.")
        if len(image) > MAX_IMAGE_CHARACTERS:
            raise ValueError(
                f"inputs.image has {len(image)} characters, more than the {MAX_IMAGE_CHARACTERS} allowed. Send a "
                "smaller or compressed image."
            )
        if image.startswith(("http://", "https://", "file:")):
            raise ValueError("inputs.image is a URL, and none is fetched. Send the file's bytes as base64.")
        start = _DATA_URL.match(image)
        try:
            data = base64.b64decode("".join(image[start.end() if start else 0 :].split()), validate=True)
        except binascii.Error as error:
            raise ValueError(f"inputs.image is no base64 ({error}). Send the file's bytes as base64.") from error
        largest = getattr(self.pipe.processor, "max_image_pixels", None)
        limit = {} if largest is None else {"max_image_pixels": largest}
        with self.open_image(data, **limit) as opened:
            return self.load_rgb_image(opened, **limit)

    def _read_question(self, inputs: dict[str, Any]) -> dict[str, Any]:
        text, phrases = inputs.get("text"), inputs.get("phrases")
        if (text is None) == (phrases is None):
            raise ValueError("inputs needs either text, a question, or phrases, a list of what to segment.")
        if phrases is None:
            self._check_text(text, "inputs.text")
            return {"text": text}
        if not self.draws:
            raise ValueError("This model answers in text and draws no masks. Ask with text in place of phrases.")
        phrases = [phrases] if isinstance(phrases, str) else phrases
        if not isinstance(phrases, list) or not 1 <= len(phrases) <= MAX_PHRASES:
            given = f"{len(phrases)} phrases" if isinstance(phrases, list) else f"a {type(phrases).__name__}"
            raise ValueError(f"inputs.phrases holds {given}. Give a list of 1 to {MAX_PHRASES} strings.")
        for index, phrase in enumerate(phrases):
            self._check_text(phrase, f"inputs.phrases[{index}]")
        return {"phrases": phrases}

    def _check_text(self, text: Any, what: str) -> None:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{what} is {'blank' if isinstance(text, str) else type(text).__name__}. Give a string.")
        if len(text) > MAX_TEXT_CHARACTERS:
            raise ValueError(f"{what} has {len(text)} characters, more than the {MAX_TEXT_CHARACTERS} allowed.")
        self.check_words(self.pipe.processor, text, what)

    def _check_visual_prompts(self, prompts: Any) -> None:
        if "visual_prompts" not in inspect.signature(type(self.pipe.processor).__call__).parameters:
            raise ValueError("This model takes no visual_prompts. Leave them out, and say in words what is meant.")
        if not isinstance(prompts, list):
            raise ValueError('inputs.visual_prompts is no list of {"shape": "rectangle", "box_xyxy": [...]}.')
        for index, prompt in enumerate(prompts):
            what = f"inputs.visual_prompts[{index}]"
            if "shape" not in read_fields(prompt, what, VISUAL_PROMPT):
                raise ValueError(f'{what} says no shape. Give {{"shape": "rectangle", "box_xyxy": [...]}}.')

    def _read_parameters(self, parameters: Any) -> dict[str, Any]:
        if not self.draws:
            return read_numbers(parameters, "parameters", GENERATION)
        known = {"mask_format"} | ({"mask_threshold", "masking"} if self.hides else {*GENERATION, *THRESHOLDS})
        parameters = {"mask_format": "rle", **read_fields(parameters, "parameters", known)}
        if parameters["mask_format"] not in MASK_FORMATS:
            raise ValueError(f"parameters.mask_format is {parameters['mask_format']!r}. Allowed are rle and png.")
        others = {name: value for name, value in parameters.items() if name not in ("mask_format", "masking")}
        options = read_numbers(others, "parameters", GENERATION | THRESHOLDS)
        if "masking" in parameters:
            options["masking"] = read_numbers(parameters["masking"], "parameters.masking", MASKING)
        return {**options, "mask_format": parameters["mask_format"]}


def read_fields(given: Any, what: str, known: set[str]) -> dict[str, Any]:
    """A copy of a JSON object, none of whose fields is unknown."""
    if not isinstance(given, dict):
        raise ValueError(f"{what} is of type {type(given).__name__}. Give an object with {', '.join(sorted(known))}.")
    if unknown := sorted(str(name) for name in given if name not in known):
        raise ValueError(f"{what} holds unknown fields {', '.join(unknown)}. Known are {', '.join(sorted(known))}.")
    return dict(given)


def read_numbers(given: Any, what: str, known: dict[str, tuple[type, float, float]]) -> dict[str, Any]:
    """A copy of a JSON object whose numbers are of the kind and in the range that `known` says."""
    values = read_fields(given, what, set(known))
    for name, value in values.items():
        kind, low, high = known[name]
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits or not low <= value <= high:
            shown = f"{value:.200}" if isinstance(value, str) else repr(value)[:200]
            allowed = "true or false" if kind is bool else f"a {KINDS[kind]} from {low} to {high}"
            raise ValueError(f"{what}.{name} is {shown}. Give {allowed}.")
    return values


def to_png(image: Image.Image) -> str:
    """The bytes of a PNG, in base64."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def to_rle(mask: np.ndarray) -> dict[str, Any]:
    """A bool mask `(height, width)` as COCO's compressed run lengths, which pycocotools decodes: `size` and `counts`.

    Runs go down the columns and begin with one of 0. From the fourth on, each is stored as its difference to the run
    two before it; a number is written as characters of five bits, the lowest first, with a sixth where more follow.
    """
    values = mask.ravel(order="F")
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    runs = np.diff([0, *changes, len(values)]).tolist()
    runs = [0, *runs] if values[0] else runs
    characters = []
    for index, run in enumerate(runs):
        rest, follows = run - (runs[index - 2] if index > 2 else 0), True
        while follows:
            bits, rest = rest & 0x1F, rest >> 5
            follows = rest != (-1 if bits & 0x10 else 0)
            characters.append(chr(48 + bits + (0x20 if follows else 0)))
    return {"size": list(mask.shape), "counts": "".join(characters)}


MASK_WRITERS = {"rle": to_rle, "png": lambda mask: to_png(Image.fromarray(mask.astype(np.uint8) * 255))}
