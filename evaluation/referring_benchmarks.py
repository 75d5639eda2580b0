"""What the benchmarks of LISA, GSVA and Sa2VA ask about each image, by data set, protocol and system.

| protocol | question                                | answer    | targets and counting                            |
|----------|-----------------------------------------|-----------|-------------------------------------------------|
| `paper`  | LISA: one per expression; GSVA: one per | given     | as the system's own evaluation does, slips      |
|          | image with all expressions              |           | included                                        |
|          | Sa2VA: one per expression               | generated | all masks of an answer are one                  |
| `fixed`  | the same                                | given     | the slips mended, see [`Rules.mends`]           |
| `free`   | one per expression                      | generated | mended; a missing slot is wrong, a rejection    |
|          |                                         |           | leaves no mask                                  |

Models that write coordinates are asked for one expression at a time, and write their answer under every protocol:

| protocol | answers are read                        | targets and counting                                      |
|----------|-----------------------------------------|-----------------------------------------------------------|
| `paper`  | as the published code does              | as VisionReasoner's or StAR's evaluation, slips included  |
| `fixed`  | as far as they can be                   | the slips mended, see [`Rules.mends`]                     |
| `free`   | as far as they can be                   | the same                                                  |

The mask of an expression is the union of the objects of its answer; without any there is no mask.

Under `free` a model with `[REJ]`, too, is asked about one expression at a time, though it was trained to answer
several: in a common answer the n-th slot could only be taken for the n-th expression, and one slot too few would move
all others. Everything is asked in the words of the evaluations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.data_files import DataFileError
from ..data.instruction_wording import answer_part
from ..data.mask_targets import load_image
from ..data.reason_seg import VALIDATION_ANSWERS, ReasonSegValidation, ValidationItem
from ..data.referring_expressions import REFERRING_SETS, ReferringExpressions, ReferringItem, refer_seg_folder
from ..data.referring_questions import GSVA_ANSWER, GSVA_QUESTION, LISA_ANSWER, LISA_QUESTION, validation_sample
from .metrics import COUNTING_RULES


REASON_SEG = "reasonseg"
DATA_SETS = (REASON_SEG, *REFERRING_SETS)
PROTOCOLS = ("paper", "free", "fixed")
_IMAGE_LINE = "<image>\n"
# What GSVA alone has an evaluation of.
_WITHOUT_ABSENT_TARGETS = tuple(name for name in DATA_SETS if name not in COUNTING_RULES)


@dataclass(frozen=True)
class Original:
    """
    An evaluation of referring and reasoning segmentation that is followed.

    Args:
        title (`str`): Whose it is.
        kind (`str`, *optional*): What models of its system are called, see `kind_of`.
        data_sets (`tuple[str, ...]`): What it evaluates.
        question (`str`): The message for one expression, `{class_name}`.
        answer (`str`, *optional*): The right answer where it is the same for every expression.
        has_slips (`bool`): Whether it counts anything as it should not.
        joins_masks (`bool`): Whether its model writes the answer, of which all masks are one.
        writes_coordinates (`bool`): Whether its models write coordinates, whatever the protocol.
    """

    title: str
    kind: str | None = None
    data_sets: tuple[str, ...] = DATA_SETS
    question: str = GSVA_QUESTION
    answer: str | None = None
    has_slips: bool = True
    joins_masks: bool = False
    writes_coordinates: bool = False


ORIGINALS: dict[str, Original] = {
    "lisa": Original("LISA", "Lisa", _WITHOUT_ABSENT_TARGETS, LISA_QUESTION, LISA_ANSWER),
    "gsva": Original("GSVA", "Gsva"),
    # Its processor makes of the image token what its training did.
    "sa2va": Original(
        "Sa2VA",
        "Sa2Va",
        ("refcoco", "refcoco+", "refcocog"),
        "<image>\n Please segment {class_name} in this image.",
        "Sure, [SEG].",
        has_slips=False,
        joins_masks=True,
    ),
    "vision_reasoner": Original("VisionReasoner", data_sets=_WITHOUT_ABSENT_TARGETS, writes_coordinates=True),
    "star": Original("StAR", data_sets=_WITHOUT_ABSENT_TARGETS, writes_coordinates=True),
}


@dataclass(frozen=True)
class Rules:
    """
    How a data set is asked and counted.

    Args:
        data_set (`str`): One of `DATA_SETS`.
        protocol (`str`): One of `PROTOCOLS`.
        original (`str`): Of `ORIGINALS`: whose questions and counting are followed.
    """

    data_set: str
    protocol: str
    original: str

    @property
    def followed(self) -> Original:
        """The evaluation of `original`."""
        return ORIGINALS[self.original]

    @property
    def as_original(self) -> bool:
        """Its slips are followed."""
        return self.protocol == "paper" and self.followed.has_slips

    @property
    def joins_masks(self) -> bool:
        """All masks of an answer are one, as Sa2VA's evaluation counts what it wrote."""
        return self.protocol == "paper" and self.followed.joins_masks

    @property
    def read_as(self) -> str:
        """Whose reading of the data set is followed."""
        return "gsva" if self.original == "gsva" else "lisa"

    @property
    def writes_coordinates(self) -> bool:
        """The model writes its answers whatever the protocol, and their objects are one mask."""
        return self.followed.writes_coordinates

    @property
    def gives_answers(self) -> bool:
        """The right answer is given to the model, which otherwise writes its own."""
        return not (self.protocol == "free" or self.writes_coordinates or self.joins_masks)

    @property
    def counting(self) -> str | None:
        """A rule of `COUNTING_RULES` beside that of the data set."""
        return self.original if self.writes_coordinates and self.as_original else None

    @property
    def has_absent_targets(self) -> bool:
        """gRefCOCO and Ref-ZOM, which GSVA counts by `eval_gres`."""
        return self.data_set in COUNTING_RULES

    @property
    def ignored_is_target(self) -> bool:
        """All but LISA turn ReasonSeg's maps into yes and no, so that regions to ignore must be drawn."""
        return self.data_set == REASON_SEG and self.original != "lisa" and self.as_original

    @property
    def draws_all_slots(self) -> bool:
        """GSVA's `reeval`: masks come from a second pass in which every `[REJ]` reads `[SEG]`."""
        return self.original == "gsva" and self.has_absent_targets and self.protocol != "free"

    @property
    def pairs_in_order(self) -> bool:
        """GSVA's `validate` has masks for `[SEG]` alone, and pairs them with the first targets of the image."""
        is_referring = self.data_set != REASON_SEG and not self.has_absent_targets
        return is_referring and self.original == "gsva" and self.as_original

    def mends(self) -> list[str]:
        """What is counted otherwise than by the system's own evaluation; empty under `paper`."""
        if self.protocol == "paper":
            return []
        mended = []
        title = self.followed.title
        if self.followed.joins_masks:
            mended.append(f"an expression is scored by the first mask of its answer; {title} joins all of them")
        if self.writes_coordinates:
            mended.append("answers are read as far as they can be; published code drops what it cannot read whole")
        if self.data_set == REASON_SEG:
            if self.followed.has_slips and self.original != "lisa":
                mended.append(
                    f"regions that ReasonSeg says to ignore count for nothing; {title} counts them as targets"
                )
            return mended
        if self.writes_coordinates:
            return mended
        if self.original == "lisa":
            mended.append("where parts of a target overlap a pixel is a target; LISA adds the parts up, and 2 is none")
        elif self.original == "gsva":
            if not self.has_absent_targets:
                mended.append(
                    "every expression is scored by its own mask; GSVA drops those of absent targets and pairs the "
                    "others with the wrong expressions"
                )
            mended.append("a space stands between the names and `in this image?`, which GSVA leaves out")
            mended.append("a name that holds the letters SEG stays as it is where its target is absent")
        mended.append("sentences without a word are left out, and so are outlines of fewer than three whole corners")
        mended.append("targets that are given as run lengths are read wherever they occur")
        return mended


