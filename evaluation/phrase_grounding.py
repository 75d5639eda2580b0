"""Lets a model describe images and ground its phrases: in one go, or with the attention maps stored in between."""

import io
import pickle
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from ..data.annotated_images import AnnotatedImage
from ..modeling.composed_model import ImageCache
from ..processing.phrase_segments import PhraseSegmentationResult
from ..processing.token_spans import token_spans
from .grounded_answers import GroundedAnswer, ImageFiles, read_grounded_answers
from .registry import EvaluationOptions


# What the released code asks, and how long answers may get there.
QUESTION = "Describe the image in detail."
MAX_NEW_TOKENS = 1024
# Fields of AttendAndSegmentConfig that decide the maps; all others decide what is made of them.
_MAP_OPTIONS = ("heads", "attention_layers")
_SEGMENTING_OPTIONS = (
    *("subtract_mean", "remove_corners", "prompt"),
    *("attention_temperature", "box_threshold", "mask_choice"),
)


@dataclass(frozen=True, eq=False)
class AttendedAnswer:
    """
    An answer and what each of its tokens looked at.

    Args:
        text (`str`): The answer.
        token_ids (`np.ndarray` of shape `(tokens,)`): Its tokens.
        token_spans (`np.ndarray` of shape `(tokens, 2)`): Their character ranges in `text`.
        maps (`np.ndarray` of shape `(tokens, rows, columns)`): Raw attention of each token to the grid of the image.
        grid_box (`np.ndarray` of shape `(4,)`): What the grid covers, (x1, y1, x2, y2) in pixels of the image.
        image_size (`np.ndarray` of shape `(2,)`): (height, width) of the image.
    """

    text: str
    token_ids: np.ndarray
    token_spans: np.ndarray
    maps: np.ndarray
    grid_box: np.ndarray
    image_size: np.ndarray

    def to_bytes(self) -> bytes:
        """The content of a compressed `.npz` file; nothing is rounded."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{field.name: np.asarray(getattr(self, field.name)) for field in fields(self)})
        return buffer.getvalue()

    @classmethod
    def read(cls, path: str | Path):
        """
        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If it is not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                values = {field.name: arrays[field.name] for field in fields(cls)}
        except FileNotFoundError:
            raise FileNotFoundError(f"There are no attention maps {path}.") from None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} holds no attention maps ({error}). Delete it; it is then made again.") from None
        values["text"] = str(values["text"])
        answer = cls(**values)
        if answer.maps.ndim != 3 or len(answer.maps) != len(answer.token_spans):
            raise ValueError(
                f"{path} has maps of shape {answer.maps.shape} for {len(answer.token_spans)} tokens. Delete it; it is "
                "then made again."
            )
        return answer


