"""The benchmarks of `reasonseg evaluate` by name. Nothing heavy is imported before one is run."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..model_names import resolve_model


class UnknownBenchmarkError(ValueError):
    """There is no benchmark of this name, or it lacks what was asked of it."""


@dataclass
class EvaluationOptions:
    """
    What the command line gives to a benchmark. Each uses what it needs; None stands for its own default.

    Args:
        dataset (`str`): Name of the benchmark, or the folder of one split.
        out (`Path`): Folder of the report.
        model (`str`, *optional*): Folder or Hub id of the repository, or `embedded`.
        protocol (`str`): One of the benchmark's protocols.
        split (`str`, *optional*): Part of the data set.
        scenes (`int`): Pictures of `tabletop`.
        images (`Path`, *optional*): Folder with the pictures.
        annotations (`Path`, *optional*): The data set's annotation file, or the folder with all of them.
        limit (`int`, *optional*): Only the first pictures or questions.
        batch_size (`int`): Questions per step.
        max_new_tokens (`int`, *optional*): Length of free answers.
        rule (`str`): How the sums of gIoU and cIoU are made.
        settings (`dict[str, str]`): What only one benchmark knows, from `--set NAME=VALUE`.
        trust_remote_code (`bool`): Run the code in the repository.
        revision (`str`, *optional*): Commit of a Hub repository.
        progress (`Callable`): Called with a word for the step, the number of finished items and of all.
    """

    dataset: str
    out: Path
    model: str | None = None
    protocol: str = ""
    split: str | None = None
    scenes: int = 500
    images: Path | None = None
    annotations: Path | None = None
    limit: int | None = None
    batch_size: int = 8
    max_new_tokens: int | None = None
    rule: str = "grefcoco"
    settings: dict[str, str] = field(default_factory=dict)
    trust_remote_code: bool = False
    revision: str | None = None
    progress: Callable[[str, int, int], None] = lambda step, done, total: None

    def require(self, *names: str) -> None:
        """Check that these options were given.

        Raises:
            UnknownBenchmarkError: With the options that are missing, as they are spelled on the command line.
        """
        missing = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is None]
        if missing:
            raise UnknownBenchmarkError(f"--dataset {self.dataset} also needs {', '.join(missing)}.")

    @property
    def repository(self) -> str:
        """The model as `from_pretrained` takes it.

        Raises:
            UnknownModelError: If there is no such model.
        """
        return resolve_model(self.model, self.revision)

    def load_arguments(self) -> dict[str, Any]:
        """Arguments of every `from_pretrained` of the repository."""
        return {"trust_remote_code": self.trust_remote_code, "revision": self.revision}


@dataclass
class Outcome:
    """
    What a benchmark hands to the command. Only that of the main process counts; others may be empty.

    Args:
        result: Has `to_dict()` (plain JSON values) and `cases` (for the contact sheet, may be empty).
        table: Something rich can print.
        about (`dict`): Model, data set and settings, written beside the numbers.
    """

    result: Any
    table: Any
    about: dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """
    Args:
        summary (`str`): One line for `--help`.
        protocols (`tuple[str, ...]`): Its protocols, the default one first.
        runner (`str`): `module:function`; takes [`EvaluationOptions`], returns [`Outcome`].
        settings (`dict[str, str]`): What `--set` may name, with one line of explanation each.
    """

    summary: str
    protocols: tuple[str, ...]
    runner: str
    settings: dict[str, str] = field(default_factory=dict)

    def run(self, options: EvaluationOptions) -> Outcome:
        """Import the runner and call it.

        Raises:
            UnknownBenchmarkError: If the protocol or a setting is not one of this benchmark.
        """
        unknown = sorted(set(options.settings) - set(self.settings))
        if unknown:
            known = "; ".join(f"{name} ({text})" for name, text in self.settings.items()) or "none at all"
            raise UnknownBenchmarkError(
                f"--dataset {options.dataset} has no setting {', '.join(map(repr, unknown))}. It has: {known}."
            )
        options.protocol = options.protocol or self.protocols[0]
        if options.protocol not in self.protocols:
            raise UnknownBenchmarkError(
                f"--dataset {options.dataset} has no protocol {options.protocol!r}; choose one of "
                f"{', '.join(self.protocols)}."
            )
        module, _, function = self.runner.partition(":")
        return getattr(importlib.import_module(module), function)(options)


_SAMPLING_SETTINGS = {"temperature": "0, the default, takes the most likely token", "seed": "0 by default"}
_REGION_SETTINGS = {
    "alpha": "opacity of the marks, 0 to 255 or random; 128 by default",
    "preprocess": "pad, or resize to the model's square; resize for vcr by default",
    **_SAMPLING_SETTINGS,
}
_JUDGE_SETTINGS = {
    "judge": "keyword by default, exact, the URL of an OpenAI-compatible server, or a model for text-generation",
    "judge_model": "name of the model at that URL; gpt-4-0613 by default",
    "key_variable": "environment variable with that server's key; OPENAI_API_KEY by default",
    "runs": "how often each answer is scored; 5 by default, 1 for exact and keyword",
    **_SAMPLING_SETTINGS,
}
_GROUNDING_SETTINGS = {
    "maps": "folder for attention maps: all answers first, then all masks, which can be repeated with other settings",
    "original_maps": "folder of .pth files of aas/infer_attn.py; the model only segments then",
    "answers": "folder with answers to score, one JSON file per picture; no model is needed then",
    "question": "what every picture is asked",
    "candidates": "chosen, or all for each of the segmenter's masks",
    "phrase_extractor": "spacy, spacy:<pipeline> or rules",
    "dtype": "of the model; as stored by default",
    "heads": "paper, mean, or numbers with commas",
    "attention_layers": "numbers with commas",
    "subtract_mean": "yes or no",
    "remove_corners": "yes or no",
    "prompt": "point, box, mask or mask_and_box",
    "attention_temperature": "value of a map that counts as probability 1",
    "box_threshold": "probability above which a pixel belongs to the box",
    "mask_choice": "third or best",
}
BENCHMARKS: dict[str, Benchmark] = {
    "tabletop": Benchmark(
        "drawn scenes with requests", ("free", "paper"), "reasonseg.question_benchmarks:run_tabletop"
    ),
    "v7w": Benchmark(
        "Visual7W, which of four marked boxes", ("accuracy",), "reasonseg.region_accuracy:run_v7w", _REGION_SETTINGS
    ),
    "pointqa": Benchmark(
        "PointQA-LookTwice", ("accuracy",), "reasonseg.region_accuracy:run_pointqa", _REGION_SETTINGS
    ),
    "vcr": Benchmark(
        "VCR: Q->A, QA->R, Q->AR", ("both", "qa", "qar"), "reasonseg.region_accuracy:run_vcr", _REGION_SETTINGS
    ),
    "regions": Benchmark(
        "any file of ViP-LLaVA's region data", ("accuracy",), "reasonseg.region_accuracy:run_regions", _REGION_SETTINGS
    ),
    "coco": Benchmark(
        "COCO instances by phrases; --annotations instances_val2017.json",
        ("paper", "fixed"),
        "reasonseg.grounding_benchmarks:run_coco",
        {
            **_GROUNDING_SETTINGS,
            "results": "file in COCO's results format to score; no model is needed then",
            "category_threshold": "least similarity of phrase and category; 0 by default",
            "word_vectors": "spacy, spacy:<pipeline> or encoder:<folder or name>, which compare phrase and category",
        },
    ),
    "grandf": Benchmark(
        "grounded conversations; --annotations folder of GranD-f's val_test, --split val or test",
        ("paper", "fixed"),
        "reasonseg.grounding_benchmarks:run_grandf",
        {
            **_GROUNDING_SETTINGS,
            "text_encoder": "what compares phrases for recall, google-bert/bert-base-uncased by default; or none",
            "captions": "yes or no: score captions, where pycocoevalcap and Java are installed",
        },
    ),
    "vip-bench": Benchmark(
        "ViP-Bench (bbox or human), scored by a judge",
        ("judged",),
        "reasonseg.region_accuracy:run_vip_bench",
        _JUDGE_SETTINGS,
    ),
}
# A folder in place of a name.
_FOLDER = Benchmark("the folder of one split", ("free", "paper"), "reasonseg.question_benchmarks:run_image_folder")


def find_benchmark(dataset: str) -> Benchmark:
    """
    Raises:
        UnknownBenchmarkError: If `dataset` is neither a name nor a folder.
    """
    if dataset in BENCHMARKS:
        return BENCHMARKS[dataset]
    if Path(dataset).is_dir():
        return _FOLDER
    raise UnknownBenchmarkError(
        f"There is no data set {dataset!r}: give one of {', '.join(BENCHMARKS)}, or the folder of one split."
    )


__all__ = ["BENCHMARKS", "Benchmark", "EvaluationOptions", "Outcome", "UnknownBenchmarkError", "find_benchmark"]
