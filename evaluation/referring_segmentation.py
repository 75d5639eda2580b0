"""ReasonSeg, RefCOCO and its kin, gRefCOCO and Ref-ZOM: a model answers or masks are given, and both are scored.

The expressions of an image share its encoding. Every finished image is a line of `results.jsonl`, from which a run
that was stopped resumes; the numbers are made of these lines alone, so they do not depend on how often it was stopped
or on how many processes shared the work.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.table import Table

from ..data.reading_ahead import read_ahead
from ..modeling.outputs import answer_length
from ..processing.segments import mask_to_rle
from .bootstrap import bootstrap_intervals
from .image_results import NO_SLOT, REJECTED, SEGMENTED, ExpressionResult, ImageResult, ImageResults
from .metrics import numbers_of
from .published_results import METRICS, card_results, write_published_results
from .reasoning_segmentation import LONGEST_ANSWER
from .referring_benchmarks import (
    ORIGINALS,
    REASON_SEG,
    AskedImage,
    AskedImages,
    Conversation,
    DataSource,
    Rules,
    padded_counts,
)
from .referring_protocols import ReferringMetrics
from .registry import EvaluationOptions, Outcome, UnknownBenchmarkError
from .report import Case, select_cases
from .saved_predictions import SavedPredictions


# With this threshold `logit > threshold` is `logit >= 0`: below the smallest number that float32 keeps exactly.
_JUST_BELOW_ZERO = -(2.0**-126)
_CASES_PER_GROUP = 4
# Of the models of which there is an evaluation.
_ORIGINAL_OF_KIND = {known.kind: name for name, known in ORIGINALS.items() if known.kind is not None}
_ALL = "all"


@dataclass(frozen=True)
class Answer:
    """
    The answer about one expression.

    Args:
        mask (`np.ndarray`, *optional*): `(height, width)` bool; `None` where there is none.
        decision (`str`): `segmented`, `rejected` or `no slot`.
    """

    mask: np.ndarray | None
    decision: str


@dataclass
class LoadedImage:
    """
    Args:
        number (`int`): In the data set.
        asked ([`AskedImage`]): What is asked.
        image (`PIL.Image.Image`): Upright, in RGB.
        targets (`np.ndarray`): `(expressions, height, width)` uint8.
        conversations (`list[Conversation]`): How it is asked.
    """

    number: int
    asked: AskedImage
    image: Any
    targets: np.ndarray
    conversations: list[Conversation]

    @classmethod
    def load(cls, number: int, asked: AskedImage) -> "LoadedImage":
        """Read the image, paint the targets and word the questions."""
        image = asked.load()
        targets = asked.paint((image.height, image.width))
        return cls(number, asked, image, targets, asked.ask(targets))


@dataclass
class ReferringResult:
    """
    Args:
        protocol (`str`): How answers were made and counted.
        overall (`dict`): `giou`, `ciou`, `n_acc`, `t_acc`, `pr@0.5` ... in [0, 1] and the counts behind them; beside
            each number its interval of 95 %, `[low, high]`, under its name and `_interval`.
        by_type (`dict[str, dict]`): The same for each group of the data set.
        slots_missing (`int`): Expressions for which the model wrote no slot; each counts as wrong.
        mends (`list[str]`): What is counted otherwise than by the system's own evaluation.
        cases (`list[Case]`): What a contact sheet shows.
        num_cases (`int`): Of how many these are the best, the median and the worst.
    """

    protocol: str
    overall: dict[str, Any]
    by_type: dict[str, dict[str, Any]]
    slots_missing: int
    mends: list[str]
    cases: list[Case] = field(default_factory=list, repr=False)
    num_cases: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images, as plain JSON values."""
        return {
            "protocol": self.protocol,
            "overall": self.overall,
            "by_type": self.by_type,
            "slots_missing": self.slots_missing,
            "mends": self.mends,
        }

    @property
    def groups(self) -> dict[str, dict[str, Any]]:
        """All numbers, of `all` first."""
        return {_ALL: self.overall, **self.by_type}


# ---- answers --------------------------------------------------------------------------------------------------------


