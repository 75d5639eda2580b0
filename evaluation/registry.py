"""The benchmarks by name: what each reads, how its answers are made and counted, and which models it is for.

Everything is named by `module:name` and imported when a benchmark runs, so that the command line knows all benchmarks
at once, and rooms above this one may add theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data.annotation_formats import FORMATS, may_be_on_the_hub
from ..loading import import_object
from ..precision import Precision, load_model


class UnknownBenchmarkError(ValueError):
    """There is no benchmark of this name, or it lacks what was asked of it."""


@dataclass(frozen=True)
class Setting:
    """
    What only one benchmark knows, given as `--set NAME=VALUE`.

    Args:
        about (`str`): One line of explanation.
        read (`Callable`): Makes the value of the text; raises `ValueError` with the end of the sentence "NAME=VALUE".
        default: Its value where it is not given; `None` leaves it out.
    """

    about: str
    read: Callable[[str], Any] = str
    default: Any = None


@dataclass(frozen=True)
class Models:
    """
    Which models a benchmark runs.

    Args:
        command (`str`): The command that runs such models, `segment` or `ask`.
        systems (`tuple[str, ...]`): Only these systems of all that the command runs; all by default.
        what (`str`): What such a model is, after "needs", where only some systems will do.
        made_by (`str`): The command that makes one.
    """

    command: str
    systems: tuple[str, ...] = ()
    what: str = ""
    made_by: str = ""


@dataclass(frozen=True)
class Benchmark:
    """
    One benchmark.

    Args:
        name (`str`): What `--dataset` calls it.
        summary (`str`): One line for `--help`.
        models ([`Models`]): Which models it runs.
        reader (`str`): `module:name` of what reads the data set.
        reads (`Mapping[str, str]`): Arguments of the reader, and the option of the command that is given as each.
        run (`str`): `module:name` of the function that takes [`EvaluationOptions`] and the data set, has the model
            answer by the protocol, scores the answers, and returns an [`Outcome`].
        protocols (`Mapping[str, str]`): How answers are made or counted by its name, the default first.
        metrics (`tuple[str, ...]`): The numbers it gives.
        needs (`tuple[str, ...]`): Options of the command without which it cannot run.
        splits (`tuple[str, ...]`): Values of `--split`, the default first; none where the data set has no parts.
        settings (`Mapping[str, Setting]`): What `--set` may name.
        uses (`tuple[str, ...]`, *optional*): Options of the command that its `run` uses, beside those that it needs or
            that its reader takes; all others are refused when they are given. By default none is.
    """

    name: str
    summary: str
    models: Models
    reader: str
    reads: Mapping[str, str]
    run: str
    protocols: Mapping[str, str]
    metrics: tuple[str, ...]
    needs: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    settings: Mapping[str, Setting] = field(default_factory=dict)
    uses: tuple[str, ...] | None = None

    def evaluate(self, options: EvaluationOptions) -> Outcome:
        """Check the options, read the data set, and run the benchmark.

        Raises:
            UnknownBenchmarkError: The protocol or a setting is not one of this benchmark, or an option is missing or
                would be ignored.
        """
        options = replace(
            options,
            benchmark=self,
            protocol=self._protocol(options),
            split=(options.split or self.splits[0]) if self.splits else None,
            settings=self._settings(options),
        )
        options.require(*self.needs)
        if "model" in self.needs:
            _ = options.repository  # a model that cannot be used is refused before anything is read
        self._refuse_unused(options)
        data = import_object(self.reader)(
            **{argument: getattr(options, name) for argument, name in self.reads.items()}
        )
        return import_object(self.run)(options, data)

    def _refuse_unused(self, options: EvaluationOptions) -> None:
        if self.uses is None:
            return
        used = {*self.uses, *self.needs, *self.reads.values()}
        if unused := [_spelled(name) for name in options.typed if name not in used]:
            known = ", ".join(sorted(_spelled(name) for name in used - {"dataset"}))
            raise UnknownBenchmarkError(
                f"--dataset {options.dataset} does not use {', '.join(unused)}; leave it out. It uses {known}."
            )

    def _protocol(self, options: EvaluationOptions) -> str:
        protocol = options.protocol or next(iter(self.protocols))
        if protocol not in self.protocols:
            raise UnknownBenchmarkError(
                f"--dataset {options.dataset} has no protocol {protocol!r}; choose one of {', '.join(self.protocols)}."
            )
        return protocol

    def _settings(self, options: EvaluationOptions) -> dict[str, Any]:
        if unknown := sorted(set(options.given) - set(self.settings)):
            known = "; ".join(f"{name} ({setting.about})" for name, setting in self.settings.items()) or "none at all"
            raise UnknownBenchmarkError(
                f"--dataset {options.dataset} has no setting {', '.join(map(repr, unknown))}. It has: {known}."
            )
        values = {name: setting.default for name, setting in self.settings.items() if setting.default is not None}
        for name, text in options.given.items():
            try:
                values[name] = self.settings[name].read(text)
            except ValueError as error:
                raise UnknownBenchmarkError(f"--set {name}={text} {error}.") from None
        return values


@dataclass(frozen=True)
class EvaluationOptions:
    """
    What the command line gives to a benchmark. Each uses what it needs; None stands for its own default.

    Args:
        dataset (`str`): Name of the benchmark, or the folder of one split.
        out (`Path`): Folder of the report.
        model (`str`, *optional*): As it was named: a folder or Hub id of the repository, or `embedded`.
        protocol (`str`): One of the benchmark's protocols.
        split (`str`, *optional*): Part of the data set.
        scenes (`int`): Images of `tabletop`.
        images (`Path`, *optional*): Folder with the images.
        annotations (`Path`, *optional*): The data set's annotation file, or the folder with all of them.
        data (`Path`, *optional*): The root of the data sets, in the folders of the originals.
        predictions (`Path`, *optional*): Folder with saved masks to score, instead of a model.
        limit (`int`, *optional*): Only the first images or questions.
        batch_size (`int`): Questions per step.
        max_new_tokens (`int`, *optional*): Length of free answers.
        rule (`str`): How the sums of gIoU and cIoU are made.
        given (`Mapping[str, str]`): Settings of the benchmark as they were typed.
        typed (`tuple[str, ...]`): Names of the options that were typed, of those that only some benchmarks use.
        trust_remote_code (`bool`): Run the code in the repository.
        revision (`str`, *optional*): Commit of a Hub repository.
        precision ([`Precision`]): Number formats of the model.
        progress (`Callable`): Called with a word for the step, the number of finished items and of all.
        locate (`Callable`, *optional*): Takes these options; checks that the model fits the benchmark and returns it
            as `from_pretrained` takes it.
        loaded (`tuple`, *optional*): Model and processor where they are in memory, instead of `model`.
        settings (`Mapping[str, Any]`): Values of what was given, and defaults; set by [`Benchmark.evaluate`].
        benchmark ([`Benchmark`], *optional*): What runs; set by [`Benchmark.evaluate`].
    """

    dataset: str
    out: Path
    model: str | None = None
    protocol: str = ""
    split: str | None = None
    scenes: int = 500
    images: Path | None = None
    annotations: Path | None = None
    data: Path | None = None
    predictions: Path | None = None
    limit: int | None = None
    batch_size: int = 8
    max_new_tokens: int | None = None
    rule: str = "grefcoco"
    given: Mapping[str, str] = field(default_factory=dict)
    typed: tuple[str, ...] = ()
    trust_remote_code: bool = False
    revision: str | None = None
    precision: Precision = field(default_factory=Precision)
    progress: Callable[[str, int, int], None] = lambda step, done, total: None
    locate: Callable[[EvaluationOptions], str] = lambda options: str(options.model)
    loaded: tuple[Any, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    benchmark: Benchmark | None = None

    def require(self, *names: str) -> None:
        """Check that these options were given.

        Raises:
            UnknownBenchmarkError: With the options that are missing, as they are spelled on the command line.
        """
        missing = [_spelled(name) for name in names if getattr(self, name) is None]
        if missing:
            raise UnknownBenchmarkError(f"--dataset {self.dataset} also needs {', '.join(missing)}.")

    @cached_property
    def repository(self) -> str:
        """The model as `from_pretrained` takes it, once it is known to fit.

        Raises:
            ValueError: There is no such model, or it is of a kind that this benchmark does not run.
        """
        return str(self.model) if self.loaded is not None else self.locate(self)

    def load_processor(self) -> Any:
        """The model's processor."""
        if self.loaded is not None:
            return self.loaded[1]
        from transformers import AutoProcessor

        from ..loading import load_pretrained

        return load_pretrained(AutoProcessor, self.repository, **self._source)

    def load_model(self) -> Any:
        """The model for the benchmark's command, in evaluation mode on this process's device."""
        if self.loaded is not None:
            return self.loaded[0].eval()
        from accelerate import PartialState
        from transformers import AutoModel, AutoModelForImageTextToText

        auto_class = AutoModelForImageTextToText if self.benchmark.models.command == "ask" else AutoModel
        return load_model(auto_class, self.repository, self.precision, PartialState().device, **self._source)

    @property
    def _source(self) -> dict[str, Any]:
        return {"trust_remote_code": self.trust_remote_code, "revision": self.revision}

    def report(self, step: str) -> Callable[[int, int], None]:
        """A function to report how many items of a step are finished, and how many there are."""
        return lambda done, total: self.progress(step, done, total)


