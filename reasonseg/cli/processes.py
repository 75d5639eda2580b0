"""The processes that `torchrun` or `accelerate launch` starts for one command, and how they share its work.

They agree through the key-value store that every such launch has. There is no collective operation: a process never
waits for another one but for the first, which decides what is to be done, and which waits for all at the end.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import typer

from .failures import CommandError


_FAILED = "failed"
# Seconds between two looks at what other processes have done.
_PAUSE = 0.2


def is_main_process() -> bool:
    """Return whether this is the one of the processes started by `torchrun` that writes what all share."""
    return int(os.environ.get("RANK", "0")) == 0


def local_index() -> int | None:
    """Return the number of this process on its machine; `None` where it is the only one of the command."""
    return int(os.environ.get("LOCAL_RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


class Processes:
    """
    All processes of one command, as one of them sees them. By default it is the only one.

    Args:
        index: number of this process.
        count: of all.
        store: a `torch.distributed.Store` that all of them use, for this command alone.
    """

    def __init__(self, index: int = 0, count: int = 1, store: Any = None):
        self.index, self.count = index, count
        self._store = store
        self._done = self._agreed = 0

    @property
    def is_first(self) -> bool:
        """Whether this process decides what is to be done, and reports on all."""
        return self.index == 0

    def agree(self, decide: Callable[[], Any]) -> Any:
        """Return in all processes what `decide` returns in the first one, as JSON keeps it; may be called again."""
        key = f"agreed/{self._agreed}"
        self._agreed += 1
        if self.is_first:
            decided = json.dumps(decide())
            if self._store is not None:
                self._store.set(key, decided)
        else:
            self.wait_for_first(key)
            decided = self._store.get(key)
        return json.loads(decided)

    def wait_for_first(self, key: str = "agreed/0") -> None:
        """Wait until the first process has decided something.

        Raises:
            Exit: it has failed, and said why.
        """
        self._wait_for(key, "ended/0")
        if self._has_failed(0):
            raise typer.Exit(1)

    def share(self, batches: Sequence[Any]) -> Iterator[Any]:
        """Yield the batches that this process does: the next one that nobody has taken, as long as there is one."""
        if self._store is None:
            yield from batches
            return
        while (number := self._store.add("taken", 1) - 1) < len(batches):
            yield batches[number]

    def count_done(self, more: int = 0) -> int:
        """Count what this process has done, and return how much all of them have."""
        if self._store is not None:
            return self._store.add("done", more)
        self._done += more
        return self._done

    def gather(self, values: list[Any], while_waiting: Callable[[], Any] = lambda: None) -> list[Any]:
        """Return in the first process what all of them give, when they have ended; in the others nothing.

        Args:
            values: of this process, as JSON types.
            while_waiting: called now and then.

        Raises:
            CommandError: a process has failed.
        """
        if self._store is None:
            return values
        if not self.is_first:
            self._store.set(f"ended/{self.index}", json.dumps(values))
            return []
        for index in range(1, self.count):
            key = f"ended/{index}"
            self._wait_for(key, while_waiting=while_waiting)
            if self._has_failed(index):
                raise CommandError(
                    f"Process {index} of {self.count} has failed, see what it said. What was finished is kept; the "
                    "same command resumes there."
                )
            values = values + json.loads(self._store.get(key))
        return values

    def say_failed(self) -> None:
        """Let nobody wait for this process."""
        if self._store is not None:
            with suppress(RuntimeError):  # the first process, which may hold the store, has ended
                self._store.set(f"ended/{self.index}", _FAILED)

    def _wait_for(self, *keys: str, while_waiting: Callable[[], Any] = lambda: None) -> None:
        """Wait until one of the keys is there."""
        while not any(self._store.check([key]) for key in keys):
            while_waiting()
            time.sleep(_PAUSE)

    def _has_failed(self, index: int) -> bool:
        key = f"ended/{index}"
        return self._store.check([key]) and self._store.get(key) == _FAILED.encode()


@contextmanager
def launched_processes() -> Iterator[Processes]:
    """Give the processes that were started for this command; they are told if this one fails in the block.

    All but the first wait for what it decides: what is wrong with the command is then said once.
    """
    processes = Processes()
    if local_index() is not None:
        from torch.distributed import PrefixStore, rendezvous

        store, index, count = next(rendezvous("env://"))
        processes = Processes(index, count, PrefixStore("reasonseg", store))
        if not processes.is_first:
            processes.wait_for_first()
    try:
        yield processes
    except BaseException:
        processes.say_failed()
        raise


__all__ = ["Processes", "is_main_process", "launched_processes", "local_index"]