def answer_images(
    model,
    processor,
    batch: Sequence[LoadedImage],
    rules: Rules,
    batch_size: int,
    max_new_tokens: int | None = None,
    prepared: Any = None,
) -> list[list[Answer]]:
    """
    Asks a model about some images; each is encoded once, by each of its encoders.

    Args:
        model: Has `generate_with_masks`, `forward` and `encode_image`.
        processor: Its processor.
        batch (`Sequence[LoadedImage]`): The images.
        rules ([`Rules`]): Whether answers are given, and how masks are drawn then.
        batch_size (`int`): Conversations per step.
        max_new_tokens (`int`, *optional*):
            Length of free answers; by default what the model's generation configuration says, else 128.
        prepared (*optional*): What `prepare_images` returned, if it was called before.

    Returns:
        `list[list[Answer]]`: Per image the answers about its expressions.
    """
    rows, length = _rows_of(batch), answer_length(model, max_new_tokens, LONGEST_ANSWER)
    answers: list[list[Answer]] = [[Answer(None, NO_SLOT)] * len(loaded.asked.texts) for loaded in batch]
    cache = None
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        is_prepared = prepared is not None and start == 0
        inputs = (prepared if is_prepared else _prepare(processor, batch, chunk, rules)).to(model.device)
        if len(rows) > batch_size and cache is None:
            cache = model.encode_image(**inputs)
        shared = {} if cache is None else {"image_cache": cache}
        found = _answer_rows(model, processor, inputs, rules, length, shared)
        for (index, conversation), slots in zip(chunk, found, strict=True):
            # Should a question itself hold a slot, the answer's are the last.
            if rules.gives_answers:
                slots = slots[len(slots) - len(conversation.expressions) :]
            for expression, answer in zip(conversation.expressions, slots, strict=False):
                answers[index][expression] = answer
    return answers


def prepare_images(processor, batch: Sequence[LoadedImage], rules: Rules, batch_size: int) -> Any:
    """The processor's inputs for the first step of `answer_images`; can be made in another thread."""
    return _prepare(processor, batch, _rows_of(batch)[:batch_size], rules)


def _rows_of(batch: Sequence[LoadedImage]) -> list[tuple[int, Conversation]]:
    """All conversations, each with the index of its image."""
    return [(index, one) for index, loaded in enumerate(batch) for one in loaded.conversations]


def _prepare(processor, batch: Sequence[LoadedImage], rows: Sequence[tuple[int, Conversation]], rules: Rules) -> Any:
    given = {"answer": [conversation.answer for _, conversation in rows]} if rules.gives_answers else {}
    questions = [conversation.question for _, conversation in rows]
    if rules.writes_coordinates and rules.data_set != REASON_SEG:
        questions = [processor.word_expression(question) for question in questions]
    return processor(
        images=[np.asarray(loaded.image) for loaded in batch],
        text=questions,
        image_index=[index for index, _ in rows],
        return_tensors="pt",
        **given,
    )


@torch.no_grad()
def _answer_rows(model, processor, inputs, rules: Rules, max_new_tokens: int, shared: dict) -> list[list[Answer]]:
    """Per row an answer for every slot in it."""
    if not rules.gives_answers:
        # the same answers after a stop
        output = model.generate_with_masks(**inputs, **shared, max_new_tokens=max_new_tokens, do_sample=False)
        if rules.writes_coordinates:
            results = processor.post_process_segmentation(output, inputs, union=True)
            # Who names nothing says that nothing is there, which only some data sets ask about.
            nothing = [Answer(None, REJECTED)] if rules.has_absent_targets else []
            return [[Answer(one.mask, SEGMENTED) for one in result.segments] or nothing for result in results]
        results = processor.post_process_segmentation(output, inputs)
        if rules.joins_masks:
            masks = [[segment.mask for segment in result.segments] for result in results]
            return [[Answer(np.any(drawn, axis=0), SEGMENTED)] if drawn else [] for drawn in masks]
        return [
            [Answer(segment.mask, REJECTED if segment.rejected else SEGMENTED) for segment in result.segments]
            for result in results
        ]
    output = model(**inputs, **shared, **({"reeval": True} if rules.draws_all_slots else {}))
    decisions = output.rejected
    output.rejected = [torch.zeros_like(flags) for flags in decisions]  # rejected slots have masks, too
    includes_zero = ReferringMetrics(rules.data_set).rule.zero_is_foreground
    results = processor.post_process_segmentation(
        output, inputs, mask_threshold=_JUST_BELOW_ZERO if includes_zero else 0.0
    )
    return [
        [
            Answer(segment.mask, REJECTED if rejected else SEGMENTED)
            for segment, rejected in zip(result.segments, flags.tolist(), strict=True)
        ]
        for result, flags in zip(results, decisions, strict=True)
    ]