@dataclass(frozen=True)
class Outcome:
    """
    What a benchmark hands to the command. Only that of the main process counts; others may be empty.

    Args:
        result: Has `to_dict()` (plain JSON values) and `cases` (for the contact sheet, may be empty).
        table: Something rich can print.
        about (`dict`): Model, data set and settings, written beside the numbers.
    """

    result: Any = None
    table: Any = None
    about: dict[str, Any] = field(default_factory=dict)


def _spelled(name: str) -> str:
    """An option as it is spelled on the command line."""
    return f"--{name.replace('_', '-')}"


def number(text: str) -> float:
    """Read a number, such as `0.5`."""
    try:
        return float(text)
    except ValueError:
        raise ValueError("cannot be read: it is a number") from None


def non_negative_number(text: str) -> float:
    """Read a number that is not negative."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise ValueError("must be a number of at least 0")
    return value


def whole_number(text: str) -> int:
    """Read a whole number that is not negative."""
    if not text.isdecimal():
        raise ValueError("must be a whole number of at least 0")
    return int(text)


def whole_numbers(text: str) -> list[int]:
    """Read whole numbers with commas between."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError("cannot be read: it is whole numbers with commas") from None


def positive_number(text: str) -> int:
    """Read a whole number of at least 1."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise ValueError("must be a whole number of at least 1")
    return value


def yes_or_no(text: str) -> bool:
    """Read `yes` or `no`, `true` or `false`."""
    if text.lower() not in ("yes", "no", "true", "false"):
        raise ValueError("cannot be read: it is yes or no")
    return text.lower() in ("yes", "true")


def one_of(*words: str, otherwise: Callable[[str], Any] | None = None) -> Callable[[str], Any]:
    """Read one of these words; other texts are read by `otherwise`, where that is given."""

    def read(text: str) -> Any:
        if text in words:
            return text
        if otherwise is None:
            raise ValueError(f"is not known; it is {' or '.join(words)}")
        return otherwise(text)

    return read


def named_columns(text: str) -> dict[str, str]:
    """Read `NAME=COLUMN` pairs with commas between them."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(name and column for name, _, column in pairs):
        raise ValueError("cannot be read: it is NAME=COLUMN, with commas between several")
    return {name: column for name, _, column in pairs}


