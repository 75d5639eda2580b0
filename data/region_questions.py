"""Turns rows of region data into conversations and the visual prompts to draw, with a seeded generator."""

import re

from ..processing.chat import IMAGE_TOKEN
from ..processing.visual_prompt_sampling import PromptRandom, PromptStyle, sample_paired_styles, sample_styles
from .data_files import DataFileError
from .region_conversation import SHAPES_OF, PromptedRegion, RegionConversation, multiple_choice
from .region_data import CUSTOM, GPT4V, PLAIN, RegionSample
from .region_wording import (
    ABBREVIATIONS,
    CAPTION_HINTS,
    CAPTION_REQUESTS,
    DESCRIBE_OBJECT,
    DESCRIBE_REGION,
    EXEMPLARY_OBJECT,
    LETTERS,
    RELATION,
    SHORT_PHRASE,
)
from .vcr_questions import vcr_answer_test, vcr_conversation, vcr_rationale_test


def build_conversation(
    sample: RegionSample, rng: PromptRandom, task: str | None = None, question_field: str = "general_question"
) -> RegionConversation:
    """
    Args:
        sample ([`RegionSample`]): One row.
        rng ([`PromptRandom`]): Source of all choices; those of one `from_seed` are the original's after seeding.
        task (`str`, *optional*): `vcr_qa` or `vcr_qar` for the tests of VCR instead of its training conversations.
        question_field (`str`): Which question of a PointQA-LookTwice row is asked.

    Returns:
        [`RegionConversation`]: Its visual prompts must be sampled with the same generator, see [`sample_prompts`].

    Raises:
        DataFileError: If the row does not hold what its data set needs.
    """
    vcr_builders = {None: vcr_conversation, "vcr_qa": vcr_answer_test, "vcr_qar": vcr_rationale_test}
    if task not in vcr_builders or (task is not None and sample.dataset != "vcr"):
        raise DataFileError(f"Task {task!r} cannot be asked about {sample.dataset}; vcr has vcr_qa and vcr_qar.")
    if sample.dataset == PLAIN:
        return RegionConversation(_turns(sample))
    if sample.dataset == "vcr":
        return vcr_builders[task](sample, rng)
    if sample.dataset == "pointQA_twice":
        return point_question(sample, question_field)
    builders = {
        "refcocog": refcocog_question,
        "vg_rel": relation_question,
        "flickr30k": caption_question,
        "v7w": choice_question,
        CUSTOM: custom_conversation,
    }
    return builders[sample.dataset](sample, rng)


def refcocog_question(sample: RegionSample, rng: PromptRandom) -> RegionConversation:
    """A short phrase for one object, or GPT-4V's conversation about it."""
    shapes, drawing_style = SHAPES_OF["refcocog"]
    if not sample.boxes:
        raise DataFileError(f"Row {sample.id!r} has no box; a description needs one.")
    styles = sample_paired_styles(rng, len(sample.boxes), shapes)
    if sample.variant == GPT4V:
        turns = [tuple(text.replace("<bbox>", styles[0].describe()) for text in turn) for turn in _turns(sample)]
        turns[0] = (f"{IMAGE_TOKEN}\n{turns[0][0]}", turns[0][1])
    else:
        # No image token: the original's sample reaches the model without its image.
        question = rng.python.choice(DESCRIBE_REGION) if rng.python.random() < 0.25 else DESCRIBE_OBJECT
        turns = [(question + SHORT_PHRASE, sample.fields["answer"])]
    return RegionConversation(turns, _prompted_regions(sample, styles), drawing_style)


def relation_question(sample: RegionSample, rng: PromptRandom) -> RegionConversation:
    """How two objects relate, as a triplet or as GPT-4V's conversation."""
    shapes, drawing_style = SHAPES_OF["vg_rel"]
    if len(sample.boxes) < 2:
        raise DataFileError(f"Row {sample.id!r} has {len(sample.boxes)} boxes; a relation needs two.")
    styles = sample_paired_styles(rng, len(sample.boxes), shapes, tell_apart=True)
    if sample.variant == GPT4V:
        turns = _turns(sample)
        for number, style in enumerate(styles):
            phrase = style.describe(article=rng.python.random() < 0.5)
            turns = [tuple(text.replace(f"<bbox{number}>", phrase) for text in turn) for turn in turns]
    else:
        # No image token here either.
        question = RELATION.format(subject=styles[0].describe(), object=styles[1].describe())
        turns = [(question, sample.fields["answer"])]
    return RegionConversation(turns, _prompted_regions(sample, styles), drawing_style)


