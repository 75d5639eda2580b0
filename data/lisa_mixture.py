"""The training mixture of LISA and GSVA: which image is taken, what is asked about it, and how it is answered.

An item draws one of four groups by their rates, and in it as the originals do: a data set and an image, all equally
likely, then targets and wording. Random calls have their order, so that an item of theirs can be replayed.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from .data_files import DataFileError
from .example import Example
from .hub_datasets import HubImage, HubImages, HubQuery, HubReasonSeg
from .instruction_wording import (
    RandomCalls,
    SeededCalls,
    Wording,
    ask_by_reasoning,
    ask_for_one,
    ask_for_several,
    checked_text,
    render_conversation,
    wording_of,
)
from .mask_targets import Skipped, Target, TargetImages, UndrawableMaskError, check_size, load_image
from .part_segmentation import PacoLvis, PascalPart
from .reason_seg import FOREGROUND, ReasonSeg
from .referring_expressions import REFERRING_SETS, ReferringExpressions
from .semantic_segmentation import Ade20k, CocoStuff, MapillaryVistas
from .shared_epoch import SharedEpoch
from .visual_conversations import IMAGE_TOKEN, LlavaInstruct


logger = logging.getLogger(__name__)

# Reads a data set of semantic or referring segmentation below a data root, for "lisa" or "gsva", mended or as it was.
Reader = Callable[[Path, str, bool], TargetImages]
Thing = TypeVar("Thing")

# Draws in a row that give nothing: the originals draw until Python's recursion ends, after about as many.
_MOST_DRAWS = 1000

GROUPS = ("sem_seg", "refer_seg", "vqa", "reason_seg")
SEMANTIC_DATA = "ade20k||cocostuff||pascal_part||paco_lvis||mapillary"
REFERRING_DATA = "refclef||refcoco||refcoco+||refcocog"


def _referring_reader(name: str) -> Reader:
    return lambda root, system, fixed: ReferringExpressions(root, name, original=system, as_original=not fixed)


SEMANTIC_READERS: dict[str, Reader] = {
    "ade20k": lambda root, system, fixed: Ade20k(root),
    "cocostuff": lambda root, system, fixed: CocoStuff(root),
    "mapillary": lambda root, system, fixed: MapillaryVistas(root, fixed),
    "paco_lvis": lambda root, system, fixed: PacoLvis(root),
    "pascal_part": lambda root, system, fixed: PascalPart(root),
}
REFERRING_READERS: dict[str, Reader] = {name: _referring_reader(name) for name in REFERRING_SETS}


@dataclass
class InstructionItem:
    """
    One image with conversations about it.

    Args:
        image (`PIL.Image.Image`): Upright, in RGB.
        path (`Path`): Its file.
        data_set (`str`): The data set it comes from.
        conversations (`list[list[str]]`): Messages of the user and the assistant in turns, the image where `<image>`
            stands. A visual conversation may lack it.
        names (`list[str]`): What was drawn to be asked for: classes, expressions or queries, in their own case.
        masks (`np.ndarray`): of shape `(slots, height, width)`, in the order of the slots `[SEG]` and `[REJ]`: bool
            for label maps and ReasonSeg, else uint8. An expression's mask may hold numbers above 1, see its reader.
        rejected (`list[bool]`): Which slots are `[REJ]`.
        slots (`list[int]`): Number of slots of each conversation.
    """

    image: Image.Image
    path: Path
    data_set: str
    conversations: list[list[str]]
    names: list[str]
    masks: np.ndarray
    rejected: list[bool]
    slots: list[int]

    @property
    def prompts(self) -> list[str]:
        """The conversations as the originals write them, by their template `llava_v1`."""
        return [render_conversation(messages) for messages in self.conversations]

    def example(self) -> Example:
        """The same for a processor, which puts the image first by itself. Masks of `[REJ]` are `None`, others bool:
        the overlap of two parts, a target of 2 in LISA's loss, is a target as any other.

        Raises:
            ValueError: If a conversation has several turns, or none of its messages shows the image.
        """
        turn = f"{IMAGE_TOKEN}\n"
        if any(len(messages) != 2 or not messages[0].startswith(turn) for messages in self.conversations):
            raise ValueError(
                f"A conversation about {self.path} has several turns or does not begin with its image; it needs a "
                "collator that takes whole conversations."
            )
        masks = iter(None if rejected else mask != 0 for mask, rejected in zip(self.masks, self.rejected, strict=True))
        return Example(
            image=self.image,
            questions=[question.removeprefix(turn) for question, _ in self.conversations],
            answers=[answer for _, answer in self.conversations],
            masks=[[next(masks) for _ in range(count)] for count in self.slots],
        )


class LisaMixture:
    """
    LISA's `HybridDataset` and GSVA's `MixedTrainingDataset`.

    An item depends on seed, epoch and its index alone: it is the same whatever the number of workers and processes,
    and after a training was resumed. The originals set no seed.

    Args:
        root (`str` or `Path`): The data root.
        system (`str`): `"lisa"`, one conversation per target, or `"gsva"`, one per image, with rejections.
        groups (`str`): Names of [`GROUPS`] with `||` between.
        rates (`Sequence[float]`): How often each group is drawn, in proportion.
        samples_per_epoch (`int`): Number of items.
        classes_per_sample (`int`): How many targets of an image are asked for at most.
        semantic, referring (`str`): Names of data sets with `||` between, drawn equally often whatever their sizes.
            Also data sets of the Hub, with their split: `"refcoco||lmms-lab/RefCOCO|val"`, see [`HubImages`].
        conversations (`str`): Name of the file of visual conversations.
        reasoning (`str`): `"ReasonSeg|train"`, or several splits: `"ReasonSeg|train_val"`, or a data set of the Hub
            with its split: `"Ricky06662/ReasonSeg_val|test"`, see [`HubReasonSeg`].
        explanatory (`float`): How often an image with an explanation is asked for that alone; with -1 explanations
            are not used.
        no_sampling (`bool`): GSVA's: every image of the one data set in turn, `samples_per_epoch` without effect.
        fixed (`bool`): Mend what is plainly wrong in the originals, see the readers, [`Wording`] and `no_sampling`:
            there an image without targets becomes the first image, and with `fixed` the next one.
        seed (`int`): Of all choices.
        readers (`Mapping[str, Reader]`, *optional*): Further data sets of classes or expressions, by name.

    Raises:
        ValueError: If a name is unknown, or rates and groups do not fit.
        DataFileError: If files of a data set are missing or cannot be used.
    """

    def __init__(
        self,
        root: str | Path,
        system: str = "lisa",
        groups: str = "||".join(GROUPS),
        rates: Sequence[float] = (9, 3, 3, 1),
        samples_per_epoch: int = 80_000,
        classes_per_sample: int = 3,
        semantic: str = SEMANTIC_DATA,
        referring: str = REFERRING_DATA,
        conversations: str = "llava_instruct_150k",
        reasoning: str = "ReasonSeg|train",
        explanatory: float = 0.1,
        no_sampling: bool = False,
        fixed: bool = False,
        seed: int = 0,
        readers: Mapping[str, Reader] | None = None,
    ):
        names = groups.split("||")
        weights = np.array(rates, dtype=np.float64)
        if len(names) != len(weights) or not (weights >= 0).all() or not weights.sum() > 0:
            raise ValueError(f"{len(names)} groups ({groups}) need as many rates of 0 or more, not {list(rates)}.")
        if (unknown := set(names) - set(GROUPS)) or len(set(names)) < len(names):
            found = f"{sorted(unknown)} are unknown" if unknown else f"{groups} repeat one"
            raise ValueError(f"The groups {found}; allowed are {', '.join(GROUPS)}.")
        if classes_per_sample < 1:
            raise ValueError(f"classes_per_sample is {classes_per_sample}; it must be 1 or more.")
        wording = wording_of(system, fixed)
        table = SEMANTIC_READERS | REFERRING_READERS | dict(readers or {})
        data_sets = semantic.split("||") if "sem_seg" in names else []
        expressions = referring.split("||") if "refer_seg" in names else []
        if no_sampling and len(names) + max(len(data_sets), len(expressions), 1) > 2:
            raise ValueError(
                f"no_sampling takes one group with one data set, not {groups} with {semantic}, {referring}."
            )

        def opened(name: str) -> tuple[str, TargetImages]:
            if "/" in name and name not in table:
                return name, HubImages(*name.split("|", maxsplit=1))
            if name not in table:
                raise ValueError(f"There is no data set {name!r}; known are {', '.join(sorted(table))}.")
            return name, table[name](Path(root), system, fixed)

        def group(name: str) -> "_Group":
            if name == "sem_seg":
                return _SemanticGroup(list(map(opened, data_sets)), classes_per_sample, wording)
            if name == "refer_seg":
                return _ReferringGroup(list(map(opened, expressions)), classes_per_sample, wording)
            if name == "vqa":
                return _ConversationGroup(LlavaInstruct(root, conversations, fixed))
            folder, splits = _folder_and_splits(reasoning)
            if "/" in folder:
                data = HubReasonSeg(folder, splits)
                return _ReasoningGroup(data, reasoning, classes_per_sample, explanatory, wording)
            data = ReasonSeg(root, splits, explained=explanatory != -1, folder=folder)
            return _ReasoningGroup(data, reasoning, classes_per_sample, explanatory, wording)

        self.probabilities = (weights / weights.sum()).tolist()
        self.groups = {name: group(name) for name in names}
        self.system = system
        self.samples_per_epoch, self.no_sampling, self.fixed, self.seed = samples_per_epoch, no_sampling, fixed, seed
        self._epoch = SharedEpoch()

    def __len__(self) -> int:
        return len(next(iter(self.groups.values()))) if self.no_sampling else self.samples_per_epoch

    def set_epoch(self, epoch: int) -> None:
        self._epoch.set(epoch)

    def __getitem__(self, index: int) -> InstructionItem:
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} items; there is no item {index}.")
        seeds = np.random.SeedSequence([self.seed, int(self._epoch), index]).generate_state(2).tolist()
        return self.draw(SeededCalls(*seeds), index)

    def draw(self, random_calls: RandomCalls, index: int = 0) -> InstructionItem:
        """
        Draw an item with given random calls.

        Args:
            random_calls ([`RandomCalls`]): Decides everything.
            index (`int`): The image, with `no_sampling` alone.

        Raises:
            DataFileError: If a file of the drawn image cannot be used, or a thousand draws in a row give nothing.
        """
        groups = list(self.groups.values())
        if self.no_sampling:
            return groups[0].draw(random_calls, index, step=1 if self.fixed else None)
        return groups[random_calls.weighted(self.probabilities)].draw(random_calls)


class _Group:
    """Draws until an image gives something to ask for."""

    skipped: Skipped

    def __len__(self) -> int:
        raise NotImplementedError

    def draw(self, random_calls: RandomCalls, index: int | None = None, step: int | None = None) -> InstructionItem:
        """
        Args:
            random_calls ([`RandomCalls`]): Decides everything.
            index (`int`, *optional*): The image, of the only data set; drawn by default.
            step (`int`, *optional*): With `index`, which image comes after one that gives nothing: that many later,
                or by default the first of all, as in GSVA.
        """
        for _ in range(_MOST_DRAWS):
            item = self._attempt(random_calls, index)
            if isinstance(item, InstructionItem):
                return item
            self.skipped.add(item)
            if index is not None:
                index = (index + step) % len(self) if step else 0
        raise DataFileError(
            f"{_MOST_DRAWS} draws in a row gave nothing to ask for. The last one: {item}. Leave the data set out, or "
            "check that its files belong together."
        )

    def _attempt(self, random_calls: RandomCalls, index: int | None) -> InstructionItem | str:
        """An item, or why the originals draw again."""
        raise NotImplementedError


class _SemanticGroup(_Group):
    """Data sets whose targets have names: classes of label maps, objects and parts."""

    def __init__(self, data_sets: list[tuple[str, TargetImages]], classes_per_sample: int, wording: Wording):
        self.data_sets, self.count, self.wording = data_sets, classes_per_sample, wording
        self.skipped = Skipped()

    def __len__(self) -> int:
        return sum(len(data_set) for _, data_set in self.data_sets)

    def _attempt(self, random_calls: RandomCalls, index: int | None) -> InstructionItem | str:
        name, data_set = self._drawn_data_set(random_calls, index)
        index = random_calls.index(len(data_set)) if index is None else index
        image = data_set[index]
        if not image.targets:
            return f"{name}, image without a target"
        targets = _drawn(image.targets, self.count, random_calls)
        names = [_drawn_wording(target, random_calls) for target in targets]
        masks: list[np.ndarray] | None = None
        reason = ""
        try:
            masks = [target.mask() for target in targets]
        except UndrawableMaskError:
            reason = f"{name}, annotation that cannot be drawn"
        # the originals draw the wording first
        conversations, rejected = self._converse(names, masks, f"{name}, {image.path}", random_calls)
        if masks is None or all(rejected):
            return reason or f"{name}, image whose expressions have empty masks"
        loaded = _loaded(image, name)
        for mask in masks:
            check_size(mask.shape, loaded, f"{name}: a mask of image {index}", image.path)
        slots = [len(masks)] if self.wording.together else [1] * len(masks)
        stacked = self._stored(np.stack(masks))
        return InstructionItem(loaded, image.path, name, conversations, names, stacked, rejected, slots)

    def _drawn_data_set(self, random_calls: RandomCalls, index: int | None) -> tuple[str, TargetImages]:
        # with no_sampling GSVA does not draw here
        return self.data_sets[0 if index is not None else random_calls.index(len(self.data_sets))]

    def _converse(
        self, names: list[str], masks: list[np.ndarray] | None, what: str, random_calls: RandomCalls
    ) -> tuple[list[list[str]], list[bool]]:
        """Conversations about what is called so, and which slots are rejected."""
        rejected = [False] * len(names)
        texts = [checked_text(name, what, may_be_empty=not self.wording.together) for name in names]
        if self.wording.together:
            return [ask_for_several(texts, rejected, ",", random_calls)], rejected
        return [ask_for_one(text, random_calls) for text in texts], rejected

    def _stored(self, masks: np.ndarray) -> np.ndarray:
        return masks


class _ReferringGroup(_SemanticGroup):
    """Data sets whose targets are expressions; their masks may be empty."""

    def _drawn_data_set(self, random_calls: RandomCalls, index: int | None) -> tuple[str, TargetImages]:
        return self.data_sets[random_calls.index(len(self.data_sets))]

    def _converse(
        self, names: list[str], masks: list[np.ndarray] | None, what: str, random_calls: RandomCalls
    ) -> tuple[list[list[str]], list[bool]]:
        texts = [checked_text(name.strip(), what, may_be_empty=not self.wording.together) for name in names]
        empty = [masks is not None and not mask.any() for mask in masks or names]
        if not self.wording.together:
            # LISA asks for what is not there, too, and learns an empty mask
            return [ask_for_one(text, random_calls) for text in texts], [False] * len(texts)
        # dots are taken off both ends, and a space before them stays
        texts = [text.strip(".") for text in texts]
        return [ask_for_several(texts, empty, ", ", random_calls, self.wording.fixed)], empty

    def _stored(self, masks: np.ndarray) -> np.ndarray:
        # GSVA alone turns the numbers of overlapping parts into yes and no
        return masks.astype(bool) if self.wording.rejects else masks


class _ConversationGroup(_Group):
    """Visual conversations; every one can be used."""

    def __init__(self, data_set: LlavaInstruct):
        self.data_set, self.skipped = data_set, Skipped()

    def __len__(self) -> int:
        return len(self.data_set)

    def _attempt(self, random_calls: RandomCalls, index: int | None) -> InstructionItem:
        index = random_calls.index(len(self.data_set)) if index is None else index
        conversation = self.data_set[index]
        loaded = load_image(conversation.path, f"{self.data_set.file}, entry {index + 1}")
        masks = np.zeros((0, loaded.height, loaded.width), dtype=bool)
        return InstructionItem(
            loaded, conversation.path, self.data_set.name, [conversation.messages], [], masks, [], [0]
        )


class _ReasoningGroup(_Group):
    """ReasonSeg: one conversation per query in both systems, all with the mask of the image."""

    def __init__(
        self, data_set: ReasonSeg | HubReasonSeg, name: str, queries: int, explanatory: float, wording: Wording
    ):
        self.data_set, self.name, self.count = data_set, name, queries
        self.explanatory, self.wording, self.skipped = explanatory, wording, Skipped()

    def __len__(self) -> int:
        return len(self.data_set)

    def _attempt(self, random_calls: RandomCalls, index: int | None) -> InstructionItem:
        index = random_calls.index(len(self.data_set)) if index is None else index
        image = self.data_set[index]
        queries = _drawn(image.annotation.texts, self.count, random_calls)
        case = None if image.explanation is None else self._case(random_calls)
        ask = partial(
            ask_by_reasoning,
            is_sentence=image.annotation.is_sentence,
            case=case,
            explanation=image.explanation or "",
            wording=self.wording,
            random_calls=random_calls,
        )
        conversations = [ask(query) for query in queries]
        loaded = _loaded(image, self.name)
        count = 0 if case == 2 else len(queries)
        # ignored regions count as background in training
        target = image.annotation.paint((loaded.height, loaded.width)) == FOREGROUND
        masks = np.repeat(target[None], count, axis=0)
        slots = [min(count, 1)] * len(queries)
        return InstructionItem(loaded, image.path, self.name, conversations, queries, masks, [False] * count, slots)

    def _case(self, random_calls: RandomCalls) -> int:
        """One case for all queries of the image."""
        return 2 if random_calls.fraction() < self.explanatory else random_calls.index(2)


def _drawn(things: Sequence[Thing], count: int, random_calls: RandomCalls) -> list[Thing]:
    """All things where there are fewer than `count`, else so many, in the order in which they are drawn."""
    if len(things) < count:
        return list(things)
    return [things[index] for index in random_calls.subset(len(things), count)]


def _loaded(image: Any, name: str) -> Image.Image:
    return image.load_image() if isinstance(image, (HubImage, HubQuery)) else load_image(image.path, name)


def _drawn_wording(target: Target, random_calls: RandomCalls) -> str:
    if len(target.wordings) == 1:
        return target.wordings[0]
    first, second = target.wordings
    return first if random_calls.fraction() < 0.5 else second


def _folder_and_splits(reasoning: str) -> tuple[str, str]:
    folder, separator, splits = reasoning.partition("|")
    if not separator or not folder or not splits or "|" in splits:
        raise ValueError(f"The reasoning data is {reasoning!r}; write it as ReasonSeg|train or ReasonSeg|train_val.")
    return folder, splits


__all__ = [
    "GROUPS",
    "REFERRING_DATA",
    "REFERRING_READERS",
    "SEMANTIC_DATA",
    "SEMANTIC_READERS",
    "InstructionItem",
    "LisaMixture",
    "Reader",
]