def some_text(text: str) -> str:
    """Read a text that says something."""
    if not text.strip():
        raise ValueError("cannot be read: it is empty")
    return text


_ANSWER_PROTOCOLS = {
    "free": "the model writes its answer",
    "paper": "the right answer is given, and the model decides at every [SEG] and [REJ]",
}
_EXACT_PROTOCOL = {"accuracy": "the answer must be the right one"}
_MASK_METRICS = ("gIoU", "cIoU", "N-acc", "T-acc", "Pr@X")
_SAMPLING_SETTINGS = {
    "temperature": Setting("0, the default, takes the most likely token", non_negative_number, 0.0),
    "seed": Setting("0 by default", whole_number, 0),
}
_REGION_SETTINGS = {
    "alpha": Setting(
        "opacity of the visual prompts, 0 to 255 or random; 128 by default",
        one_of("random", otherwise=whole_number),
        128,
    ),
    "preprocess": Setting("pad, or resize to the model's square; resize for vcr", one_of("pad", "resize"), "pad"),
    **_SAMPLING_SETTINGS,
}
_JUDGE_SETTINGS = {
    "judge": Setting(
        "keyword by default, exact, the URL of an OpenAI-compatible server, or a model for text-generation",
        default="keyword",
    ),
    "judge_model": Setting("name of the model at that URL; gpt-4-0613 by default", default="gpt-4-0613"),
    "key_variable": Setting("environment variable with that server's key; OPENAI_API_KEY by default"),
    "runs": Setting("how often each answer is scored; 5 by default, 1 for exact and keyword", whole_number),
    **_SAMPLING_SETTINGS,
}
_GROUNDING_SETTINGS = {
    "maps": Setting(
        "folder for attention maps: all answers first, then all masks, which can be repeated with other settings", Path
    ),
    "original_maps": Setting("folder of .pth files of aas/infer_attn.py; the model only segments then", Path),
    "answers": Setting("folder with answers to score, one JSON file per image; no model is needed then", Path),
    "question": Setting("what every image is asked", some_text),
    "candidates": Setting("chosen, or all for each of the segmenter's masks"),
    "phrase_extractor": Setting("spacy, spacy:<pipeline> or rules"),
    "heads": Setting("paper, mean, or numbers with commas", one_of("paper", "mean", otherwise=whole_numbers)),
    "attention_layers": Setting("numbers with commas", whole_numbers),
    "subtract_mean": Setting("yes or no", yes_or_no),
    "remove_corners": Setting("yes or no", yes_or_no),
    "prompt": Setting("point, box, mask or mask_and_box"),
    "attention_temperature": Setting("value of a map that counts as probability 1", number),
    "box_threshold": Setting("probability above which a pixel belongs to the box", number),
    "mask_choice": Setting("third or best"),
}
_REFERRING_SETTINGS = {
    "seed": Setting("of the draws for the intervals; 0 by default", whole_number, 0),
    "resamples": Setting("draws of images for the intervals; 1000 by default, 0 for none", whole_number, 1000),
    "masks": Setting("yes or no: keep predicted masks in results.jsonl; yes by default", yes_or_no, True),
    "padded_processes": Setting(
        "count the first images again as the originals do when they run in that many processes", positive_number
    ),
    "hub_dataset": Setting("name of the data set on the Hub, for eval_results.yaml", some_text),
    "original": Setting("lisa or gsva: whose rules count --predictions", one_of("lisa", "gsva")),
    "values": Setting(
        "mask, probabilities or logits: what arrays of --predictions hold", one_of("mask", "probabilities", "logits")
    ),
    "missing": Setting(
        "error or empty: what a missing file of --predictions is; error by default", one_of("error", "empty"), "error"
    ),
}
_REFERRING_PROTOCOLS = {
    "paper": "as LISA's, GSVA's or Sa2VA's own evaluation, by the model: the right answer is given, but to Sa2VA, and "
    "slips are kept; models that write coordinates write, and are read and counted as VisionReasoner and StAR do",
    "free": "the model writes an answer about each expression; no slot is wrong",
    "fixed": "the right answer is given (but to models that write coordinates), and the slips of the evaluation are "
    "mended and named",
}
# What runs a model, and on how much.
_ANSWERED_BY = ("model", "revision", "limit", "batch_size", "max_new_tokens")
_SEGMENTING, _ANSWERING = Models("segment"), Models("ask")
_ATTENDING = Models(
    "segment",
    systems=("attend_and_segment",),
    what="a model that points by its attention",
    made_by="reasonseg convert attend-and-segment VLM --sam FILE --out DIR",
)