@dataclass(frozen=True)
class Conversation:
    """
    Args:
        question (`str`): The user's message, without the token of the image.
        answer (`str`, *optional*): The right answer, where it is given.
        expressions (`tuple[int, ...]`): The expressions that its slots belong to, in their order.
    """

    question: str
    answer: str | None
    expressions: tuple[int, ...]


@dataclass(frozen=True)
class AskedImage:
    """
    An image with everything that is asked about it.

    Args:
        name (`str`): What the data set calls it; also the name of a saved prediction.
        path (`Path`): The file.
        texts (`list[str]`): What is asked for, as the data set has it.
        group (`str`, *optional*): What it is reported in beside all: `short` or `long`.
        load (`Callable`): Reads it, upright and in RGB; raises [`DataFileError`].
        paint (`Callable`): Gives the targets `(expressions, height, width)` uint8 for a (height, width): 0, 1, 255
            for what does not count and, where LISA is followed, 2 for overlapping parts.
        ask (`Callable`): Gives the conversations for the targets.
    """

    name: str
    path: Path
    texts: list[str]
    group: str | None
    load: Callable[[], Image.Image]
    paint: Callable[[tuple[int, int]], np.ndarray]
    ask: Callable[[np.ndarray], list[Conversation]]

    @property
    def prediction_names(self) -> list[str]:
        """Names of files with saved predictions, without their endings: one per expression."""
        if self.group is not None:
            return [self.name]
        return [f"{self.name}_{number}" for number in range(len(self.texts))]


