"""What reaches the terminal: names and texts from others, with every control character made visible."""

import json
import logging
import re
import sys
import warnings
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment


# Control characters but for tab and line feed, what turns the direction of writing, other line ends, invisible copies
# of ASCII, and halves of characters, as which Python reads names that are no text. A terminal obeys the first; the
# others show a name as another one.
_COMMANDS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """A text in which control characters stand as `\\x1b` and the like; ordinary text stays as it is."""
    return _COMMANDS.sub(lambda found: escaped(found[0]), text)


def printable_name(name: Any) -> str:
    """As `printable`, for what stands within a line: the name of a file or a field, which may hold line feeds, too."""
    return printable(str(name)).replace("\n", "\\n").replace("\t", "\\t")


def printable_json(value: Any, **options: Any) -> str:
    """JSON that a terminal can show; a reader gets the value unchanged.

    Args:
        value: what to write.
        options: of `json.dumps`.
    """
    text = json.dumps(value, ensure_ascii=False, **options)
    return _COMMANDS.sub(lambda found: json.dumps(found[0])[1:-1], text)


def write_out(text: str) -> None:
    """Write to standard output at once; what no terminal should see is made visible, also in a pipe that may lead to
    one."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


class SafeConsole(Console):
    """A console of rich that shows control characters in what it is given; its own colours and bars work."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def stdout_console() -> SafeConsole:
    """Return a console for answers that are coloured on a terminal."""
    return SafeConsole(highlight=False, markup=False)


def guard_messages() -> None:
    """Let the log and the warnings of libraries, which name files and fields, pass through `printable` as well."""
    original = warnings.formatwarning
    warnings.formatwarning = lambda *args, **kwargs: printable(original(*args, **kwargs))
    logging.setLogRecordFactory(_SafeRecord)


class _SafeRecord(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802 (the name that logging calls)
        return printable(super().getMessage())


def escaped(character: str) -> str:
    r"""A character as `\x1b` and the like."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps the byte 0xNN of a name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
