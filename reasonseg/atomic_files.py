"""Write a file so that a stop at any moment leaves the old one, or the new one, and nothing between."""

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


# Bytes of a file name that every usual file system takes.
LONGEST_NAME = 255
# A draft of this process that is older was left by another one, which had the same number.
_STARTED = time.time()
_DRAFT = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.partial(\.[^.]*)?", re.DOTALL)


@contextmanager
def written_whole(path: str | os.PathLike, suffix: str = "") -> Iterator[Path]:
    """Give a temporary sibling of `path` to write to, and rename it to `path` when the block ends without an error.

    Args:
        path (`str` or `os.PathLike`): The file; missing folders are made.
        suffix (`str`, *optional*, defaults to `""`): Ending of the temporary's name, for a writer that reads the
            format off it. Without one nobody who looks for files by their ending takes the temporary for a whole one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # hidden, and one for each process
    ending = f".{os.getpid()}.partial{suffix}"
    draft = path.with_name(f".{path.name}{ending}")
    if len(os.fsencode(draft.name)) > LONGEST_NAME:
        draft = path.with_name(f".{_short(path.name)}{ending}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a whole file at once: text as UTF-8, bytes as they are; see [`written_whole`]."""
    with written_whole(path) as draft:
        draft.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def remove_drafts(folder: str | os.PathLike, name: str | None = None) -> None:
    """Remove what killed processes have left of [`written_whole`] in a folder; drafts of running ones stay.

    Args:
        folder (`str` or `os.PathLike`): The folder alone, without those in it; it need not exist.
        name (`str`, *optional*): Only drafts of the file with this name.
    """
    names = None if name is None else (name, _short(name))
    try:
        with os.scandir(folder) as entries:
            files = (entry for entry in entries if entry.is_file(follow_symlinks=False))
            drafts = [(entry, match) for entry in files if (match := _DRAFT.fullmatch(entry.name))]
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry, match in drafts:
        if (names is None or match["name"] in names) and not _is_being_written(entry, int(match["process"])):
            Path(entry).unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Whether a process with this number runs on this machine; elsewhere than on POSIX systems it is taken to."""
    if os.name != "posix":  # asking there would stop the process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _short(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def _is_being_written(draft: os.DirEntry, process: int) -> bool:
    try:
        modified = draft.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return False
    if process == os.getpid():
        # In containers every run may have the same number.
        return modified >= _STARTED
    return is_running(process) and (os.name == "posix" or time.time() - modified < 24 * 3600)


__all__ = ["LONGEST_NAME", "is_running", "remove_drafts", "write_whole", "written_whole"]