class AskedImages(Sequence):
    """
    The images of a split in the order of the originals.

    Args:
        root (`str` or `Path`): The data root, or the folder `refer_seg` (`reason_seg`) in it.
        split (`str`): Part of the data set.
        rules ([`Rules`]): How it is asked.
        split_by (`str`, *optional*): Who made the splits of a referring data set; the originals' choice by default.

    Raises:
        DataFileError: If the data set is missing or cannot be used.
        ValueError: If the original has no such evaluation.
    """

    def __init__(self, root: str | Path, split: str, rules: Rules, split_by: str | None = None):
        self.rules = rules
        if rules.data_set == REASON_SEG:
            self._items: Any = ReasonSegValidation(_reason_seg_root(root), split)
            self._read: Callable[[Any], AskedImage] = self._reasoning
            return
        self._items = ReferringExpressions(
            root,
            rules.data_set,
            split,
            rules.read_as,
            purpose="validation",
            split_by=split_by,
            as_original=rules.as_original and not rules.writes_coordinates,
        )
        if not len(self._items):
            raise DataFileError(f"{self._items.references_file} has no expression in the split {split!r}.")
        self._read = self._referring

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> AskedImage:
        return self._read(self._items[index])

    def _reasoning(self, item: ValidationItem) -> AskedImage:
        def ask(targets: np.ndarray) -> list[Conversation]:
            if self.rules.writes_coordinates:
                return [Conversation(item.text, None, (0,))]
            question = item.question().removeprefix(_IMAGE_LINE)
            answer = None if self.rules.protocol == "free" else VALIDATION_ANSWERS[self.rules.read_as]
            return [Conversation(question, answer, (0,))]

        def paint(size: tuple[int, int]) -> np.ndarray:
            return item.target(size, self.rules.ignored_is_target)[None]

        return AskedImage(
            item.path.stem, item.path, [item.text], item.length, lambda: load_image(item.path), paint, ask
        )

    def _referring(self, item: ReferringItem) -> AskedImage:
        return AskedImage(
            str(item.image_id),
            item.path,
            item.sentences,
            None,
            item.load_image,
            lambda size: item.masks(),
            lambda targets: ask_about(item, targets, self.rules),
        )


@dataclass(frozen=True)
class DataSource:
    """
    Where a data set lies; it is opened once it is known by whose rules.

    Args:
        root (`Path`): The data root, as [`AskedImages`] takes it.
        data_set (`str`): One of `DATA_SETS`.
        split (`str`): Part of it.

    Raises:
        DataFileError: If there is no such folder.
    """

    root: Path
    data_set: str
    split: str

    def __post_init__(self) -> None:
        if not Path(self.root).is_dir():
            raise DataFileError(f"The data root {self.root} does not exist; give the folder that holds the data sets.")
        folder = self._folder()
        if not folder.is_dir():
            raise DataFileError(f"{folder} does not exist; --dataset {self.data_set} reads it.")

    def _folder(self) -> Path:
        """Where the data set lies; what is missing is said before a model is loaded."""
        if self.data_set == REASON_SEG:
            return _reason_seg_root(self.root) / "reason_seg" / "ReasonSeg" / self.split
        return (refer_seg_folder(self.root) / REFERRING_SETS[self.data_set].references).parent

    def open(self, rules: Rules, split_by: str | None = None) -> AskedImages:
        """The images of the split."""
        return AskedImages(self.root, self.split, rules, split_by)


def _reason_seg_root(root: str | Path) -> Path:
    root = Path(root)
    is_below = root.name == "reason_seg" and not (root / "reason_seg").is_dir()
    return root.parent if is_below else root


def ask_about(item: ReferringItem, targets: np.ndarray, rules: Rules) -> list[Conversation]:
    """The conversations about an image with referring expressions; GSVA's answers depend on the targets."""
    every = range(len(item.targets))
    if rules.writes_coordinates:
        return [Conversation(item.sentences[index], None, (index,)) for index in every]
    if rules.as_original:
        sample = validation_sample(item)
        slots = [(index,) for index in every] if rules.original == "lisa" else [tuple(every)]
        return [Conversation(*one) for one in zip(sample.questions, sample.answers, slots, strict=True)]
    names = [text.strip().lower() for text in item.sentences]
    if rules.original == "gsva":
        names = [name.strip(".") for name in names]
    one, answer = rules.followed.question, rules.followed.answer
    if not rules.gives_answers:
        return [Conversation(one.format(class_name=names[index]), None, (index,)) for index in every]
    if answer is not None:
        return [Conversation(one.format(class_name=names[index]), answer, (index,)) for index in every]
    parts = [answer_part(GSVA_ANSWER, name, not mask.any(), True) for name, mask in zip(names, targets, strict=True)]
    return [Conversation(one.format(class_name=", ".join(names)), f"Sure,{', '.join(parts)}.", tuple(every))]


def padded_counts(images: int, processes: int) -> np.ndarray:
    """
    How often the originals count each image when they run in several processes: their sampler gives every process as
    many images, and begins again at the first ones until that comes out even.

    Args:
        images (`int`): How many there are.
        processes (`int`): Those of the run to compare with, at least 1.

    Returns:
        `np.ndarray`: `(images,)` whole numbers of at least 1.
    """
    total = -(-images // processes) * processes
    return np.bincount(np.arange(total) % images, minlength=images)


__all__ = [
    "DATA_SETS",
    "ORIGINALS",
    "PROTOCOLS",
    "REASON_SEG",
    "AskedImage",
    "AskedImages",
    "Conversation",
    "DataSource",
    "Original",
    "Rules",
    "ask_about",
    "padded_counts",
]
