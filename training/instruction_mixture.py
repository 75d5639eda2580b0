"""`data.kind: lisa_mixture`: the data that LISA and GSVA were trained on, for any model that draws by `[SEG]`."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoConfig

from ..data.data_files import DataFileError
from ..data.instruction_wording import render_conversation
from ..data.lisa_mixture import GROUPS, REFERRING_DATA, SEMANTIC_DATA, InstructionItem, LisaMixture
from ..loading import load_pretrained
from ..processing.chat import CHAT_TEMPLATE_NAMES, IMAGE_TOKEN, MARKED_IMAGE, NO_IMAGE, build_chat_template
from ..processing.chat_processor import IGNORED_LABEL
from .data_kinds import DataKind
from .recipe import DataRecipe, Recipe, RecipeError


_SYSTEMS = ("lisa", "gsva")


class InstructionMixture(DataKind):
    """
    `data.path` is the data root, `data.options` are arguments of [`LisaMixture`], `data.collator` of
    [`InstructionCollator`]. Without `system` in the options a model with `[REJ]` learns as GSVA, others as LISA.
    """

    def check(self, recipe: Recipe) -> None:
        if not recipe.data.path:
            raise RecipeError("data.path is missing: name the data root, the folder with ade20k, coco, refer_seg, ...")
        system = recipe.data.options.get("system", "lisa")
        if system not in _SYSTEMS:
            raise RecipeError(f"data.options.system is {system!r}; it must be one of {', '.join(_SYSTEMS)}.")

    def dataset(self, recipe: Recipe) -> LisaMixture:
        options = {"seed": recipe.seed, **recipe.data.options}
        if "system" not in options:
            options["system"] = _system_of(recipe)
        try:
            return LisaMixture(recipe.data.path, **options)
        except DataFileError:
            raise
        except (TypeError, ValueError) as error:
            raise RecipeError(f"data.options of lisa_mixture: {error}") from error

    def check_model(self, dataset: LisaMixture, processor: Any, model: str) -> None:
        """
        Raises:
            DataFileError: If the model has no `[SEG]`, or no `[REJ]` and the data is worded as GSVA's.
        """
        if not getattr(processor, "seg_token", None):
            raise DataFileError(
                f"The mixture's answers hold [SEG], and {model} does not draw by [SEG]. Train LISA, GSVA or another "
                "model with `seg_token_id` on it."
            )
        if dataset.system == "gsva" and getattr(processor, "rej_token", None) is None:
            raise DataFileError(
                f"GSVA's answers hold [REJ], which {model} does not know. Set data.options.system=lisa, or train a "
                "model with [REJ]."
            )

    def collator(self, recipe: Recipe, processor: Any) -> "InstructionCollator":
        try:
            return InstructionCollator(processor, **{"mask_size": recipe.mask_size, **recipe.data.collator})
        except (TypeError, ValueError) as error:
            raise RecipeError(f"data.collator of lisa_mixture: {error}") from error

    def names(self, data: DataRecipe) -> str:
        """The data sets that are drawn from."""
        drawn = {
            "sem_seg": data.options.get("semantic", SEMANTIC_DATA).split("||"),
            "refer_seg": data.options.get("referring", REFERRING_DATA).split("||"),
            "vqa": [data.options.get("conversations", "llava_instruct_150k")],
            "reason_seg": [data.options.get("reasoning", "ReasonSeg|train").replace("|", " ")],
        }
        groups = data.options.get("groups", "||".join(GROUPS)).split("||")
        return ", ".join(name for group in groups for name in drawn.get(group, []))


def _system_of(recipe: Recipe) -> str:
    """Whose wording the recipe's model learns: GSVA's if it can reject, else LISA's."""
    if recipe.parts is not None:
        rejects = recipe.parts.get("system") == "gsva" or bool(recipe.parts.get("reject"))
    else:
        config = load_pretrained(AutoConfig, recipe.model)
        rejects = getattr(config, "rej_token_id", None) is not None
    return "gsva" if rejects else "lisa"


