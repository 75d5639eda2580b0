"""`data.kind: regions`: conversations about images and, for ViP-LLaVA, about regions of them, as batches."""

from typing import Any

import torch

from ..data.dialogues import Dialogue, RegionDialogues
from ..processing.chat_processor import IGNORED_LABEL, label_answers
from .data_kinds import DataKind
from .recipe import Recipe, RecipeError


class Regions(DataKind):
    """Rows of a JSON file; `data.options` are of [`RegionDialogues`], `data.collator` of [`DialogueCollator`]."""

    # A model that only writes text has its language head under this name alone.
    model_class = "AutoModelForImageTextToText"
    knows_lengths = True

    def check(self, recipe: Recipe) -> None:
        if not recipe.data.path:
            raise RecipeError("data.path is missing: name the JSON file with the conversations.")

    def dataset(self, recipe: Recipe) -> RegionDialogues:
        try:
            dialogues = RegionDialogues(recipe.data.path, **{"seed": recipe.seed, **recipe.data.options})
        except TypeError as error:
            raise RecipeError(f"data.options of regions: {error}") from error
        if recipe.data.collator.get("captions"):
            dialogues.require_images()
        return dialogues

    def collator(self, recipe: Recipe, processor: Any) -> "DialogueCollator":
        try:
            return DialogueCollator(processor, **recipe.data.collator)
        except TypeError as error:
            raise RecipeError(f"data.collator of regions: {error}") from error


class DialogueCollator:
    """
    Batches of whole conversations, the loss on all answers.

    Args:
        processor ([`VipLlavaProcessor`]): Writes prompts and labels.
        max_length (`int`, *optional*): Longest row in tokens, image tokens included; the rest is cut off.
        captions (`bool`): LLaVA's "plain" prompts for the first stage: the image, then the last answer and a line
            break, without instructions.
        pad_images (`bool`): Whether images become square by padding. The original's first stage takes their centre.
        share_images (`bool`): Whether an image that several rows see is in the batch once, with an `image_index`; for
            models that take one, such as DiffLMM, whose encoders then run once.

    Raises:
        ValueError: In `captions`, for a conversation without an image.
    """

    def __init__(
        self,
        processor,
        max_length: int | None = 2048,
        captions: bool = False,
        pad_images: bool = True,
        share_images: bool = False,
    ):
        self.processor = processor
        self.max_length = max_length
        self.captions = captions
        self.pad_images = pad_images
        self.share_images = share_images

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
        return _with_shared_images(dict(batch)) if self.share_images else dict(batch)

    def _text(self, dialogue: Dialogue) -> str:
        conversation = dialogue.conversation
        if not self.captions:
            return self.processor.apply_chat_template(conversation.messages(), tokenize=False)
        if dialogue.image is None:
            raise ValueError(f"{conversation.turns[0][0][:60]!r} comes without an image; a caption needs one.")
        return f"{self.processor.image_token}{conversation.turns[-1][1]}\n"

    def _caption_labels(self, texts: list[str], batch: dict[str, Any]) -> Any:
        labels = batch["input_ids"].new_full(batch["input_ids"].shape, IGNORED_LABEL)
        for row, text in enumerate(texts):
            ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
            whole = self.processor.tokenizer(text)["input_ids"]
            # Where the end was cut off, the labels of what is left are those of the uncut row.
            image_tokens = int((ids == self.processor.image_token_id).sum())
            uncut = len(whole) - 1 + image_tokens
            missing = whole[len(whole) - (uncut - len(ids)) :] if uncut > len(ids) else []
            answer = (len(self.processor.image_token), len(text))
            found = label_answers(self.processor.tokenizer, text, [answer], [*ids.tolist(), *missing])
            labels[row, : len(ids)] = labels.new_tensor(found[: len(ids)])
        return labels


def _with_shared_images(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with each different image once, and the image of each row that has one as `image_index`."""
    if "pixel_values" not in batch:
        return batch
    different: dict[bytes, int] = {}
    seen = [image.numpy().tobytes() for image in batch["pixel_values"]]
    index = [different.setdefault(image, len(different)) for image in seen]
    if len(different) == len(index):
        return batch
    first = [index.index(image) for image in range(len(different))]
    return {**batch, "pixel_values": batch["pixel_values"][first], "image_index": torch.tensor(index)}


__all__ = ["DialogueCollator", "Regions"]
