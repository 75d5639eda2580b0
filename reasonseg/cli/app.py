"""The commands in one table."""

import io
import sys
from typing import Annotated

import typer

from .. import __version__
from . import (
    ask,
    card,
    chat,
    compose,
    convert,
    demo,
    evaluate,
    export,
    inspect,
    mask,
    merge,
    publish,
    reasonseg_masks,
    report,
    restore,
    segment,
    serve,
    train,
    verify,
    web_app,
)
from .failures import readable_failures, show_tracebacks
from .printing import guard_messages, write_out


app = typer.Typer(
    name="reasonseg",
    help="Segmentation by language: ask about an image, get text and masks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a docstring paragraph
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("segment")(readable_failures(segment.segment))
app.command("export")(readable_failures(export.export))
app.command("report")(readable_failures(report.report))
app.command("chat")(readable_failures(chat.chat))
app.command("merge")(readable_failures(merge.merge))
app.command("ask")(readable_failures(ask.ask))
app.command("serve")(readable_failures(serve.serve))
app.command("mask")(readable_failures(mask.mask))
app.command("app")(readable_failures(web_app.app))
app.add_typer(convert.app, name="convert")
app.command("compose")(readable_failures(compose.compose_command()))
app.command("inspect")(readable_failures(inspect.inspect))
app.command("verify")(readable_failures(verify.verify))
app.command("card")(readable_failures(card.card))
app.command("publish")(readable_failures(publish.publish))
app.command("restore")(readable_failures(restore.restore))
app.command("evaluate")(readable_failures(evaluate.evaluate))
app.command("reasonseg-masks")(readable_failures(reasonseg_masks.reasonseg_masks))
app.command("demo")(readable_failures(demo.demo))
app.command("train")(readable_failures(train.train))


def _print_version(wanted: bool) -> None:
    if wanted:
        write_out(f"reasonseg {__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show Python's traceback with an error.")] = False,
):
    """Options given before the command."""
    show_tracebacks(debug)


def main() -> None:
    """Run the command line; the process ends with 0 only on success."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no answer and no name ends a run that cannot be shown
    guard_messages()
    app(prog_name="reasonseg")


__all__ = ["__version__", "app", "main"]
