"""`reasonseg evaluate`: score a model on a benchmark."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from ..atomic_files import remove_drafts
from ..evaluation.registry import BENCHMARKS, EvaluationOptions, UnknownBenchmarkError, find_benchmark
from ..folder_lock import alone_in
from ..model_names import EMBEDDED_HELP, resolve_model
from .failures import CommandError, stderr_console
from .printing import SafeConsole, printable_json, write_out
from .progress import step_progress
from .running import (
    Compiled,
    Dtype,
    KeptDtype,
    MaxImagePixels,
    Quantized,
    Revision,
    SegmenterDtype,
    TrustRemoteCode,
    precision_of,
    print_written,
)


_DATASETS = "; ".join(
    f"`{benchmark.name}`: {benchmark.summary} ({', '.join(benchmark.metrics)})" for benchmark in BENCHMARKS.values()
)
_PROTOCOLS = "; ".join(
    f"`{benchmark.name}` {name}: {how}"
    for benchmark in BENCHMARKS.values()
    for name, how in benchmark.protocols.items()
    if len(benchmark.protocols) > 1
)
_SPLITS = "; of ".join(
    f"`{benchmark.name}`: {', '.join(benchmark.splits)}" for benchmark in BENCHMARKS.values() if benchmark.splits
)


def evaluate(
    dataset: Annotated[
        str,
        typer.Option(
            help=f"{_DATASETS}. Or the folder of one split (metadata.jsonl; of any format with --set format=), or "
            "ORG/NAME of a data set on the Hub, scored as `tabletop` is. In brackets: what is measured."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for results.json and cases.png.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help=f"Folder or Hub name of a checkpoint; {EMBEDDED_HELP}.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help=f"How answers are made or counted, the default first. {_PROTOCOLS}."),
    ] = None,
    split: Annotated[str | None, typer.Option(help=f"Part of the data set, of {_SPLITS}.")] = None,
    scenes: Annotated[int | None, typer.Option(min=1, help="Images of `tabletop`.  [default: 500]")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder with the images of the data set.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Annotation file of the data set, or its folder.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Root of the data sets in the folders of the originals (`reason_seg`, `refer_seg`)."),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Score masks of anybody instead of a model: a folder with NAME.npy, NAME.png or NAME.json (COCO's "
            "run lengths), NAME being the image's; of several expressions NAME_0, NAME_1, ..."
        ),
    ] = None,
    max_image_pixels: MaxImagePixels = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images or questions.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Questions per step.  [default: 8]")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Length of free answers.")] = None,
    rule: Annotated[
        str | None,
        typer.Option(help="Whose sums of gIoU and cIoU: grefcoco, refzom or reason.  [default: grefcoco]"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A setting of this benchmark alone; an unknown one lists them all."
        ),
    ] = None,
    dtype: KeptDtype = Dtype.auto,
    segmenter_dtype: SegmenterDtype = Dtype.auto,
    quantization: Quantized = None,
    compiled: Compiled = False,
    trust_remote_code: TrustRemoteCode = False,
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
):
    """Score a model on a benchmark: the numbers as JSON, as a table and, where masks are scored, an image of cases.

    With `torchrun` or `accelerate launch` (`-m reasonseg evaluate ...`) the work is shared among processes.
    """
    precision = precision_of(dtype, segmenter_dtype, quantization, compiled)
    try:
        benchmark = find_benchmark(dataset)
    except UnknownBenchmarkError as error:
        raise CommandError(str(error)) from None

    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    from ..evaluation.report import write_report

    # Without an accelerator accelerate would run every process as if it were alone.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    # What only some benchmarks use; the defaults are theirs.
    optional = {
        "model": model,
        "split": split,
        "scenes": scenes,
        "images": images,
        "annotations": annotations,
        "data": data,
        "predictions": predictions,
        "limit": limit,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "rule": rule,
        "revision": revision,
    }
    typed = {name: value for name, value in optional.items() if value is not None}
    console, is_main = stderr_console(), state.is_main_process
    with alone_in(out) if is_main else nullcontext(), step_progress(console, is_main) as progress:
        if is_main:
            remove_drafts(out)
        outcome = benchmark.evaluate(
            EvaluationOptions(
                dataset=dataset,
                out=out,
                protocol=protocol or "",
                given=read_settings(settings or []),
                typed=tuple(typed),
                trust_remote_code=trust_remote_code,
                precision=precision,
                **typed,
                progress=progress,
                locate=locate_model,
            )
        )
        if not is_main:
            return
        about = {**outcome.about, **precision.settings()}
        path = write_report(outcome.result, out, about)
    if as_json:
        write_out(printable_json({**about, **outcome.result.to_dict()}) + "\n")
    else:
        SafeConsole(width=110).print(outcome.table)
    print_written(path, *([path.with_name("cases.png")] if outcome.result.cases else []))


def locate_model(options: EvaluationOptions) -> str:
    """Find the model and check that the benchmark can run it.

    Raises:
        UnknownModelError: There is no such model.
        WrongModelError: It is of a kind that the benchmark does not run.
    """
    from ..model_kinds import WrongModelError, check_model_fits

    repo, wanted, asked = resolve_model(options.model, options.revision), options.benchmark.models, options.dataset
    source = {"trust_remote_code": options.trust_remote_code, "revision": options.revision}
    kind = check_model_fits(wanted.command, repo, **source, asked=f"--dataset {asked}")
    if wanted.systems and (kind is None or kind.name not in wanted.systems):
        raise WrongModelError(
            f"--dataset {asked} needs {wanted.what}; {options.model} is of the kind {kind and kind.name}. Make one: "
            f"{wanted.made_by}."
        )
    return repo


def read_settings(pairs: list[str]) -> dict[str, str]:
    """Split `NAME=VALUE` pairs.

    Raises:
        CommandError: A pair has no name or no `=`.
    """
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise CommandError(f"--set {pair!r} is not a setting: write NAME=VALUE.")
        settings[name] = value
    return settings


__all__ = ["evaluate"]
