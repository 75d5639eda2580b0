"""`reasonseg card`: the model card of a published checkpoint, with or without the converted repository at hand."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..whole_files import write_whole
from .failures import CommandError


def card(
    name: Annotated[
        str | None, typer.Argument(help="A published checkpoint.  [default: what REPO says]", show_default=False)
    ] = None,
    repo: Annotated[Path | None, typer.Option(help="Its converted repository: the card then shows sizes.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write.  [default: standard output]")] = None,
    list_names: Annotated[bool, typer.Option("--list", help="Print the names of all known checkpoints.")] = False,
):
    """Write the model card of a checkpoint: what it is, its licence chain, how to use it, and known scores."""
    from ..conversion.card import card_name, known_cards, read_card_values, render_card

    if list_names:
        sys.stdout.write("\n".join(known_cards()) + "\n")
        return
    if name is None and repo is not None and (repo / "README.md").is_file():
        name = card_name((repo / "README.md").read_text(encoding="utf-8"))
    if name is None:
        raise CommandError("It is not said which checkpoint this is. Pass its name; --list shows them.")
    config = None if repo is None else _read_config(repo)
    system = read_card_values(name)["system"]
    text = render_card(system, name, config, getattr(config, "dtype", None))
    if out is None:
        sys.stdout.write(text)
    else:
        write_whole(out, text)


def _read_config(repo: Path):
    from transformers import AutoConfig

    from ..loading import load_pretrained

    if not (repo / "config.json").is_file():
        raise CommandError(f"{repo} holds no config.json. Pass the folder of a converted checkpoint.")
    return load_pretrained(AutoConfig, repo)