class InstructionCollator:
    """
    Batches of whole conversations, the loss on all answers of all turns; conversations about one image share it.

    Rows follow the model's own chat template. Where that is one of LLaVA's, as in LISA and GSVA, they equal the
    originals' to the letter: `<image>` stands where the data has it, or nowhere. Other templates have the image in
    the message of the user that holds it, or that is answered by it. Of several `<image>` in a conversation the first
    counts: there is one image.

    Args:
        processor: The model's processor; it writes labels and both image views.
        max_length (`int`, *optional*): Longest row in tokens; the rest is cut off. A slot that is cut off loses its
            target, where LISA fails.
        image_length (`int`, *optional*): For how many tokens an image counts in `max_length`, and what rows without
            one have less: 256 in LISA and GSVA, whatever the model. As many as it has by default.
        mask_size (`int`, *optional*): Side in pixels to which targets are averaged down; the size of the image by
            default.
        clip_overlaps (`bool`): LISA's expressions of overlapping parts have 2 and more where parts overlap, which is
            their target in its loss. `True` makes it 1, so that no mask is asked to be more than certain.

    Raises:
        ValueError: If the processor knows no slots, or nothing would be left of a row.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int | None = None,
        image_length: int | None = None,
        mask_size: int | None = None,
        clip_overlaps: bool = False,
    ):
        if not hasattr(processor, "slot_tokens"):
            raise ValueError(f"{type(processor).__name__} knows no [SEG]; the mixture's answers ask for masks.")
        if max_length is not None and max_length < (image_length or 1):
            raise ValueError(
                f"max_length={max_length} leaves nothing of a row beside an image of {image_length} tokens; raise it."
            )
        self.processor = processor
        self.max_length, self.image_length = max_length, image_length
        self.mask_size, self.clip_overlaps = mask_size, clip_overlaps
        self._template = _find_llava_template(processor.chat_template)

    def __call__(self, items: Sequence[InstructionItem]) -> dict[str, Any]:
        conversations = [(image, messages) for image, item in enumerate(items) for messages in item.conversations]
        shows = [any(IMAGE_TOKEN in message for message in messages) for _, messages in conversations]
        batch = dict(
            self.processor(
                images=[item.image for item in items],
                text=[self.write(messages) for _, messages in conversations],
                image_index=[
                    image if shown else NO_IMAGE for (image, _), shown in zip(conversations, shows, strict=True)
                ],
                apply_template=False,
                return_labels=True,
                padding=True,
                padding_side="right",
                return_tensors="pt",
            )
        )
        masks = self._targets(items, self._count_slots(batch))
        if self.max_length is not None:
            batch = self._truncate(batch)
            masks = [targets[:count] for targets, count in zip(masks, self._count_slots(batch), strict=True)]
        highest = max((float(targets.max()) for targets in masks if targets.numel()), default=1.0)
        batch |= {"mask_labels": masks}
        return batch | {"highest_mask_label": highest} if highest > 1 else batch

    def write(self, messages: Sequence[str]) -> str:
        """The whole prompt of a conversation, with the user's and the assistant's messages in turns."""
        messages = _with_one_image(messages)
        if self._template is None:
            return self._render([message for turn in _turns(messages) for message in turn])
        name, image = self._template
        if name == "llava_v1":
            return render_conversation(messages).replace(IMAGE_TOKEN, image)
        roles = ("user", "assistant")
        return self._render(
            [
                {"role": roles[number % 2], "content": text.replace(IMAGE_TOKEN, image)}
                for number, text in enumerate(messages)
            ]
        )

    def _render(self, messages: list[dict[str, Any]]) -> str:
        return self.processor.apply_chat_template(messages, tokenize=False)

    def _count_slots(self, batch: dict[str, Any]) -> list[int]:
        slots = torch.tensor(list(self.processor.slot_tokens))
        return (torch.isin(batch["input_ids"], slots) & batch["attention_mask"].bool()).sum(1).tolist()

    def _targets(self, items: Sequence[InstructionItem], found: list[int]) -> list[torch.FloatTensor]:
        """Per conversation `(slots, height, width)`."""
        targets, counts = [], iter(found)
        for item in items:
            masks, first = torch.from_numpy(item.masks).float(), 0
            if self.clip_overlaps:
                masks = masks.clamp(max=1)
            if self.mask_size is not None:
                masks = F.adaptive_avg_pool2d(masks, self.mask_size)
            for messages, slots in zip(item.conversations, item.slots, strict=True):
                if (count := next(counts)) != slots:
                    raise DataFileError(
                        f"{item.data_set}, {item.path}: the conversation {messages[0][:60]!r} holds {count} "
                        f"{' or '.join(self.processor.slot_tokens.values())} and has {slots} masks; a text must not "
                        "hold these tokens itself."
                    )
                targets.append(masks[first : first + slots])
                first += slots
        return targets

    def _truncate(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Cut rows off at the right; an image goes with its first token, or stays whole."""
        ids = batch["input_ids"]
        is_image = ids == self.processor.image_token_id
        if self.image_length is None:
            kept = torch.full((len(ids),), self.max_length)
            left = is_image[:, : self.max_length].sum(1)
            if bool(((left > 0) & (left < is_image.sum(1))).any()):
                raise DataFileError(
                    f"max_length={self.max_length} cuts through an image of {int(is_image.sum(1).max())} tokens; "
                    "raise data.collator.max_length."
                )
        else:
            # The originals cut before the one token of an image becomes many.
            length = self.max_length - (self.image_length - 1)
            counted = (~(is_image & (is_image.cumsum(1) > 1))).cumsum(1)
            kept = (counted <= length).sum(1)
        kept = torch.minimum(kept, batch["attention_mask"].sum(1))
        dropped = torch.arange(ids.shape[1]) >= kept[:, None]
        filling = {"input_ids": self.processor.tokenizer.pad_token_id, "labels": IGNORED_LABEL}
        cut = {
            name: values.masked_fill(dropped, filling.get(name, 0))[:, : int(kept.max())]
            for name, values in batch.items()
            if isinstance(values, torch.Tensor) and values.shape == ids.shape
        }
        seen = (cut["input_ids"] == self.processor.image_token_id).any(1)
        index = torch.where(seen, batch["image_index"], torch.full_like(batch["image_index"], NO_IMAGE))
        return {**batch, **cut, "image_index": index}