def _batches(images: AskedImages, numbers: Sequence[int], batch_size: int) -> Iterator[list[LoadedImage]]:
    """Images one after the other, as many as have `batch_size` conversations together; one may have more."""
    batch: list[LoadedImage] = []
    for loaded in read_ahead(lambda number: LoadedImage.load(number, images[number]), numbers):
        if batch and sum(len(one.conversations) for one in (*batch, loaded)) > batch_size:
            yield batch
            batch = []
        batch.append(loaded)
    if batch:
        yield batch


def predicted_answers(loaded: LoadedImage, predictions: SavedPredictions, rules: Rules) -> list[Answer]:
    """Saved predictions for the expressions of an image; where GSVA is followed it has none for absent targets."""
    answers = []
    for name, target in zip(loaded.asked.prediction_names, loaded.targets, strict=True):
        if rules.pairs_in_order and not target.any():
            answers.append(Answer(None, REJECTED))
            continue
        prediction = predictions.read(name, target.shape)
        answers.append(Answer(prediction.mask, REJECTED if prediction.rejected else SEGMENTED))
    return answers


# ---- scores ---------------------------------------------------------------------------------------------------------


def score_image(
    texts: Sequence[str], targets: np.ndarray, answers: Sequence[Answer], rules: Rules, keep_masks: bool = True
) -> list[ExpressionResult]:
    """
    Args:
        texts (`Sequence[str]`): The expressions.
        targets (`np.ndarray`): `(expressions, height, width)` uint8, see [`AskedImage`].
        answers (`Sequence[Answer]`): One per expression.
        rules ([`Rules`]): How they are counted.
        keep_masks (`bool`): Keep run lengths of the masks.

    Returns:
        `list[ExpressionResult]`: One per expression.
    """
    masks: list[np.ndarray | None] = [answer.mask for answer in answers]
    if rules.pairs_in_order:
        drawn = [mask for mask, target in zip(masks, targets, strict=True) if target.any()]
        masks = [*drawn, *[None] * (len(masks) - len(drawn))]
    results = []
    for text, target, mask, answer in zip(texts, targets, masks, answers, strict=True):
        if rules.pairs_in_order and mask is None:  # `zip` of the original ends before it: counted, by gIoU alone
            results.append(ExpressionResult(text, 0.0, 0, 0, bool(target.any()), answer.decision))
            continue
        results.append(_score(text, target, mask, answer.decision, rules, keep_masks))
    return results


def _score(
    text: str, target: np.ndarray, mask: np.ndarray | None, decision: str, rules: Rules, keep_masks: bool
) -> ExpressionResult:
    metrics = ReferringMetrics(rules.data_set, rules.as_original, rules.counting)
    metrics.zero_rejected = not rules.gives_answers
    is_absent = not (target == 1).any()
    # GSVA's `validate` does not look at decisions. What is rightly rejected has nothing drawn.
    rightly_rejected = is_absent and decision == REJECTED and not rules.as_original
    if mask is None or (rightly_rejected and not metrics.rule.uses_rejection):
        scored = np.zeros(target.shape, dtype=bool)
    else:
        scored = mask
    rejected = decision == REJECTED or (decision == NO_SLOT and not is_absent)
    (iou,) = metrics.update(scored[None], target[None], [rejected])
    sums = metrics.sum_of
    if decision == NO_SLOT and rules.counting is None:
        iou = 0.0  # also where nothing is there to be drawn: the model did not say so
    rle = None if mask is None or not keep_masks else mask_to_rle(mask)
    counts = (int(sums("intersection")), int(sums("union")))
    return ExpressionResult(text, iou, *counts, bool(sums("targets")), decision, rle)


