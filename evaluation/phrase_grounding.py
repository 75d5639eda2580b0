"""Lets a model describe pictures and ground its phrases: in one go, or with the attention maps stored in between."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from ..data.annotated_images import AnnotatedImage
from ..modeling.outputs import ImageCache
from ..processing.phrase_segments import PhraseSegmentationResult
from ..processing.token_spans import token_spans
from .attention_store import AttendedAnswer, read_original_maps
from .grounded_answers import GroundedAnswer
from .image_files import ImageFiles


# What the released code asks, and how long answers may get there.
QUESTION = "Describe the image in detail."
MAX_NEW_TOKENS = 1024
# Fields of AttendAndSegmentConfig that decide the maps; all others decide what is made of them.
_MAP_OPTIONS = ("heads", "attention_layers")


@dataclass
class Grounder:
    """
    An attend-and-segment model as the benchmarks use it: it answers greedily, and every noun phrase gets its masks.

    Args:
        model ([`AttendAndSegmentModel`]): The model.
        processor ([`AttendAndSegmentProcessor`]): Its processor.
        question (`str`): What every picture is asked.
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
        chosen = ("subtract_mean", "remove_corners", "prompt", "attention_temperature", "box_threshold", "mask_choice")
        return {
            **self.map_settings(),
            **{name: self._option(name) for name in chosen},
            "candidates": self.candidates,
            "phrase_extractor": self.processor.extractor_name,
        }

    def _option(self, name: str) -> Any:
        return self.options.get(name, getattr(self.model.config, name))

    @torch.no_grad()
    def attend(self, pictures: Sequence[np.ndarray]) -> list[AttendedAnswer]:
        """
        Args:
            pictures (`Sequence[np.ndarray]`): Each `(height, width, 3)` uint8 RGB.

        Returns:
            `list[AttendedAnswer]`: The model's answer about each, with its maps.
        """
        inputs = self.processor(images=list(pictures), text=[self.question] * len(pictures), return_tensors="pt").to(
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
                    image_size=np.array(pictures[row].shape[:2]),
                )
            )
        return answers

    @torch.no_grad()
    def segment(self, picture: np.ndarray, answer: AttendedAnswer) -> PhraseSegmentationResult:
        """
        Args:
            picture (`np.ndarray`): `(height, width, 3)` uint8 RGB.
            answer ([`AttendedAnswer`]): What was said about it, just now or earlier.

        Raises:
            ValueError: If the answer belongs to a picture of another size.
        """
        if tuple(answer.image_size.tolist()) != picture.shape[:2]:
            raise ValueError(
                f"The attention maps belong to a picture of {tuple(answer.image_size.tolist())} (height, width), this "
                f"one is {picture.shape[:2]}."
            )
        view = dict(self.processor.segmenter_image_processor([picture], return_tensors="pt"))
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
        """What the released code stored about a picture under its name; see `read_original_maps`."""
        return read_original_maps(Path(folder) / f"{image.stem}.pth", self._decode, image.size)

    def _decode(self, ids: list[int]) -> str:
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def ground_pictures(
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
    Answers about all pictures, one JSON file each; goes on where an earlier run stopped. With several processes each
    takes a part; the main one returns when everything is done, the others with their part.

    Args:
        grounder ([`Grounder`]): Model and settings.
        images (`Sequence[AnnotatedImage]`): The pictures.
        image_folder (`str` or `Path`): Where they are.
        out (`str` or `Path`): Folder of the answers.
        about (`dict`): What identifies the model, as plain JSON values; a folder is gone on with only for the same.
        maps (`str` or `Path`, *optional*):
            Folder for the attention maps, one compressed file per picture: first all answers are written, then all
            are segmented, which can be repeated with other settings. Without it both happen picture by picture.
        original_maps (`str` or `Path`, *optional*):
            Folder of maps that `aas/infer_attn.py` stored, to be segmented without asking the model anything; see
            `read_original_maps`.
        batch_size (`int`): Pictures that are answered together.
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

    def segment(image: AnnotatedImage, picture: np.ndarray, answer: AttendedAnswer) -> bytes:
        return GroundedAnswer.from_result(grounder.segment(picture, answer)).to_bytes(image.id)

    def segment_stored(batch: list[AnnotatedImage]) -> list[bytes]:
        return [segment(image, load(image), AttendedAnswer.read(stored.path(image))) for image in batch]

    def segment_original(batch: list[AnnotatedImage]) -> list[bytes]:
        return [segment(image, load(image), grounder.read_original(original_maps, image)) for image in batch]

    def answer(batch: list[AnnotatedImage]) -> list[bytes]:
        pictures = [load(image) for image in batch]
        return [segment(*parts) for parts in zip(batch, pictures, grounder.attend(pictures), strict=True)]

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


__all__ = ["MAX_NEW_TOKENS", "QUESTION", "Grounder", "ground_pictures"]
