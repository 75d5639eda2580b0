"""`reasonseg evaluate`: score a model on a benchmark."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from ..evaluation.registry import BENCHMARKS, EvaluationOptions, UnknownBenchmarkError, find_benchmark
from ..folder_lock import alone_in
from ..model_names import EMBEDDED_HELP
from ..whole_files import remove_drafts
from .failures import CommandError, stderr_console
from .printing import SafeConsole, write_out
from .progress import step_progress
from .running import MaxImagePixels


_DATASETS = "; ".join(
    f"`{name}`: {benchmark.summary} ({', '.join(benchmark.protocols)})" for name, benchmark in BENCHMARKS.items()
)


def evaluate(
    dataset: Annotated[
        str, typer.Option(help=f"{_DATASETS}. Or the folder of one split (metadata.jsonl). Protocols in brackets.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for results.json and cases.png.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help=f"Folder or Hub name of a checkpoint; {EMBEDDED_HELP}.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="How answers are made or counted; see --dataset.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Part of the data set; of `tabletop`: validation, test or test_unseen.")
    ] = None,
    scenes: Annotated[int, typer.Option(min=1, help="Pictures of `tabletop`.")] = 500,
    images: Annotated[Path | None, typer.Option(help="Folder with the pictures of the data set.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Annotation file of the data set, or its folder.")] = None,
    max_image_pixels: MaxImagePixels = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first pictures or questions.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions per step.")] = 8,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Length of free answers.")] = None,
    rule: Annotated[str, typer.Option(help="Whose sums of gIoU and cIoU: grefcoco, refzom or reason.")] = "grefcoco",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of this benchmark alone.")
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run the code in the repository.")] = False,
    revision: Annotated[str | None, typer.Option(help="Commit of a Hub repository.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
):
    """Score a model on a benchmark: the numbers as JSON, as a table and, where masks are scored, a picture of cases.

    With `torchrun` or `accelerate launch` (`-m reasonseg evaluate ...`) the work is shared among processes.
    """
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
    console, is_main = stderr_console(), state.is_main_process
    with alone_in(out) if is_main else nullcontext(), step_progress(console, is_main) as progress:
        if is_main:
            remove_drafts(out)
        outcome = benchmark.run(
            EvaluationOptions(
                dataset=dataset,
                out=out,
                model=model,
                protocol=protocol or "",
                split=split,
                scenes=scenes,
                images=images,
                annotations=annotations,
                limit=limit,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                rule=rule,
                settings=read_settings(settings or []),
                trust_remote_code=trust_remote_code,
                revision=revision,
                progress=progress,
            )
        )
        if not is_main:
            return
        path = write_report(outcome.result, out, outcome.about)
    if as_json:
        write_out(json.dumps({**outcome.about, **outcome.result.to_dict()}) + "\n")
    else:
        SafeConsole(width=110).print(outcome.table)
    written = [path, *([path.with_name("cases.png")] if outcome.result.cases else [])]
    console.print(f"Written: {' and '.join(map(str, written))}", soft_wrap=True)


def read_settings(pairs: list[str]) -> dict[str, str]:
    """Split `NAME=VALUE` pairs.

    Raises:
        CommandError: A pair has no name or no `=`.
    """
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise CommandError(f"--set {pair!r} is no setting: write NAME=VALUE.")
        settings[name] = value
    return settings


__all__ = ["evaluate"]
