"""Numbers of an evaluation in the two forms in which the Hub shows them.

`model-index.yaml` holds the metadata of a model card (`reasonseg card --results` enters it), and
`eval_results.yaml` what a repository keeps as `.eval_results/NAME.yaml`, by which the Hub lists scores beside the data
set; it needs the name of a data set on the Hub. Values are percent, as in the papers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from ..atomic_files import write_whole


MODEL_INDEX, HUB_RESULTS = "model-index.yaml", "eval_results.yaml"
TASK = "image-segmentation"
TITLES = {
    "reasonseg": "ReasonSeg",
    "refcoco": "RefCOCO",
    "refcoco+": "RefCOCO+",
    "refcocog": "RefCOCOg",
    "refclef": "RefCLEF",
    "grefcoco": "gRefCOCO",
    "refzom": "Ref-ZOM",
}
METRICS = {"giou": "gIoU", "ciou": "cIoU", "n_acc": "N-acc", "t_acc": "T-acc"} | {
    f"pr@{level}": f"Pr@{level}" for level in (0.5, 0.6, 0.7, 0.8, 0.9)
}
# Copies of the data sets on the Hub, by name and split.
_HUB_DATA_SETS = {
    ("reasonseg", "val"): "Ricky06662/ReasonSeg_val",
    ("reasonseg", "test"): "Ricky06662/ReasonSeg_test",
    ("refcoco", None): "lmms-lab/RefCOCO",
    ("refcoco+", None): "lmms-lab/RefCOCOplus",
    ("refcocog", None): "lmms-lab/RefCOCOg",
}


class ResultsFileError(ValueError):
    """A file of results that cannot be read."""


def card_results(
    data_set: str, split: str, protocol: str, groups: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]
) -> list[EvalResult]:
    """
    The numbers as a model card has them.

    Args:
        data_set, split, protocol (`str`): What was measured, and how.
        groups (`Mapping[str, Mapping]`): Numbers in [0, 1] by their names, of `all` and of each group; `None` for one
            that is not defined, and the interval of each under its name and `_interval`.
        about (`Mapping[str, Any]`): What else to say of the data, such as the number of images.
    """
    results = []
    for group, numbers in groups.items():
        for name, title in METRICS.items():
            if numbers.get(name) is None:
                continue
            interval = numbers.get(f"{name}_interval")
            bounds = {} if interval is None else {"interval_95": [_percent(bound) for bound in interval]}
            results.append(
                EvalResult(
                    task_type=TASK,
                    task_name="Reasoning segmentation",
                    dataset_type=data_set,
                    dataset_name=TITLES[data_set],
                    dataset_split=split,
                    dataset_args=dict(about),
                    metric_type=name,
                    metric_name=title if group == "all" else f"{title} ({group} queries)",
                    metric_value=_percent(numbers[name]),
                    metric_args={"protocol": protocol, **bounds},
                )
            )
    return results


def write_published_results(
    folder: Path, model: str, results: list[EvalResult], protocol: str, hub_data_set: str | None = None
) -> list[Path]:
    """
    Args:
        folder (`Path`): Where the files go.
        model (`str`): What the model is called.
        results (`list[EvalResult]`): Of one data set and split, at least one.
        protocol (`str`): How they were measured.
        hub_data_set (`str`, *optional*): Name of the data set on the Hub; that of a known copy by default. Without
            one there is no `eval_results.yaml`.

    Returns:
        `list[Path]`: The files.
    """
    first = results[0]
    index = eval_results_to_model_index(model, results)
    written = [folder / MODEL_INDEX]
    write_whole(written[0], _dump({"model-index": index}))
    known = _HUB_DATA_SETS.get(
        (first.dataset_type, first.dataset_split), _HUB_DATA_SETS.get((first.dataset_type, None))
    )
    name = hub_data_set or known
    if name is not None:
        entries = [
            EvalResultEntry(
                dataset_id=name,
                task_id=f"{first.dataset_split}_{_identifier(result.metric_name)}",
                value=result.metric_value,
                notes=f"reasonseg evaluate --dataset {first.dataset_type} --split {first.dataset_split} --protocol "
                f"{protocol}; {result.metric_name} in percent, measured on the original files",
            )
            for result in results
        ]
        written.append(folder / HUB_RESULTS)
        write_whole(written[1], _dump(eval_result_entries_to_yaml(entries)))
    return written


def read_card_results(path: str | Path) -> list[EvalResult]:
    """
    The results in a `model-index.yaml`.

    Raises:
        ResultsFileError: If there is no such file, or it holds something else.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        _, results = model_index_to_eval_results(content["model-index"])
    except OSError:
        raise ResultsFileError(f"{path} does not exist or cannot be read.") from None
    except (UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError, AttributeError, IndexError, ValueError) as error:
        raise ResultsFileError(
            f"{path} holds no results of a model card ({type(error).__name__}: {error}). `reasonseg evaluate` writes "
            f"{MODEL_INDEX}."
        ) from None
    return results


def _percent(share: float) -> float:
    return round(100 * share, 4)


def _identifier(title: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in title.lower()).strip("_")


def _dump(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


__all__ = [
    "HUB_RESULTS",
    "MODEL_INDEX",
    "ResultsFileError",
    "card_results",
    "read_card_results",
    "write_published_results",
]