def summarise(
    results: Sequence[ImageResult],
    rules: Rules,
    counts_decisions: bool,
    repeats: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> ReferringResult:
    """
    The numbers of all results, and of each group.

    Args:
        results (`Sequence[ImageResult]`): At least one.
        rules ([`Rules`]): How they were counted.
        counts_decisions (`bool`): Whether N-acc and T-acc mean something.
        repeats (`np.ndarray`, *optional*): How often each image counts; once by default.
        resamples (`int`): Draws for the intervals; 0 for none.
        seed (`int`): Of the draws.
    """
    sums = np.stack([result.sums(counts_decisions) for result in results])
    if repeats is not None:
        sums = sums * repeats[:, None]
    groups = sorted({result.group for result in results if result.group is not None}, reverse=True)
    chosen = {_ALL: np.ones(len(results), dtype=bool)} | {
        name: np.array([result.group == name for result in results]) for name in groups
    }
    numbers = {name: _with_intervals(sums[rows], resamples, seed) for name, rows in chosen.items()}
    missing = sum(one.decision == NO_SLOT for result in results for one in result.expressions)
    return ReferringResult(rules.protocol, numbers.pop(_ALL), numbers, missing, rules.mends())


def _with_intervals(sums: np.ndarray, resamples: int, seed: int) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    intervals = bootstrap_intervals(sums, resamples, seed) if resamples else {}
    for name, value in numbers_of(sums.sum(0)).items():
        numbers[name] = value
        if name in intervals:
            bounds = intervals[name]
            numbers[f"{name}_interval"] = None if bounds is None or value is None else list(bounds)
    return numbers | {"images": len(sums)}


def _cases(results: Sequence[ImageResult], images: AskedImages) -> tuple[list[Case], int]:
    """The best, the median and the worst expressions with their masks, and of how many; targets are painted again."""
    places, cases = {}, []
    for result in results:
        path = images[result.number].path
        for index, one in enumerate(result.expressions):
            known = {"size": result.size, "counts": ""} if one.present else None  # painted below, if it is shown
            case = Case(path, one.text, one.iou, known, None if one.rle is None else dict(one.rle))
            places[id(case)] = (result, index)
            cases.append(case)
    shown = []
    for group in select_cases(cases, _CASES_PER_GROUP).values():
        for case in group:
            result, index = places[id(case)]
            target = images[result.number].paint(result.size)[index] == 1 if case.target is not None else None
            shown.append(replace(case, target=None if target is None else mask_to_rle(target)))
    return shown, len(cases)


# ---- the benchmark --------------------------------------------------------------------------------------------------


def kind_of(processor) -> str:
    """The name of the kind of model that a processor belongs to, such as `Lisa`.

    A repository that brings its own code has another class of the same name, so names are compared.
    """
    names = [base.__name__.removesuffix("Processor") for base in type(processor).__mro__]
    return next((name for name in names if name in _ORIGINAL_OF_KIND), names[0])


def rules_for(processor, data_set: str, protocol: str) -> Rules:
    """
    The rules of a model.

    Raises:
        UnknownBenchmarkError: If such a model cannot run the protocol; names those that it can.
    """
    kind, has_slots = kind_of(processor), getattr(processor, "seg_token", None) is not None
    if processor.answers_in_objects:
        return _rules_for_coordinates(processor, kind, data_set, protocol)
    original = _ORIGINAL_OF_KIND.get(kind, "lisa")
    if original == "lisa" and getattr(processor, "rej_token", None) is not None:
        original = "gsva"
    has_paper = kind in _ORIGINAL_OF_KIND and data_set in ORIGINALS[original].data_sets
    possible = [*(["paper"] if has_paper else []), "free", *(["fixed"] if has_slots else [])]
    if protocol in possible:
        return Rules(data_set, protocol, original)
    if not has_slots:
        reason = "the answer is given to the model with [SEG] in it, which it does not know"
    elif kind in _ORIGINAL_OF_KIND:
        reason = f"{ORIGINALS[original].title} has no evaluation on {data_set}, which GSVA has"
    else:
        *most, last = (ORIGINALS[name].title for name in _ORIGINAL_OF_KIND.values())
        reason = f"`paper` repeats the evaluations of {', '.join(most)} and {last}, and it is none of them"
    raise UnknownBenchmarkError(
        f"A model of the kind {kind} cannot run --dataset {data_set} --protocol {protocol}: {reason}. It can run "
        f"--protocol {' or '.join(possible)}."
    )


def _rules_for_coordinates(processor, kind: str, data_set: str, protocol: str) -> Rules:
    """The rules of a model that writes coordinates."""
    rules = Rules(data_set, protocol, "star" if processor.coordinate_format.startswith("star") else "vision_reasoner")
    if rules.as_original and data_set not in rules.followed.data_sets:
        raise UnknownBenchmarkError(
            f"A model of the kind {kind} cannot run --dataset {data_set} --protocol paper: VisionReasoner and StAR "
            "have no evaluation on it. It can run --protocol free or fixed."
        )
    return rules


def read_by_rules(processor, rules: Rules) -> Any:
    """The processor, or a copy of it that reads coordinates as the protocol says: under `paper` by published code, of
    which one that was chosen stays, else as far as they can be."""
    if not rules.writes_coordinates:
        return processor
    reading = "fixed" if not rules.as_original else "paper" if processor.reading == "fixed" else processor.reading
    processor = copy(processor)
    processor.reading = reading
    return processor


def run_referring(options: EvaluationOptions, source: DataSource) -> Outcome:
    """Have a model answer, or read saved predictions; score all images, and write the results."""
    settings, data_set = options.settings, options.dataset
    processor = predictions = None
    if options.predictions is not None:
        rules = _rules_of_predictions(options)
        predictions = SavedPredictions(
            options.predictions,
            settings.get("values"),
            settings["missing"] == "empty",
            ReferringMetrics(data_set).rule.zero_is_foreground,
        )
    else:
        if options.model is None:
            raise UnknownBenchmarkError(f"--dataset {data_set} also needs --model, or --predictions to score.")
        if given := [name for name in ("original", "values") if name in settings]:
            raise UnknownBenchmarkError(
                f"--set {given[0]} says how --predictions are read; a model decides it itself."
            )
        processor = options.load_processor()
        rules = rules_for(processor, data_set, options.protocol)
        processor = read_by_rules(processor, rules)
    if rules.original == "gsva" and rules.as_original and "split_by" in settings:
        raise UnknownBenchmarkError(
            "GSVA's evaluation takes its own splits whatever it is told; leave out --set split_by, or use --protocol "
            "fixed or free."
        )
    images = source.open(rules, settings.get("split_by"))
    numbers = range(min(len(images), options.limit or len(images)))
    missing = [] if predictions is None else _check_predictions(images, numbers, predictions, rules)

    state = PartialState()
    stored = ImageResults(options.out, _deciding(options, rules, processor))
    mine, found = numbers[state.process_index :: state.num_processes], stored.read()
    pending = [number for number in mine if number not in found]
    progress = options.report("evaluating")
    if pending:
        done = len(mine) - len(pending)
        progress(done, len(mine))
        with stored.writing() as file:
            for batch, answers in _answered(options, images, pending, rules, processor, predictions):
                for loaded, given_answers in zip(batch, answers, strict=True):
                    asked, keep = loaded.asked, settings["masks"]
                    expressions = score_image(asked.texts, loaded.targets, given_answers, rules, keep)
                    size = (loaded.image.height, loaded.image.width)
                    result = ImageResult(loaded.number, asked.name, asked.path.name, size, asked.group, expressions)
                    file.write(result.to_line())
                file.flush()
                done += len(batch)
                progress(done, len(mine))
    results = stored.wait_for(numbers)

    # Without [REJ] a model decides nothing, unless the benchmark counts what it does about absent targets.
    counts_decisions = rules.has_absent_targets or getattr(processor, "rej_token", None) is not None
    padding = settings.get("padded_processes")
    repeats = None if padding is None else padded_counts(len(results), padding)
    result = summarise(results, rules, counts_decisions, repeats, settings["resamples"], settings["seed"])
    about = {
        "model": options.model,
        "dataset": data_set,
        "data": str(options.data),
        "split": options.split,
        "original": rules.original,
        "images": len(results),
        "expressions": sum(len(one.expressions) for one in results),
        **({} if padding is None else {"padded_processes": padding}),
        **({} if predictions is None else {"predictions": str(options.predictions), "missing": missing}),
    }
    if state.is_main_process:
        result.cases, result.num_cases = _cases(results, images)
        kept = {name: about[name] for name in ("images", "expressions")}
        published = card_results(data_set, str(options.split), rules.protocol, result.groups, kept)
        name = options.model or str(options.predictions)
        write_published_results(options.out, name, published, rules.protocol, settings.get("hub_dataset"))
    return Outcome(result, results_table(result, about), about)


def _rules_of_predictions(options: EvaluationOptions) -> Rules:
    if options.model is not None:
        raise UnknownBenchmarkError("--predictions are scored without a model; leave out --model or --predictions.")
    if options.protocol == "free":
        raise UnknownBenchmarkError(
            "--protocol free has a model write its answers. Count --predictions by --protocol paper or fixed."
        )
    original = options.settings.get("original")
    rules = Rules(options.dataset, options.protocol, original or "lisa")
    if rules.has_absent_targets:
        if original == "lisa":
            raise UnknownBenchmarkError(f"LISA has no evaluation on {options.dataset}; leave out --set original=lisa.")
        rules = replace(rules, original="gsva")
    return rules


def _check_predictions(
    images: AskedImages, numbers: Sequence[int], predictions: SavedPredictions, rules: Rules
) -> list[str]:
    """Names of the predictions that are missing and taken for empty."""
    names = []
    for number in numbers:
        asked = images[number]
        wanted = asked.prediction_names
        if rules.pairs_in_order:
            targets = LoadedImage.load(number, asked).targets
            wanted = [name for name, target in zip(wanted, targets, strict=True) if target.any()]
        names += wanted
    return predictions.check(names)


def _answered(
    options: EvaluationOptions,
    images: AskedImages,
    numbers: Sequence[int],
    rules: Rules,
    processor,
    predictions: SavedPredictions | None,
) -> Iterator[tuple[list[LoadedImage], list[list[Answer]]]]:
    """The images with their answers, some at a time."""
    if predictions is not None:
        for loaded in read_ahead(lambda number: LoadedImage.load(number, images[number]), numbers):
            yield [loaded], [predicted_answers(loaded, predictions, rules)]
        return
    model, size, length = options.load_model(), options.batch_size, options.max_new_tokens

    def prepare(batch: list[LoadedImage]) -> tuple[list[LoadedImage], Any]:
        # An image without a conversation, should a data set have one, is not prepared.
        return batch, prepare_images(processor, batch, rules, size) if _rows_of(batch) else None

    for batch, prepared in read_ahead(prepare, _batches(images, numbers, size)):
        yield batch, answer_images(model, processor, batch, rules, size, length, prepared)


def _deciding(options: EvaluationOptions, rules: Rules, processor) -> dict[str, Any]:
    """Everything that decides the result of an image."""
    deciding = {
        "dataset": options.dataset,
        "data": str(options.data),
        "split": options.split,
        "split_by": options.settings.get("split_by"),
        "protocol": rules.protocol,
        "original": rules.original,
        "model": options.model,
        "revision": options.revision,
    }
    if options.predictions is not None:
        read = {name: options.settings.get(name) for name in ("values", "missing")}
        return {**deciding, "predictions": str(options.predictions), **read}
    deciding |= options.precision.settings()
    if rules.writes_coordinates:
        deciding["reading"] = processor.reading
    # Where none is given, the model, which is named above, says it.
    return deciding if rules.gives_answers else deciding | {"max_new_tokens": options.max_new_tokens}


def results_table(result: ReferringResult, about: Mapping[str, Any]) -> Table:
    """One row per number with its interval, one column per group."""
    mended = [f"mended: {mend}" for mend in result.mends]
    notes = [f"in percent, with 95 % intervals over images; {result.slots_missing} slots missing", *mended]
    title = f"{about['dataset']} {about['split']}, protocol {result.protocol}"
    table = Table(title=title, caption="\n".join(notes), caption_justify="left", min_width=70)
    table.add_column("number", justify="left")
    for name, numbers in result.groups.items():
        table.add_column(f"{name} ({numbers['images']} images, {numbers['masks']} expressions)", justify="right")
    for name, title in METRICS.items():
        if result.overall[name] is not None:
            table.add_row(title, *(_cell(numbers, name) for numbers in result.groups.values()))
    return table


def _cell(numbers: Mapping[str, Any], name: str) -> str:
    if numbers[name] is None:
        return "-"
    interval = numbers.get(f"{name}_interval")
    bounds = "" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    return f"{100 * numbers[name]:.2f}{bounds}"


__all__ = [
    "Answer",
    "LoadedImage",
    "ReferringResult",
    "answer_images",
    "kind_of",
    "predicted_answers",
    "read_by_rules",
    "results_table",
    "rules_for",
    "run_referring",
    "score_image",
    "summarise",
]
