"""`reasonseg evaluate`: score a model on questions with known masks."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .failures import CommandError, stderr_console


class Protocol(StrEnum):
    """How answers are made."""

    free = "free"
    paper = "paper"


def evaluate(
    model: Annotated[str, typer.Option("--model", "-m", help="Folder or Hub id of the repository.")],
    dataset: Annotated[str, typer.Option(help="`tabletop`, or the folder of one split (metadata.jsonl).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for results.json and cases.png.")],
    split: Annotated[str, typer.Option(help="Split of `tabletop`: validation, test or test_unseen.")] = "test",
    scenes: Annotated[int, typer.Option(min=1, help="Pictures of `tabletop`.")] = 500,
    protocol: Annotated[Protocol, typer.Option(help="free: the model answers; paper: the answer is given.")] = (
        Protocol.free
    ),
    batch_size: Annotated[int, typer.Option(min=1, help="Questions per step.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of free answers.")] = 128,
    rule: Annotated[str, typer.Option(help="Whose sums: grefcoco, refzom or reason.")] = "grefcoco",
    trust_remote_code: Annotated[bool, typer.Option(help="Run the code in the repository.")] = False,
    revision: Annotated[str | None, typer.Option(help="Commit of a Hub repository.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
):
    """Score a model: gIoU, cIoU, N-acc, T-acc and Pr@X, as JSON, as a table and as a picture of cases.

    With `torchrun` or `accelerate launch` (`-m reasonseg evaluate ...`) the questions are shared among processes.
    """
    from accelerate import PartialState
    from rich.progress import Progress
    from transformers import AutoModel, AutoProcessor

    from ..evaluation.benchmark import evaluate as run
    from ..evaluation.report import results_table, write_report
    from ..questions import image_folder_questions, tabletop_questions
    from ..registration import register

    register()
    if dataset == "tabletop":
        questions = tabletop_questions(split, scenes)
    elif Path(dataset).is_dir():
        questions = image_folder_questions(dataset)
    else:
        raise CommandError(f"There is no data set {dataset!r}: give `tabletop` or the folder of one split.")
    state = PartialState()
    options = {"trust_remote_code": trust_remote_code, "revision": revision}
    network = AutoModel.from_pretrained(model, dtype="auto", **options).to(state.device)
    processor = AutoProcessor.from_pretrained(model, **options)

    with Progress(console=stderr_console(), disable=not state.is_main_process) as bar:
        task = bar.add_task("evaluating", total=len(questions))
        result = run(
            network,
            processor,
            questions,
            protocol=protocol.value,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            rule=rule,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if not state.is_main_process:
        return
    about = {"model": model, "dataset": dataset, "split": split if dataset == "tabletop" else None, "rule": rule}
    path = write_report(result, out, about)
    if as_json:
        sys.stdout.write(json.dumps({**about, **result.to_dict()}) + "\n")
    else:
        Console(width=110).print(results_table(result))
    stderr_console().print(f"Written: {path} and {path.with_name('cases.png')}", soft_wrap=True)
