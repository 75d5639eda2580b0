"""Failures as one readable paragraph on stderr, never a traceback unless asked for."""

import functools
import inspect
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import typer
from typer.models import OptionInfo

from .printing import SafeConsole, escaped, printable


_show_tracebacks = False


class CommandError(Exception):
    """A command cannot continue. The message is one paragraph: what was given, what is allowed, what to do next."""


def stderr_console(is_shown: bool = True) -> SafeConsole:
    """Return a console for messages and progress, which says nothing unless it is shown; results go to stdout."""
    # without markup: a path may hold [what would be a style]
    return SafeConsole(stderr=True, highlight=False, markup=False, quiet=not is_shown)


def print_error(message: str) -> None:
    """Print `message` to stderr as one paragraph."""
    text = _escape(printable(" ".join(message.split())))
    # soft_wrap: a path or a command cut by a line break cannot be copied
    stderr_console().print(f"[bold red]error:[/] {text}", soft_wrap=True, markup=True)


@contextmanager
def shown_log(is_shown: bool = True) -> Iterator[None]:
    """Show on stderr what this package logs in this block: also what is no warning, such as what a data set leaves
    out. Workers that are forked in it show theirs. A log that the caller has set up takes its place."""
    log = logging.getLogger(__package__.split(".")[0])
    if not is_shown or logging.getLogger().handlers:
        yield
        return
    handler, level = _StderrLog(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)


class _StderrLog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        stderr_console().print(printable(self.format(record)), soft_wrap=True)


def path_text(path: str | os.PathLike) -> str:
    r"""Return a path as text that every file and terminal takes: bytes that are not UTF-8 become `\xNN`."""
    return re.sub("[\ud800-\udfff]", lambda found: escaped(found[0]), os.fspath(path))


def refuse_address(out: Path) -> None:
    """
    Raises:
        CommandError: what should be a folder for results is an address, such as that of a repository on the Hub.
    """
    if re.match(r"[a-z][a-z0-9+]+:/", os.fspath(out)):
        name = path_text(out).replace(":/", "://", 1)  # of its two slashes a path keeps one
        raise CommandError(f"--out {name!r} is an address. Name a folder; only `segment --dataset` writes to the Hub.")


def show_tracebacks(show: bool) -> None:
    """Set whether `readable_failures` lets exceptions through (`reasonseg --debug`)."""
    global _show_tracebacks
    _show_tracebacks = show


def tracebacks_are_shown() -> bool:
    """Whether `reasonseg --debug` was typed."""
    return _show_tracebacks


def readable_failures(command: Callable) -> Callable:
    """Wrap a command: transformers knows this package's classes before it starts, every exception becomes one
    paragraph on stderr and exit code 1, and every warning of this package one paragraph."""

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        try:
            # Not at the top: `--help` does not wait for torch.
            from ..registration import register

            register()
            with warnings.catch_warnings():
                warnings.showwarning = functools.partial(_show_warning, warnings.showwarning, set())
                return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            print_error("Interrupted. What was finished is kept; the same command resumes there.")
            raise typer.Exit(130) from None
        except BaseException as error:
            # A library written in Rust that gives up raises what is not an Exception.
            if _show_tracebacks or not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
                raise
            print_error(describe(error, option_names(command)))
            raise typer.Exit(1) from None

    return wrapped


def option_names(command: Callable) -> dict[str, str]:
    """Return the options of a command by the names of their Python arguments, which are also the library's names."""
    names = {}
    for name, parameter in inspect.signature(command).parameters.items():
        for about in getattr(parameter.annotation, "__metadata__", ()):
            if isinstance(about, OptionInfo):
                # Inside Annotated there is no default, so that the first spelling stands in its place.
                spellings = (about.default, *(about.param_decls or ()))
                written = [given for given in spellings if isinstance(given, str) and given.startswith("--")]
                names[name] = written[0].split("/")[0] if written else f"--{name.replace('_', '-')}"
    return names


def in_options(message: str, options: Mapping[str, str]) -> str:
    """Name the options that are typed where the library names its arguments.

    `vision_tower=` becomes `--vision-tower`, `heads is 'x'` becomes `--heads is 'x'`, in a sentence or after one.

    Args:
        message: what the library says.
        options: see `option_names`.
    """
    if not options:
        return message
    names = "|".join(map(re.escape, options))
    message = re.sub(
        rf"(?<![\w./-])({names})=(?=(['\"])|[\s.,;:)]|$)",
        lambda found: options[found[1]] + (" " if found[2] else ""),
        message,
    )
    # Only where a sentence begins, as other words may be called the same: "The base is ...".
    return re.sub(rf"(?:^|(?<=[.:;(] )|(?<=\())({names})(?= is ['\"\[\d-])", lambda found: options[found[1]], message)


def _show_warning(
    show: Callable, told: set[str], message: Warning | str, category: type[Warning], *args, **kwargs
) -> None:
    """Print a warning of this package once and without the line of code it comes from; `show` prints all others."""
    text = str(message)
    if category.__module__.split(".")[0] != __package__.split(".")[0]:
        show(message, category, *args, **kwargs)
    elif text not in told:
        told.add(text)
        text = _escape(printable(text))
        stderr_console().print(f"[bold yellow]note:[/] {text}", soft_wrap=True, markup=True)


def describe(error: BaseException, options: Mapping[str, str] | None = None) -> str:
    """Say in one paragraph what `error` means for the person at the terminal.

    Args:
        error: what ended the command.
        options: see `option_names`; those of the command.
    """
    message = in_options(str(error).strip(), options or {})
    # Also where it stands inside the message of an error that names file and line.
    message = message.replace("`max_image_pixels`", "--max-image-pixels")
    # Errors that this package or its dependencies word for users; the class name adds nothing there.
    if message and (isinstance(error, (CommandError, ValueError, OSError)) or _is_a(error, "ConversionError")):
        return message
    name = type(error).__name__
    return f"{name}: {message or 'no further message'}. Run `reasonseg --debug ...` for the traceback."


def _is_a(error: BaseException, name: str) -> bool:
    # Not imported: that would load torch before `--help` is answered.
    return any(cls.__name__ == name for cls in type(error).__mro__)


def _escape(text: str) -> str:
    # rich reads [SEG] as a style tag
    return text.replace("[", r"\[")
