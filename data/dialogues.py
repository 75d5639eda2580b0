"""
The training data of LLaVA, DiffLMM and ViP-LLaVA: conversations about images, for the last with visual prompts, which
are drawn when an image is read.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..processing.chat import IMAGE_TOKEN
from ..processing.image_loading import load_rgb_image
from ..processing.visual_prompt_sampling import PromptRandom
from ..processing.visual_prompts import ANCHOR
from .data_files import DataFileError
from .region_conversation import RegionConversation, image_with_prompts
from .region_data import RegionFile
from .region_questions import build_conversation
from .shared_epoch import SharedEpoch


logger = logging.getLogger(__name__)
# Samples that cannot be used are replaced by others; so many in a row mean that something is wrong with all of them.
_MAX_REPLACEMENTS = 20


@dataclass
class Dialogue:
    """
    Args:
        conversation ([`RegionConversation`]): What is said.
        image (`PIL.Image.Image`, *optional*): The image with its visual prompts, `None` where there is none.
    """

    conversation: RegionConversation
    image: Image.Image | None


class RegionDialogues(Dataset):
    """
    The rows of a region file. Colours, shapes, positions and wording depend on seed, epoch and row alone, so they are
    new in every epoch and the same whatever the number of workers and processes.

    A row whose image or regions cannot be used is replaced by another one with a warning, as in the original.

    Args:
        path (`str` or `Path`): The file, see [`RegionFile`].
        images (`str` or `Path`, *optional*): Folder of the images; the file's by default.
        seed (`int`): Of all choices.
        alpha (`int`, *optional*): Opacity of all visual prompts, 0 to 255; sampled for each by default.
        side (`int`): Side in pixels of the model's input, by which widths scale.
        add_missing_images (`bool`): The original's short RefCOCOg descriptions and Visual Genome triplets lack the
            image token, so that the model learns them without seeing the image. The published checkpoints were trained
            that way; `True` adds the token.
        limit (`int`, *optional*): Only the first rows.

    Raises:
        DataFileError: If the file cannot be read or has no rows, or there is no such folder.
    """

    def __init__(
        self,
        path: str | Path,
        images: str | Path | None = None,
        seed: int = 0,
        alpha: int | None = None,
        side: int = ANCHOR,
        add_missing_images: bool = False,
        limit: int | None = None,
    ):
        if images is not None and not Path(images).is_dir():
            raise DataFileError(f"There is no folder {images}; give that of the images which {path} names.")
        self.file = RegionFile(path, images)
        self.count = len(self.file) if limit is None else min(limit, len(self.file))
        if not self.count:
            raise DataFileError(f"{path} has no rows to learn from.")
        self.seed, self.alpha, self.side, self.add_missing_images = seed, alpha, side, add_missing_images
        self._epoch = SharedEpoch()

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self._epoch.set(epoch)

    def signed_lengths(self) -> list[int]:
        """Words of each row, at least 1, negative for rows without an image: LLaVA's `modality_lengths`."""
        return [signed_length(self.file.row(index)) for index in range(self.count)]

    def require_images(self) -> None:
        """
        Raises:
            DataFileError: If rows have no image.
        """
        without = [index for index, length in enumerate(self.signed_lengths()) if length < 0]
        if without:
            first = self.file[without[0]].id
            raise DataFileError(
                f"{len(without)} of {self.count} rows of {self.file.path} have no `image`, the first is {first!r}; "
                "captions need one. Leave these rows out, or learn from them in the second stage."
            )

    def __getitem__(self, index: int) -> Dialogue:
        if not 0 <= index < self.count:
            raise IndexError(f"There are {self.count} dialogues; there is no dialogue {index}.")
        (seed,) = np.random.SeedSequence([self.seed, int(self._epoch), index]).generate_state(1).tolist()
        rng = PromptRandom.from_seed(seed)
        for _ in range(_MAX_REPLACEMENTS):
            try:
                return self._dialogue(index, rng)
            except (ValueError, OSError) as error:  # DataFileError and unreadable images among them
                logger.warning("Row %d of %s is replaced by another: %s", index, self.file.path, error)
                problem = error
                index = rng.python.randrange(self.count)
        raise DataFileError(f"{_MAX_REPLACEMENTS} rows of {self.file.path} in a row cannot be used.") from problem

    def _dialogue(self, index: int, rng: PromptRandom) -> Dialogue:
        sample = self.file[index]
        conversation = build_conversation(sample, rng)
        if self.add_missing_images and sample.image is not None:
            conversation = conversation.with_image()
        if sample.image is None and conversation.has_image:
            raise DataFileError(f"Row {sample.id!r} names {IMAGE_TOKEN} and has no image.")
        if not conversation.has_image:
            return Dialogue(conversation, None)
        if conversation.regions:
            return Dialogue(
                conversation,
                image_with_prompts(sample.image, conversation, rng, alpha=self.alpha, anchor=self.side),
            )
        return Dialogue(conversation, load_rgb_image(sample.image))


def signed_length(row: dict[str, Any]) -> int:
    """Number of words in the conversation of a row, at least 1; negative for a row without an image."""
    texts = [message["value"] for message in row.get("conversations", [])]
    texts = texts or [value for value in map(row.get, ("question", "answer", "grounding")) if isinstance(value, str)]
    words = max(1, sum(len(text.split()) for text in texts))
    return words if row.get("image") is not None else -words


__all__ = ["Dialogue", "RegionDialogues"]
