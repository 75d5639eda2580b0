"""ViP-LLaVA's training data: conversations about pictures, marks drawn when a picture is taken, and their batches."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..processing.chat_templates import IMAGE_TOKEN
from ..processing.image_loading import load_rgb_image
from ..processing.token_rows import IGNORED_LABEL, label_answers
from ..processing.visual_prompt_sampling import PromptRandom
from ..processing.visual_prompts import ANCHOR
from .region_conversation import RegionConversation, marked_image
from .region_data import RegionDataError, RegionFile
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
        image (`PIL.Image.Image`, *optional*): The picture with its marks; `None` where the conversation has none.
    """

    conversation: RegionConversation
    image: Image.Image | None


class RegionDialogues(Dataset):
    """
    The rows of a region file. Colours, shapes, places and wording depend on seed, epoch and row alone, so they are
    new in every epoch and the same whatever the number of workers and processes.

    A row whose picture or regions cannot be used is replaced by another one with a warning, as in the original.

    Args:
        path (`str` or `Path`): The file, see [`RegionFile`].
        images (`str` or `Path`, *optional*): Folder of the pictures; the file's by default.
        seed (`int`): Of all choices.
        alpha (`int`, *optional*): Opacity of all marks, 0 to 255; drawn for each by default.
        side (`int`): Side in pixels of the model's input, by which widths scale.
        add_missing_images (`bool`): The original's short RefCOCOg descriptions and Visual Genome triplets lack the
            image token, so that the model learns them without seeing the picture. The published checkpoints are made
            that way; `True` shows it.
        limit (`int`, *optional*): Only the first rows.

    Raises:
        RegionDataError: If the file cannot be read or has no rows.
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
        self.file = RegionFile(path, images)
        self.count = len(self.file) if limit is None else min(limit, len(self.file))
        if not self.count:
            raise RegionDataError(f"{path} has no rows to learn from.")
        self.seed, self.alpha, self.side, self.add_missing_images = seed, alpha, side, add_missing_images
        self._epoch = SharedEpoch()

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self._epoch.set(epoch)

    def __getitem__(self, index: int) -> Dialogue:
        if not 0 <= index < self.count:
            raise IndexError(f"There are {self.count} dialogues; there is no dialogue {index}.")
        (seed,) = np.random.SeedSequence([self.seed, int(self._epoch), index]).generate_state(1).tolist()
        rng = PromptRandom.from_seed(seed)
        for _ in range(_MAX_REPLACEMENTS):
            try:
                return self._dialogue(index, rng)
            except (ValueError, OSError) as error:  # RegionDataError and unreadable pictures among them
                logger.warning("Row %d of %s is replaced by another: %s", index, self.file.path, error)
                problem = error
                index = rng.python.randrange(self.count)
        raise RegionDataError(f"{_MAX_REPLACEMENTS} rows of {self.file.path} in a row cannot be used.") from problem

    def _dialogue(self, index: int, rng: PromptRandom) -> Dialogue:
        sample = self.file[index]
        conversation = build_conversation(sample, rng)
        if self.add_missing_images and sample.image is not None:
            conversation = conversation.with_image()
        if sample.image is None and conversation.has_image:
            raise RegionDataError(f"Row {sample.id!r} names {IMAGE_TOKEN} and has no image.")
        if not conversation.has_image:
            return Dialogue(conversation, None)
        if conversation.regions:
            return Dialogue(
                conversation,
                marked_image(sample.image, conversation, rng, alpha=self.alpha, anchor=self.side),
            )
        return Dialogue(conversation, load_rgb_image(sample.image))


class DialogueCollator:
    """
    Batches of whole conversations, the loss on all answers.

    Args:
        processor ([`VipLlavaProcessor`]): Writes prompts and labels.
        max_length (`int`, *optional*): Longest row in tokens, image tokens included; the rest is cut off.
        captions (`bool`): LLaVA's "plain" prompts for the first stage: the picture, then the last answer and a line
            break, without instructions.
        pad_images (`bool`): Whether pictures become square by padding. The original's first stage takes their centre.

    Raises:
        ValueError: In `captions`, for a conversation without a picture.
    """

    def __init__(self, processor, max_length: int | None = 2048, captions: bool = False, pad_images: bool = True):
        self.processor = processor
        self.max_length = max_length
        self.captions = captions
        self.pad_images = pad_images

    def __call__(self, dialogues: list[Dialogue]) -> dict[str, Any]:
        texts = [self._text(dialogue) for dialogue in dialogues]
        batch = self.processor(
            images=[dialogue.image for dialogue in dialogues],
            text=texts,
            apply_template=False,
            return_labels=not self.captions,
            images_kwargs={"do_pad": self.pad_images},
            text_kwargs={
                "padding": True,
                "padding_side": "right",
                "truncation": self.max_length is not None,
                "max_length": self.max_length,
                "return_tensors": "pt",
            },
        )
        if self.captions:
            batch["labels"] = self._caption_labels(texts, batch)
        return dict(batch)

    def _text(self, dialogue: Dialogue) -> str:
        conversation = dialogue.conversation
        if not self.captions:
            return self.processor.apply_chat_template(conversation.messages(), tokenize=False)
        if dialogue.image is None:
            raise ValueError(f"{conversation.turns[0][0][:60]!r} comes without a picture; a caption needs one.")
        return f"{self.processor.image_token}{conversation.turns[-1][1]}\n"

    def _caption_labels(self, texts: list[str], batch: dict[str, Any]) -> Any:
        labels = batch["input_ids"].new_full(batch["input_ids"].shape, IGNORED_LABEL)
        for row, text in enumerate(texts):
            ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
            whole = self.processor.tokenizer(text)["input_ids"]
            # Where the end was cut off, the labels of what is left are those of a row that goes on.
            image_tokens = int((ids == self.processor.image_token_id).sum())
            uncut = len(whole) - 1 + image_tokens
            missing = whole[len(whole) - (uncut - len(ids)) :] if uncut > len(ids) else []
            answer = (len(self.processor.image_token), len(text))
            found = label_answers(self.processor.tokenizer, text, [answer], [*ids.tolist(), *missing])
            labels[row, : len(ids)] = labels.new_tensor(found[: len(ids)])
        return labels


__all__ = ["Dialogue", "DialogueCollator", "RegionDialogues"]
