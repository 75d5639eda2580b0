"""The one error every conversion step raises."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class ConversionError(Exception):
    """A checkpoint cannot be converted.

    The message is one readable paragraph: what was found, why it cannot be used and what to do next.

    Args:
        cause (`str`): What is wrong, in one or two sentences.
        path (`str` or `os.PathLike`, *optional*): The file or folder the problem was found in.
        next_step (`str`, *optional*): What the user can do about it.
    """

    def __init__(self, cause: str, *, path: str | os.PathLike | None = None, next_step: str | None = None):
        self.cause = cause
        self.path = None if path is None else os.fspath(path)
        self.next_step = next_step
        parts = [f"{self.path}: {cause}" if self.path else cause, next_step or ""]
        super().__init__(" ".join(part.strip() for part in parts if part.strip()))

    def at(self, path: str | os.PathLike) -> ConversionError:
        """The same error with the file it concerns, where it does not name one yet."""
        if self.path is not None:
            return self
        return ConversionError(self.cause, path=path, next_step=self.next_step)


@contextmanager
def refusing(cause: str, *, path: str | os.PathLike | None = None, next_step: str | None = None) -> Iterator[None]:
    """Turn whatever a library raises about a file into a `ConversionError`; `reasonseg --debug` shows the original.

    Args:
        cause (`str`): What cannot be used; the library's own words follow in brackets.
        path, next_step: See `ConversionError`.
    """
    try:
        yield
    except ImportError:
        raise
    except ConversionError as error:
        raise (error if path is None else error.at(path)) from error.__cause__
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ConversionError(f"{cause} ({said}).", path=path, next_step=next_step) from error


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust has panicked, which `except Exception` does not catch."""
    return type(error).__name__ == "PanicException"