def _regions(name: str, summary: str, run: str, protocols: Mapping[str, str] = _EXACT_PROTOCOL, **settings: Setting):
    """A benchmark on rows of ViP-LLaVA's region data, whose answers must be equal to the right ones."""
    return Benchmark(
        name,
        summary,
        _ANSWERING,
        reader="reasonseg.data.region_data:RegionFile",
        reads={"path": "annotations", "image_folder": "images"},
        run=f"reasonseg.evaluation.region_accuracy:{run}",
        protocols=protocols,
        metrics=("accuracy",),
        needs=("model", "annotations"),
        settings={**_REGION_SETTINGS, **settings},
        uses=_ANSWERED_BY,
    )


def _referring(name: str, summary: str, *splits: str, **settings: Setting) -> Benchmark:
    """A benchmark of LISA and GSVA, in the folders of the originals below `--data`."""
    return Benchmark(
        name,
        summary,
        _SEGMENTING,
        reader="reasonseg.evaluation.referring_benchmarks:DataSource",
        reads={"root": "data", "data_set": "dataset", "split": "split"},
        run="reasonseg.evaluation.referring_segmentation:run_referring",
        protocols=_REFERRING_PROTOCOLS,
        metrics=_MASK_METRICS,
        needs=("data",),
        splits=splits,
        settings={**_REFERRING_SETTINGS, **settings},
        uses=(*_ANSWERED_BY, "predictions"),
    )