def caption_question(sample: RegionSample, rng: PromptRandom) -> RegionConversation:
    """A caption of Flickr30k Entities, with or without words for visual prompts; a phrase's boxes look the same."""
    shapes, drawing_style = SHAPES_OF["flickr30k"]
    boxes = sample.fields["bbox"]
    mode = rng.python.choice(["semantic", "semantic_visual_prompt"])
    question = rng.python.choice(CAPTION_REQUESTS[mode])
    styles = sample_styles(rng, len(boxes), shapes)
    if rng.python.random() < 0.5:
        question += rng.python.choice(CAPTION_HINTS)
        nouns = [f" {style.color_name or ''} {style.shape}".replace("  ", " ") for style in styles]
        question += ",".join(nouns[:-1]) + (", and" if len(nouns) > 1 else "") + "".join(nouns[-1:]) + "."

    def prompt_in_words(match: re.Match) -> str:
        number = int(match.group(1))
        if number >= len(styles):
            raise DataFileError(f"Row {sample.id!r} names <bbox{number}> but has boxes for {len(boxes)} phrases.")
        # A colour without a name gives no words: in the original the branch that would write them is never reached.
        named = mode == "semantic_visual_prompt" and styles[number].color_name is not None
        return f" {styles[number].describe()}" if named else ""

    caption = as_sentence(re.sub(r" <bbox(\d+)>", prompt_in_words, sample.fields["grounding"]))
    regions = [PromptedRegion(styles[number], box) for number, group in enumerate(boxes) for box in group]
    return RegionConversation([(f"{IMAGE_TOKEN}\n{question}", caption)], regions, drawing_style)


def choice_question(sample: RegionSample, rng: PromptRandom) -> RegionConversation:
    """Visual7W: which of four boxes is meant."""
    shapes, drawing_style = SHAPES_OF["v7w"]
    fields = sample.fields
    if fields["answer"] not in sample.boxes:
        raise DataFileError(f"Row {sample.id!r}: the answer {fields['answer']} is not one of its boxes.")
    styles = sample_styles(rng, len(sample.boxes), shapes)
    choices = [f"The object {style.describe(article=rng.python.random() < 0.5)}" for style in styles]
    question = multiple_choice(fields["question"], choices)
    letter = LETTERS[sample.boxes.index(fields["answer"])]
    regions = _prompted_regions(sample, styles)
    return RegionConversation([(f"{IMAGE_TOKEN}\n{question}", letter)], regions, drawing_style)


def point_question(sample: RegionSample, question_field: str = "general_question") -> RegionConversation:
    """PointQA-LookTwice: a question about all things like the one in the red rectangle."""
    _, drawing_style = SHAPES_OF["pointQA_twice"]
    if question_field not in sample.fields:
        known = sorted(name for name in sample.fields if "question" in name)
        raise DataFileError(f"Row {sample.id!r} has no {question_field!r}; it has {', '.join(known) or 'none'}.")
    question = f"{IMAGE_TOKEN}\n{sample.fields[question_field]}{EXEMPLARY_OBJECT}"
    regions = _prompted_regions(sample, [PromptStyle("rectangle", "red")] * len(sample.boxes))
    return RegionConversation([(question, str(sample.fields["answer"]))], regions, drawing_style)


def custom_conversation(sample: RegionSample, rng: PromptRandom) -> RegionConversation:
    """Custom regions: `<bboxN>` (or `<bbox>`, where there is one) in any message becomes the phrase."""
    shapes, drawing_style = SHAPES_OF[CUSTOM]
    styles = sample_styles(rng, len(sample.boxes), shapes)

    def phrase(match: re.Match) -> str:
        number = int(match.group(1) or 0)
        if number >= len(styles):
            raise DataFileError(f"Row {sample.id!r} names {match.group(0)} but has {len(sample.boxes)} boxes.")
        return styles[number].describe()

    turns = [tuple(re.sub(r"<bbox(\d*)>", phrase, text) for text in turn) for turn in _turns(sample)]
    return RegionConversation(turns, _prompted_regions(sample, styles), drawing_style)


def as_sentence(caption: str) -> str:
    """With a capital, no space before commas, and a period; abbreviations stay as they are."""
    for number, abbreviation in enumerate(ABBREVIATIONS):
        caption = caption.replace(abbreviation, f"__ABBREVIATION{number}__")
    caption = caption.strip()
    caption = caption[:1].upper() + caption[1:]
    if not caption.endswith((".", "!", "?")):
        caption += "."
    caption = re.sub(r"\s*,\s*", ", ", caption)
    for number, abbreviation in enumerate(ABBREVIATIONS):
        caption = caption.replace(f"__ABBREVIATION{number}__", abbreviation)
    return caption


def _prompted_regions(sample: RegionSample, styles: list[PromptStyle]) -> list[PromptedRegion]:
    return [
        PromptedRegion(style, box, segmentation)
        for style, box, segmentation in zip(styles, sample.boxes, sample.segmentations, strict=True)
    ]


def _turns(sample: RegionSample) -> list[tuple[str, str]]:
    """Pairs of message and answer; a first line of the model's own is left out, as LLaVA does."""
    lines = sample.fields["conversations"]
    if lines and lines[0]["from"] != "human":
        lines = lines[1:]
    lines = lines[: len(lines) // 2 * 2]  # a last message without an answer teaches nothing
    roles = [line["from"] for line in lines]
    if not lines or roles != ["human", "gpt"] * (len(lines) // 2):
        raise DataFileError(f"Row {sample.id!r}: its messages are from {roles}; they must alternate human and gpt.")
    texts = [line["value"] for line in lines]
    return list(zip(texts[::2], texts[1::2], strict=True))


__all__ = ["as_sentence", "build_conversation"]
