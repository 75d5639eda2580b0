"""`reasonseg train`: follow a training recipe."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from ..folder_lock import alone_in
from ..model_names import resolve_model
from .failures import shown_log, stderr_console
from .processes import is_main_process
from .running import MaxImagePixels


def train(
    recipe: Annotated[
        str, typer.Argument(help="A YAML file, or a name such as lisa or tabletop.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the finished repository and its checkpoints.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the newest complete checkpoint in --out.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a field, e.g. arguments.max_steps=100; may be given several times."),
    ] = None,
    card: Annotated[
        str | None,
        typer.Option(help="What the base's licences are: a known checkpoint, or a values file.  [default: its card]"),
    ] = None,
    max_image_pixels: MaxImagePixels = None,
):
    """Train a model by a recipe; every checkpoint is a complete repository, and the finished one has a card.

    Start it with `torchrun` or `accelerate launch` (`-m reasonseg train ...`) to use several processes or GPUs.
    """
    from ..conversion.compose import check_parts
    from ..trained_card import read_start, write_trained_card
    from ..training.recipe import load_recipe, require_model
    from ..training.run import run_recipe

    settings, is_main = load_recipe(recipe, overrides or ()), is_main_process()
    model = require_model(settings)
    if settings.parts is not None:
        check_parts(settings.parts)
    elif model != "tabletop":
        settings.model = resolve_model(model, option="The recipe's model")
    start = read_start(settings, card)  # before hours of training: a wrong --card is refused
    with alone_in(out) if is_main else nullcontext(), shown_log(is_main):
        finished = run_recipe(settings, out, resume, compose=_compose)
        stderr_console().print(f"Finished: {finished}", soft_wrap=True)
        if is_main:
            write_trained_card(finished, settings, start)
            _write_manifest(finished)
            if not start.is_licence_known:
                stderr_console().print(
                    f"The licence of {start.base} is not known, and the card says so. `reasonseg publish` tells what "
                    "to write before it can be public.",
                    soft_wrap=True,
                )


def _compose(parts: Mapping[str, Any], repo: Path) -> None:
    """Make the new model of a recipe's parts."""
    from ..conversion.compose import compose
    from ..conversion.progress import rich_progress

    with rich_progress(stderr_console()) as progress:
        compose(parts, repo, progress=progress)


def _write_manifest(repo: Path) -> None:
    """Check what was trained, and write down what belongs to it, so that it can be verified and published."""
    from ..conversion.progress import rich_progress
    from ..conversion.verify import add_manifest

    with rich_progress(stderr_console()) as progress:
        add_manifest(repo, replace=True, progress=progress)
