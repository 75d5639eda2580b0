"""`reasonseg compose`: make a complete repository of parts that has learned nothing yet."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer

from ..conversion.systems import SYSTEMS, Option
from .convert import Out
from .failures import print_error, stderr_console
from .printing import printable_name, write_out


_HELP = """Put a vision-language model and a segmenter together into a repository that has learned nothing yet.

Tokens, embeddings, projector, processor, chat template, code, card and manifest are all there, as in a converted
repository; `reasonseg train` starts from it. What is new is drawn by --seed.
"""


def compose_command() -> Callable[..., None]:
    """The command, with the options of all systems that can be made of parts."""
    composable = {
        system.command_name: system.composition for system in SYSTEMS.values() if system.composition is not None
    }
    listed = ", ".join(composable)

    def command(system: str, out: Path, **given: Any) -> None:
        stated = {name: value for name, value in given.items() if value is not None and value is not False}
        _compose(system, out, stated)

    name = typer.Option("--system", help=f"What to make: {listed}.", show_default=False)
    parameters = [
        inspect.Parameter("system", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[str, name]),
        inspect.Parameter("out", inspect.Parameter.KEYWORD_ONLY, annotation=Out),
    ]
    options: dict[str, list[tuple[str, Option]]] = {}
    for system, composition in composable.items():
        for option in composition.all_options:
            options.setdefault(option.name, []).append((system, option))
    parameters += [_option(entries, len(composable)) for entries in options.values()]
    command.__signature__ = inspect.Signature(parameters)  # ty: ignore[unresolved-attribute]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = _HELP
    return command


def _option(entries: list[tuple[str, Option]], systems: int) -> inspect.Parameter:
    """One option of the command, of all systems that take it; which values they allow is checked with the system."""
    option = entries[0][1]
    kind = bool if option.kind is bool else str if get_origin(option.kind) is not None else option.kind
    of = "" if len(entries) == systems else f"  For {', '.join(system for system, _ in entries)}."
    spelling = f"--{option.name.replace('_', '-')}"
    about = typer.Option(spelling, help=option.help + of)
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, about]
    )


def _compose(system: str, out: Path, options: dict[str, Any]) -> None:
    """Make it, and say on stdout what it was made of."""
    from ..conversion.compose import compose
    from ..conversion.progress import rich_progress

    try:
        with rich_progress(stderr_console()) as progress:
            report = compose({"system": system, **options}, out, progress=progress)
    except KeyboardInterrupt:
        print_error("Interrupted; nothing was left behind. The same command starts again.")
        raise typer.Exit(130) from None
    origins = ", ".join(f"{count} from {origin}" for origin, count in report.origins.items() if origin != "new")
    new = report.origins.get("new", 0)
    learned = f"; {new} new, which have learned nothing yet" if new else ""
    write_out(f"{printable_name(report.out)}: {report.num_parameters:,} parameters (tensors: {origins}{learned})\n")
