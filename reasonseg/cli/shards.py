"""`--shard 3/64`: the part of a command that one machine does, and what it leaves behind to say that it has ended.

Which part that is follows from the numbers alone: machines need not know of each other. They may write to one folder
or to a folder each, which `reasonseg merge` puts together.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .failures import CommandError


ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="K/N",
        help="Do the K-th of N parts, as 3/64, K from 1: for the tasks of an array job. See `reasonseg merge`.",
        show_default=False,
    ),
]
_ENDED = re.compile(r"\.shard-(\d{5})-of-(\d{5})\.ended")


@dataclass(frozen=True)
class Shard:
    """
    Args:
        index: which part, from 0.
        count: of how many.
    """

    index: int = 0
    count: int = 1

    @property
    def mark(self) -> str:
        """Name of the file that says that the part is done, as far as it can be."""
        return f".shard-{self.index + 1:05}-of-{self.count:05}.ended"

    def of_batches(self, items: Sequence[Any], batch_size: int) -> Sequence[Any]:
        """Return this part of the items, which begins where a batch begins: no batch is another one than in a single
        run."""
        batches = -(-len(items) // batch_size)
        start, end = (batches * index // self.count * batch_size for index in (self.index, self.index + 1))
        return items[start:end]

    def within(self, index: int, count: int) -> "Shard":
        """Return the part of one of several processes that share this part."""
        return Shard(self.index * count + index, self.count * count)

    def takes(self, source: int, part: int, sources: int) -> bool:
        """Whether it does a part of a source of a data set that has so many.

        Whole sources go round, since whoever does any of one has to read it; only where there are more shards than
        sources does one source go to several.
        """
        if self.count <= sources:
            return source % self.count == self.index
        sharing = range(source, self.count, sources)
        return self.index in sharing and sharing[part % len(sharing)] == self.index


def read_shard(given: str | None) -> Shard:
    """Read the value of `--shard`.

    Raises:
        CommandError: it is not `K/N` with K from 1 to N.
    """
    if given is None:
        return Shard()
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", given)
    if found is None or not 1 <= int(found[1]) <= int(found[2]) < 10**5:
        raise CommandError(
            f"--shard {given!r} is not K/N with K from 1 to N, such as 3/64. Shards are counted from 1."
        )
    return Shard(int(found[1]) - 1, int(found[2]))


def ended_shards(folder: Path) -> dict[Path, Shard]:
    """Return the marks of shards in a folder, each with its shard."""
    marks = {path: _ENDED.fullmatch(path.name) for path in folder.glob(".shard-*")}
    return {path: Shard(int(found[1]) - 1, int(found[2])) for path, found in sorted(marks.items()) if found}


def mark_ended(folder: Path, shard: Shard, is_whole: bool) -> None:
    """Leave the mark of a shard; when all shards have left theirs in one folder, or it is whole, they go.

    Only the holder of the folder's lock may do so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / shard.mark).touch()
    marks = [path for path, ended in ended_shards(folder).items() if ended.count == shard.count]
    if is_whole or len(marks) == shard.count:
        for path in marks:
            path.unlink(missing_ok=True)


__all__ = ["Shard", "ShardOption", "ended_shards", "mark_ended", "read_shard"]