_SPLIT_BY = Setting("who made the splits, as in refs(google).p; umd for refcocog and unc for the others by default")


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "tabletop",
            "drawn scenes with requests",
            _SEGMENTING,
            reader="reasonseg.tabletop.questions:tabletop_questions",
            reads={"split": "split", "scenes": "scenes"},
            run="reasonseg.evaluation.reasoning_segmentation:run_questions",
            protocols=_ANSWER_PROTOCOLS,
            metrics=_MASK_METRICS,
            needs=("model",),
            splits=("test", "validation", "test_unseen"),
            uses=(*_ANSWERED_BY, "rule"),
        ),
        _regions("v7w", "Visual7W, which of four boxes", "run_regions"),
        _regions("pointqa", "PointQA-LookTwice", "run_pointqa"),
        _regions(
            "vcr",
            "VCR: Q->A, QA->R, Q->AR",
            "run_vcr",
            {"both": "both questions; a row counts where both are right", "qa": "the answer", "qar": "the rationale"},
            preprocess=replace(_REGION_SETTINGS["preprocess"], default="resize"),
        ),
        _regions("regions", "any file of ViP-LLaVA's region data", "run_regions"),
        Benchmark(
            "coco",
            "COCO instances by phrases; --annotations instances_val2017.json",
            _ATTENDING,
            reader="reasonseg.data.annotated_images:CocoInstances",
            reads={"annotations": "annotations", "limit": "limit"},
            run="reasonseg.evaluation.coco_instances:run_coco",
            protocols={
                "paper": "a phrase means a category that is annotated in its image",
                "fixed": "a phrase may mean any category",
            },
            metrics=("AP", "AR", "point accuracy"),
            needs=("annotations",),
            settings={
                **_GROUNDING_SETTINGS,
                "results": Setting("file in COCO's results format to score; no model is needed then", Path),
                "category_threshold": Setting("least similarity of phrase and category; 0 by default", number),
                "word_vectors": Setting(
                    "spacy, spacy:<pipeline> or encoder:<folder or name>, which compare phrase and category"
                ),
            },
            uses=(*_ANSWERED_BY, "images"),
        ),
        Benchmark(
            "grandf",
            "grounded conversations; --annotations folder of GranD-f's val_test",
            _ATTENDING,
            reader="reasonseg.data.grandf:GroundedConversations",
            reads={"annotations": "annotations", "split": "split", "limit": "limit"},
            run="reasonseg.evaluation.grounded_conversation:run_grandf",
            protocols={
                "paper": "pairing for recall stops at the first pair that fails, and every image needs an answer",
                "fixed": "pairing continues, and an image without an answer has an empty one",
            },
            metrics=("AP", "AP50", "mIoU", "recall", "METEOR", "CIDEr"),
            needs=("annotations",),
            splits=("val", "test"),
            settings={
                **_GROUNDING_SETTINGS,
                "text_encoder": Setting(
                    "what compares phrases for recall, google-bert/bert-base-uncased by default; or none"
                ),
                "captions": Setting(
                    "yes or no: score captions, where pycocoevalcap and Java are installed", yes_or_no
                ),
            },
            uses=(*_ANSWERED_BY, "images"),
        ),
        Benchmark(
            "vip-bench",
            "ViP-Bench, scored by a judge",
            _ANSWERING,
            reader="reasonseg.data.vip_bench:read_vip_bench",
            reads={"folder": "annotations", "split": "split"},
            run="reasonseg.evaluation.vip_bench:run_vip_bench",
            protocols={"judged": "a judge scores every answer"},
            metrics=("score by capability",),
            needs=("annotations",),
            splits=("bbox", "human"),
            settings=_JUDGE_SETTINGS,
            uses=_ANSWERED_BY,
        ),
        _referring("reasonseg", "ReasonSeg, all queries and short and long ones; --data ROOT", "val", "test", "train"),
        *(
            _referring(name, f"{title}; --data ROOT", *splits, split_by=_SPLIT_BY)
            for name, title, splits in (
                ("refcoco", "RefCOCO", ("val", "testA", "testB")),
                ("refcoco+", "RefCOCO+", ("val", "testA", "testB")),
                ("refcocog", "RefCOCOg", ("val", "test")),
                ("refclef", "RefCLEF", ("val", "test", "testA", "testB", "testC")),
            )
        ),
        _referring("grefcoco", "gRefCOCO, also of absent targets; --data ROOT", "val", "testA", "testB"),
        _referring("refzom", "Ref-ZOM, also of absent targets; --data ROOT", "test"),
    )
}
"""All benchmarks by name; [`register_benchmark`] adds one."""

