"""`reasonseg card`: the model card of a published checkpoint, with or without the converted repository at hand."""

from pathlib import Path
from typing import Annotated

import typer

from ..atomic_files import write_whole
from .failures import CommandError
from .printing import write_out


def card(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A published checkpoint, or a values file of your own (.yaml).  [default: what REPO says]",
            show_default=False,
        ),
    ] = None,
    repo: Annotated[
        Path | None, typer.Option(help="Its repository: the card then shows sizes, and how it was trained.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write; REPO/README.md is entered into REPO's manifest, too."),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            help="A model-index.yaml of `reasonseg evaluate`, once per data set, measured on these very weights.  "
            "[default: those that REPO's card has]",
            show_default=False,
        ),
    ] = None,
    list_names: Annotated[bool, typer.Option("--list", help="Print the names of all known checkpoints.")] = False,
):
    """Write the model card of a checkpoint: what it is, its licence chain, how to use it, and known scores."""
    from ..conversion.card import (
        card_results_of,
        card_trainings,
        card_values,
        known_cards,
        read_card,
        read_card_values,
        render_card,
    )
    from ..conversion.systems import SYSTEMS
    from ..evaluation.published_results import read_card_results

    if list_names:
        write_out("\n".join(known_cards()) + "\n")
        return
    readme = "" if repo is None else read_card(repo)
    described = name or card_values(readme)
    if described is None:
        raise CommandError(
            "It is not said which checkpoint this is. Pass its name (--list shows them), or a values file of your own."
        )
    config = None if repo is None else _read_config(repo)
    system = read_card_values(described)["system"]
    if config is not None and SYSTEMS[system].model_type != config.model_type:
        raise CommandError(
            f"{repo} holds a model of the type {config.model_type!r}, and the card is one of {system}. Pass what "
            "describes this repository; --list shows the names."
        )
    dtype = getattr(config, "dtype", None)
    measured = [one for path in results for one in read_card_results(path)] if results else card_results_of(readme)
    trainings = card_trainings(readme)
    text = render_card(system, described, config, dtype, trainings=trainings, repo=repo, measured=measured)
    if out is None:
        write_out(text)
        return
    write_whole(out, text)
    if repo is not None and out.resolve() == (repo / "README.md").resolve():
        _enter_into_manifest(repo)


def _enter_into_manifest(repo: Path) -> None:
    from ..conversion.manifest import MANIFEST, update_manifest

    if (repo / MANIFEST).is_file():
        update_manifest(repo, ["README.md"])


def _read_config(repo: Path):
    from transformers import AutoConfig

    from ..loading import load_pretrained

    if not (repo / "config.json").is_file():
        raise CommandError(f"{repo} holds no config.json. Pass the folder of a converted checkpoint.")
    return load_pretrained(AutoConfig, repo)