def _find_llava_template(chat_template: Any) -> tuple[str, str] | None:
    """Name and image marker of the template that this package writes so; `None` for another one."""
    for name in CHAT_TEMPLATE_NAMES:
        for image in (MARKED_IMAGE, IMAGE_TOKEN):
            if chat_template == build_chat_template(name, image):
                return name, image
    return None


def _with_one_image(messages: Sequence[str]) -> list[str]:
    kept, seen = [], False
    for message in messages:
        head, token, rest = message.partition(IMAGE_TOKEN)
        if seen:
            message = message.replace(f"{IMAGE_TOKEN}\n", "").replace(IMAGE_TOKEN, "")
        elif token:
            message, seen = head + token + rest.replace(IMAGE_TOKEN, ""), True
        kept.append(message)
    return kept


def _turns(messages: Sequence[str]) -> list[list[dict[str, Any]]]:
    """A question with its answer in each, as chat templates take them, images apart from the text."""
    turns = []
    for number in range(0, len(messages), 2):
        turn = messages[number : number + 2]
        shown = any(IMAGE_TOKEN in text for text in turn)
        texts = [text.replace(f"{IMAGE_TOKEN}\n", "").replace(IMAGE_TOKEN, "") for text in turn]
        parts = [[{"type": "text", "text": text}] for text in texts]
        if shown:
            parts[0].insert(0, {"type": "image"})
        turns.append(
            [{"role": role, "content": part} for role, part in zip(("user", "assistant"), parts, strict=False)]
        )
    return turns


__all__ = ["InstructionCollator", "InstructionMixture"]