# A folder, a file of annotations, or a data set on the Hub, in place of a name.
_FOLDER = Benchmark(
    "",
    "the folder of one split",
    _SEGMENTING,
    reader="reasonseg.evaluation.reasoning_segmentation:image_folder_questions",
    reads={"folder": "dataset", "images": "images", "settings": "settings"},
    run="reasonseg.evaluation.reasoning_segmentation:run_questions",
    protocols=_ANSWER_PROTOCOLS,
    metrics=_MASK_METRICS,
    needs=("model",),
    settings={
        "format": Setting("coco, labelme, yolo, voc ...: what the folder, or the file, holds; our own by default"),
        "split": Setting("its part, where there are several"),
        "config": Setting("its configuration, of a data set of the library datasets that has several"),
        "columns": Setting("columns of such a data set: image=A,mask=B,label=C,text=D", named_columns),
        **{
            name: Setting(f"the {name} of labels, as of `reasonseg import`") for name in ("question", "answer", "item")
        },
        "per": Setting("image or label: what gets a question of its own"),
        "slot": Setting("label or object: what gets a mask of its own"),
        "absent": Setting("how many labels are asked for that an image does not have", whole_number),
        "seed": Setting("of the choice among these", whole_number),
        "skip_labels": Setting("labels that are left out, with commas", lambda text: tuple(text.split(","))),
        "without_mask": Setting("refuse, skip or box: what becomes of objects without a mask"),
        "inner": Setting("refuse, hole or fill: what polygons inside others are"),
        "mask_frame": Setting("upright or stored: what masks were drawn on"),
    },
    uses=(*_ANSWERED_BY, "rule"),
)


def register_benchmark(benchmark: Benchmark) -> Benchmark:
    """Add a benchmark; its name is one more value of `--dataset`.

    Raises:
        ValueError: There is one of this name, or it has no protocol.
    """
    if benchmark.name in BENCHMARKS:
        raise ValueError(f"There is a benchmark {benchmark.name!r} already.")
    if not benchmark.protocols:
        raise ValueError(f"The benchmark {benchmark.name!r} says no protocol; name at least one.")
    BENCHMARKS[benchmark.name] = benchmark
    return benchmark


def find_benchmark(dataset: str) -> Benchmark:
    """
    Raises:
        UnknownBenchmarkError: If `dataset` is neither a name, also on the Hub, nor a folder or file.
    """
    if dataset in BENCHMARKS:
        return BENCHMARKS[dataset]
    allowed = f"give one of {', '.join(BENCHMARKS)}, the folder of one split, or ORG/NAME of a data set on the Hub."
    if not Path(dataset).exists():
        if not may_be_on_the_hub(dataset):
            raise UnknownBenchmarkError(f"There is no data set {dataset!r}: {allowed}")
        try:
            FORMATS["datasets"].check()
        except ImportError as error:
            raise UnknownBenchmarkError(f"There is no folder {dataset!r}: {allowed} {error}") from None
    return _FOLDER


__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "EvaluationOptions",
    "Models",
    "Outcome",
    "Setting",
    "UnknownBenchmarkError",
    "find_benchmark",
    "register_benchmark",
]