def read_original_maps(
    path: str | Path, decode: Callable[[list[int]], str], image_size: tuple[int, int], offset: int = 1
) -> AttendedAnswer:
    """
    Read what `aas/infer_attn.py` stored for one image, which its model saw padded to a square.

    Args:
        path (`str` or `Path`): Its `.pth` file.
        decode (`Callable`): Turns ids into text, without special tokens.
        image_size (`tuple[int, int]`): (height, width) of the image.
        offset (`int`): Leading tokens without a map: the one BOS that transformers before 4.38 returned.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not such a file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There are no attention maps {path}.")
    try:
        stored: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, pickle.UnpicklingError) as error:
        # torch's own words advise to load it unsafely.
        raise ValueError(
            f"{path} holds no attention maps: it is cut off, or no file of tensors. Make it again with "
            "aas/infer_attn.py."
        ) from error
    if not isinstance(stored, dict) or not all(
        torch.is_tensor(stored.get(key)) for key in ("sequences", "attentions")
    ):
        raise ValueError(f"{path} lacks `sequences` or `attentions`; it is not a file of aas/infer_attn.py.")
    ids, maps = stored["sequences"][offset:].tolist(), stored["attentions"]
    if maps.ndim != 3 or len(ids) != len(maps):
        raise ValueError(f"{path} has maps {tuple(maps.shape)} for {len(ids)} tokens after the first {offset}.")
    text, spans = token_spans(decode, ids)
    height, width = image_size
    side = max(height, width)
    left, top = -((side - width) // 2), -((side - height) // 2)
    return AttendedAnswer(
        text=text,
        token_ids=np.array(ids, dtype=np.int64),
        token_spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
        maps=maps.float().numpy(),
        grid_box=np.array([left, top, left + side, top + side], dtype=np.float64),
        image_size=np.array(image_size),
    )


@dataclass
class Grounder:
    """
    An attend-and-segment model as the benchmarks use it: it answers greedily, and every noun phrase gets its masks.

    Args:
        model ([`AttendAndSegmentForReasoningSegmentation`]): The model.
        processor ([`AttendAndSegmentProcessor`]): Its processor.
        question (`str`): What every image is asked.
        max_new_tokens (`int`): Longest answer.
        candidates (`str`): `chosen`: one mask per phrase; `all`: each of the segmenter's candidates.
        options (`dict`): Fields of [`AttendAndSegmentConfig`] that differ.
    """

    model: Any
    processor: Any
    question: str = QUESTION
    max_new_tokens: int = MAX_NEW_TOKENS
    candidates: str = "chosen"
    options: dict[str, Any] = field(default_factory=dict)

    def map_settings(self) -> dict[str, Any]:
        """What decides the maps."""
        return {
            "question": self.question,
            "max_new_tokens": self.max_new_tokens,
            "attention_grid": self.processor.attention_grid,
            **{name: self._option(name) for name in _MAP_OPTIONS},
        }

    def settings(self) -> dict[str, Any]:
        """What decides the answers."""
        return {
            **self.map_settings(),
            **{name: self._option(name) for name in _SEGMENTING_OPTIONS},
            "candidates": self.candidates,
            "phrase_extractor": self.processor.extractor_name,
        }

    def _option(self, name: str) -> Any:
        return self.options.get(name, getattr(self.model.config, name))

    @torch.no_grad()
    def attend(self, images: Sequence[np.ndarray]) -> list[AttendedAnswer]:
        """
        Args:
            images (`Sequence[np.ndarray]`): Each `(height, width, 3)` uint8 RGB.

        Returns:
            `list[AttendedAnswer]`: The model's answer about each, with its maps.
        """
        inputs = self.processor(images=list(images), text=[self.question] * len(images), return_tensors="pt").to(
            self.model.device
        )
        # Without the finder of phrases nothing is segmented yet.
        wanted = {name: value for name, value in inputs.items() if name != "phrase_finder"}
        output = self.model.generate_with_masks(
            **wanted,
            **{name: self.options[name] for name in _MAP_OPTIONS if name in self.options},
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
        )
        start = inputs["input_ids"].shape[1]
        answers = []
        for row, maps in enumerate(output.attention_maps):
            ids = output.sequences[row, start : start + len(maps)].tolist()
            text, spans = token_spans(self._decode, ids)
            answers.append(
                AttendedAnswer(
                    text=text,
                    token_ids=np.array(ids, dtype=np.int64),
                    token_spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
                    maps=maps.float().cpu().numpy(),
                    grid_box=output.grid_boxes[row].double().cpu().numpy(),
                    image_size=np.array(images[row].shape[:2]),
                )
            )
        return answers

    @torch.no_grad()
    def segment(self, pixels: np.ndarray, answer: AttendedAnswer) -> PhraseSegmentationResult:
        """
        Args:
            pixels (`np.ndarray`): `(height, width, 3)` uint8 RGB.
            answer ([`AttendedAnswer`]): What was said about it, just now or earlier.

        Raises:
            ValueError: If the answer belongs to an image of another size.
        """
        if tuple(answer.image_size.tolist()) != pixels.shape[:2]:
            raise ValueError(
                f"The attention maps belong to an image of {tuple(answer.image_size.tolist())} (height, width), this "
                f"one is {pixels.shape[:2]}."
            )
        view = dict(self.processor.segmenter_image_processor([pixels], return_tensors="pt"))
        cache = ImageCache(vlm_features=None, vlm_inputs={}, num_images=1, segmenter_features=[None], **view)
        ids = answer.token_ids.tolist()
        phrases = self.processor.find_phrases(ids)
        output = self.model.segment_maps(
            [torch.from_numpy(answer.maps).to(self.model.device)],
            [[phrase.tokens for phrase in phrases]],
            cache,
            grid_boxes=torch.from_numpy(answer.grid_box)[None],
            **{name: value for name, value in self.options.items() if name not in _MAP_OPTIONS},
        )
        output.phrases, output.sequences = [phrases], torch.tensor([ids], dtype=torch.long)
        no_prompt = {"input_ids": torch.zeros(1, 0, dtype=torch.long), **view}
        return self.processor.post_process_segmentation(output, no_prompt, candidates=self.candidates)[0]

    def read_original(self, folder: str | Path, image: AnnotatedImage) -> AttendedAnswer:
        """What the released code stored about an image under its name; see `read_original_maps`."""
        return read_original_maps(Path(folder) / f"{image.stem}.pth", self._decode, image.size)

    def _decode(self, ids: list[int]) -> str:
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def ground_images(
    grounder: Grounder,
    images: Sequence[AnnotatedImage],
    image_folder: str | Path,
    out: str | Path,
    about: dict[str, Any],
    maps: str | Path | None = None,
    original_maps: str | Path | None = None,
    batch_size: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """
    Answers about all images, one JSON file each; resumes where an earlier run stopped. With several processes each
    takes a part; the main one returns when everything is done, the others with their part.

    Args:
        grounder ([`Grounder`]): Model and settings.
        images (`Sequence[AnnotatedImage]`): The images.
        image_folder (`str` or `Path`): Where they are.
        out (`str` or `Path`): Folder of the answers.
        about (`dict`): What identifies the model, as plain JSON values; a folder is resumed only for the same.
        maps (`str` or `Path`, *optional*):
            Folder for the attention maps, one compressed file per image: first all answers are written, then all
            are segmented, which can be repeated with other settings. Without it both happen image by image.
        original_maps (`str` or `Path`, *optional*):
            Folder of maps that `aas/infer_attn.py` stored, to be segmented without asking the model anything; see
            `read_original_maps`.
        batch_size (`int`): Images that are answered together.
        progress (`Callable`, *optional*): Called with the step, the number of finished and of all files of this
            process.

    Returns:
        `Path`: `out`.

    Raises:
        ValueError: If both kinds of maps are given, or `out` or `maps` was filled with other settings.
    """
    if maps is not None and original_maps is not None:
        raise ValueError("Give either `maps` or `original_maps`: the latter are read only.")

    def report(step: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(step, done, total)

    def load(image: AnnotatedImage) -> np.ndarray:
        return image.load(image_folder)

    def attend(batch: list[AnnotatedImage]) -> list[bytes]:
        return [answer.to_bytes() for answer in grounder.attend([load(image) for image in batch])]

    def segment(image: AnnotatedImage, pixels: np.ndarray, answer: AttendedAnswer) -> bytes:
        return GroundedAnswer.from_result(grounder.segment(pixels, answer)).to_bytes(image.id)

    def segment_stored(batch: list[AnnotatedImage]) -> list[bytes]:
        return [segment(image, load(image), AttendedAnswer.read(stored.path(image))) for image in batch]

    def segment_original(batch: list[AnnotatedImage]) -> list[bytes]:
        return [segment(image, load(image), grounder.read_original(original_maps, image)) for image in batch]

    def answer(batch: list[AnnotatedImage]) -> list[bytes]:
        pixels = [load(image) for image in batch]
        return [segment(*parts) for parts in zip(batch, pixels, grounder.attend(pixels), strict=True)]

    # Both folders are checked before hours of work.
    source = {} if original_maps is None else {"original_maps": str(original_maps)}
    files = ImageFiles(out, ".json", {**about, **grounder.settings(), **source})
    if original_maps is not None:
        files.fill(images, segment_original, 1, report("segmenting"))
    elif maps is None:
        files.fill(images, answer, batch_size, report("answering"))
    else:
        stored = ImageFiles(maps, ".npz", {**about, **grounder.map_settings()})
        stored.fill(images, attend, batch_size, report("answering"))
        files.fill(images, segment_stored, 1, report("segmenting"))
    if PartialState().is_main_process:
        files.wait(images)
    return Path(out)


def read_or_ground(
    options: EvaluationOptions, images: Sequence[AnnotatedImage]
) -> dict[int | str, GroundedAnswer] | None:
    """Answers by image, read or made now; None on all processes but the main one, which have done their part."""
    folder = options.settings.get("answers")
    if folder is None:
        folder = options.out / "answers"
        _ground(options, images, folder)
    return read_grounded_answers(folder, images) if PartialState().is_main_process else None


def _ground(options: EvaluationOptions, images: Sequence[AnnotatedImage], folder: Path) -> None:
    options.require("model", "images")
    settings = options.settings
    model = options.load_model()
    processor = options.load_processor()
    if "phrase_extractor" in settings:
        processor.phrase_extractor = settings["phrase_extractor"]
    grounder = Grounder(
        model,
        processor,
        question=settings.get("question", QUESTION),
        max_new_tokens=options.max_new_tokens or MAX_NEW_TOKENS,
        candidates=settings.get("candidates", "chosen"),
        options={name: settings[name] for name in (*_MAP_OPTIONS, *_SEGMENTING_OPTIONS) if name in settings},
    )
    identity = {"model": options.model, "revision": options.revision, **options.precision.settings()}
    identity["dtype"] = str(model.dtype).removeprefix("torch.")
    ground_images(
        grounder,
        images,
        options.images,
        folder,
        identity,
        maps=settings.get("maps"),
        original_maps=settings.get("original_maps"),
        batch_size=options.batch_size,
        progress=options.progress,
    )


def about_grounding(options: EvaluationOptions) -> dict[str, Any]:
    """What stands beside the numbers."""
    given = {name: options.settings[name] for name in options.given}
    return {
        "model": options.model,
        "dataset": options.dataset,
        "split": options.split,
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in given.items()},
    }


__all__ = [
    "MAX_NEW_TOKENS",
    "QUESTION",
    "AttendedAnswer",
    "Grounder",
    "about_grounding",
    "ground_images",
    "read_or_ground",
    "read_original_maps",
]
