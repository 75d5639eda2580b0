"""`reasonseg convert`: turn an original checkpoint into a repository that transformers loads."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..conversion.systems import COMMON_OPTIONS, SYSTEMS, Option, PublishedSystem
from ..loading import import_object
from .failures import print_error, readable_failures, stderr_console
from .printing import printable_name, write_out


if TYPE_CHECKING:
    from ..conversion.convert import ConversionReport


app = typer.Typer(
    help="Turn an original checkpoint into a safetensors repository with its own code.",
    no_args_is_help=True,
)
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to make; it must not exist or be empty.")]


def system_command(system: PublishedSystem) -> Callable[..., None]:
    """The command that converts a system's checkpoints, with the arguments that its entry names."""
    described = system.conversion

    def command(source: str, out: Path, **given: Any) -> None:
        stated = {name: value for name, value in given.items() if value is not None}
        _convert(import_object(described.convert), source, out, stated)

    source = typer.Argument(help=described.source_help, metavar=described.source_name, show_default=False)
    own = {option.name for option in described.options}
    options = [*described.options, *(option for option in COMMON_OPTIONS if option.name not in own)]
    parameters = [
        _parameter("source", Annotated[str, source]),
        *(_option(option) for option in options if option.required),
        _parameter("out", Out),
        *(_option(option) for option in options if not option.required),
    ]
    # What typer reads the arguments from, and what names them in errors.
    command.__signature__ = inspect.Signature(parameters)  # ty: ignore[unresolved-attribute]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = described.help
    return command


def _option(option: Option) -> inspect.Parameter:
    spelling = f"--{option.name.replace('_', '-')}"
    about = typer.Option(spelling, help=option.help)
    if option.required:
        return _parameter(option.name, Annotated[option.kind, about])
    optional = option.kind if option.default is not None else option.kind | None
    return _parameter(option.name, Annotated[optional, about], option.default)


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _convert(convert: Callable[..., "ConversionReport"], source: str, out: Path, options: dict[str, Any]) -> None:
    """Run a conversion and say on stdout what it made of which sources."""
    from ..conversion.progress import rich_progress

    try:
        with rich_progress(stderr_console()) as progress:
            report = convert(source, out=out, progress=progress, **options)
    except KeyboardInterrupt:
        print_error("Interrupted; nothing was left behind. The same command starts again.")
        raise typer.Exit(130) from None
    origins = ", ".join(f"{count} from {origin}" for origin, count in report.origins.items())
    dropped = f"; {len(report.dropped)} of the source left out" if report.dropped else ""
    write_out(f"{printable_name(report.out)}: {report.num_parameters:,} parameters (tensors: {origins}{dropped})\n")


for _system in SYSTEMS.values():
    if _system.conversion is not None:
        app.command(_system.command_name)(readable_failures(system_command(_system)))


@app.command("to-original")
@readable_failures
def to_original(
    repo: Annotated[Path, typer.Argument(help="A repository that `reasonseg convert` made.", show_default=False)],
    out: Out,
    max_shard_size: Annotated[str, typer.Option(help="Largest weight file.")] = "10GB",
):
    """Write a repository's tensors back under their original names, shapes and types.

    Adapters stay merged, what was cast to a narrower type stays rounded, and zeros stand for an entry that no code
    reads; all are counted.
    """
    from ..conversion.progress import rich_progress
    from ..conversion.to_original import write_original

    with rich_progress(stderr_console()) as progress:
        report = write_original(repo, out, max_shard_size=max_shard_size, progress=progress)
    lines = [f"{printable_name(report.out)}: {report.tensors} tensors in the original layout"]
    if report.merged:
        lines.append(f"{len(report.merged)} weights contain their LoRA adapter: a merge cannot be undone")
    if report.rounded:
        lines.append(f"{len(report.rounded)} tensors were rounded by the conversion's dtype and stay so")
    if report.zeroed:
        lines.append(
            f"{len(report.zeroed)} tensors in which zeros stand for an entry that no code reads and that was left out"
        )
    if report.dropped:
        lines.append(
            f"{report.dropped} tensors of the original were left out by the conversion: nothing of it needs them"
        )
    lines += [f"{count} parameters not written: they came from {origin}" for origin, count in report.elsewhere.items()]
    write_out("\n".join(lines) + "\n")
