"""Write a file so that a stop at any moment leaves the old one, or the new one, and nothing between."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial{suffix}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a whole file at once: text as UTF-8, bytes as they are; see [`written_whole`]."""
    with written_whole(path) as draft:
        draft.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


__all__ = ["write_whole", "written_whole"]
