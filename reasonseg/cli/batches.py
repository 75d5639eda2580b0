"""Work over many images: read ahead, compute, write behind, and tell every failure."""

import errno
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..folder_lock import FolderInUseError
from .failures import describe, path_text, print_error, stderr_console
from .processes import Processes
from .progress import step_progress


# A full or a read-only disk.
_NOTHING_CAN_BE_WRITTEN = {errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}
# Share of the time that a batch takes for which its results are waited for before the next one begins.
_PATIENCE = 0.05


class FolderWork(Protocol):
    """What a command does with each of its images. Threads read, prepare and draw several of them at a time."""

    def load(self, item: Any) -> Any:
        """Read one image; what it raises is this item's failure alone."""

    def prepare(self, loaded: list[Any]) -> Any:
        """Make the model's inputs of a batch."""

    def compute(self, prepared: Any) -> list[Any]:
        """Run the model and return a result for each image of the batch; in the thread of the command."""

    def draw(self, item: Any, loaded: Any, result: Any) -> Any:
        """Make what is to be written of one image."""

    def write(self, item: Any, drawn: Any) -> dict[str, Any]:
        """Write it and return the image's record; one after the other, in the order of the images."""


def save_all(
    work: FolderWork,
    pending: Sequence[Any],
    show: Callable[[Any, dict[str, Any]], None],
    batch_size: int,
    step: str,
    workers: int = 0,
    processes: Processes | None = None,
    among: Sequence[Any] | None = None,
) -> list[int]:
    """Do and save what is pending, show how far that is, and tell every failure on stderr.

    Args:
        work: how it is done.
        pending: paths of images, or what has such a path as `image`.
        show: called with each item and its record soon after it is saved.
        batch_size: items per call of `work.compute`.
        step: what is done, for the progress bar.
        workers: threads that read and prepare ahead, and as many that draw; with 0 one step follows the other.
        processes: who shares the work, each whole batches; they all call this with the same items.
        among: all items of the command, the pending ones among them. A batch then holds the same items however often
            the command was stopped, and so do results, to the last bit; those that are done are computed again where
            their batch is, but not written.

    Returns:
        The indices of the items that failed; in the first process those of all, else none.

    Raises:
        OSError: nothing more can be written, whatever the item.
        CommandError: another process has failed.
    """
    processes = processes or Processes()
    batches = _cut(pending, pending if among is None else among, batch_size)
    failed: list[int] = []
    saved = saved_in_order(work, processes.share(batches), workers, batch_size + workers)
    with step_progress(stderr_console(), processes.is_first) as report, closing(saved):
        report(step, 0, len(pending))
        told = 0

        def tell(more: int = 0) -> None:
            nonlocal told
            if (done := processes.count_done(more)) != told:
                report(step, told := done, len(pending))

        for (index, item), outcome in saved:
            if isinstance(outcome, Exception):
                failed.append(index)
                print_error(f"{path_text(getattr(item, 'image', item))}: {describe(outcome)}")
            else:
                show(item, outcome)
            tell(1)
        failed = processes.gather(failed, while_waiting=tell)
        tell()
        return failed


def _cut(pending: Sequence[Any], among: Sequence[Any], batch_size: int) -> list[list[tuple[int | None, Any]]]:
    """Batches of items with their numbers among the pending ones; `None` for those that are done."""
    if among is pending:
        numbered: list[tuple[int | None, Any]] = list(enumerate(pending))
    else:
        numbers = {item: number for number, item in enumerate(pending)}
        numbered = [(numbers.get(item), item) for item in among]
    batches = [numbered[start : start + batch_size] for start in range(0, len(numbered), batch_size)]
    return [batch for batch in batches if any(number is not None for number, _ in batch)]


@dataclass
class _Batch:
    """Items with what was read of them and the model's inputs, or the exception in its place."""

    items: list[Any] = field(default_factory=list)
    loaded: list[Any] = field(default_factory=list)
    prepared: Any = None
    failed: list[tuple[Any, Exception]] = field(default_factory=list)


def _read(work: FolderWork, items: Sequence[Any]) -> _Batch:
    """Read and prepare the items of a batch; what cannot be read is left out of it."""
    batch = _Batch()
    for item in items:
        try:
            loaded = work.load(item[1])
        except Exception as error:
            batch.failed.append((item, error))
        else:
            batch.items.append(item)
            batch.loaded.append(loaded)
    if batch.items:
        try:
            batch.prepared = work.prepare(batch.loaded)
        except Exception as error:
            batch.prepared = error
    return batch


def _computed(work: FolderWork, batch: _Batch) -> Iterator[tuple[Any, Any, Any]]:
    """Yield each item of a batch, what was read of it, and its result or what kept it from being done."""
    for item, error in batch.failed:
        yield item, None, error
    if not batch.items:
        return
    try:
        if isinstance(batch.prepared, Exception):
            raise batch.prepared
        results = work.compute(batch.prepared)
    except Exception as error:
        if len(batch.items) == 1:
            yield batch.items[0], None, error
            return
        # One image of the batch may be at fault: the others still get their result.
        for item, loaded in zip(batch.items, batch.loaded, strict=True):
            try:
                alone = _Batch([item], [loaded], work.prepare([loaded]))
            except Exception as its_error:
                alone = _Batch(failed=[(item, its_error)])
            yield from _computed(work, alone)
        return
    yield from zip(batch.items, batch.loaded, results, strict=True)


def saved_in_order(work: FolderWork, batches: Iterator[Any], workers: int, most: int) -> Iterator[tuple[Any, Any]]:
    """Yield each item, in order, with its record or the exception that kept it from being done or saved.

    Args:
        work: how it is done.
        batches: items with their numbers, taken as they are needed. One without a number is not saved, nor yielded.
        workers: as of `save_all`.
        most: items that may wait for being drawn and written.
    """
    from ..data.reading_ahead import read_ahead

    waiting: deque[tuple[Any, Any]] = deque()
    ahead = read_ahead(lambda items: _read(work, items), batches, workers)
    with closing(ahead), _Writers(work, workers) as writers:
        for batch in ahead:
            begun = time.monotonic()
            for item, loaded, outcome in _computed(work, batch):
                if item[0] is None:
                    continue
                failed = isinstance(outcome, Exception)
                waiting.append((item, outcome if failed else writers.save(item[1], loaded, outcome)))
            # A result is shown when it is saved, and not one batch later, where a model is slow.
            wait([saved for _, saved in waiting if isinstance(saved, Future)], _PATIENCE * (time.monotonic() - begun))
            while waiting and (len(waiting) > most or _is_done(waiting[0][1])):
                yield _settled(*waiting.popleft())
        while waiting:
            yield _settled(*waiting.popleft())


def _is_done(saved: Any) -> bool:
    return not isinstance(saved, Future) or saved.done()


def _settled(item: Any, saved: Any) -> tuple[Any, Any]:
    """What became of an item; an error after which nothing more can be written is raised."""
    try:
        return item, saved.result() if isinstance(saved, Future) else saved
    except Exception as error:
        if isinstance(error, FolderInUseError) or getattr(error, "errno", None) in _NOTHING_CAN_BE_WRITTEN:
            raise
        return item, error


class _Writers:
    """Threads that draw, and one that writes; without them everything is done at once."""

    def __init__(self, work: FolderWork, workers: int):
        self.work = work
        self._drawing = ThreadPoolExecutor(workers, thread_name_prefix="draw") if workers else None
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="write") if workers else None

    def save(self, item: Any, loaded: Any, result: Any) -> Future:
        """Draw and write one item; its record is there when it is needed."""
        if self._drawing is None:
            saved: Future = Future()
            try:
                saved.set_result(self.work.write(item, self.work.draw(item, loaded, result)))
            except Exception as error:
                saved.set_exception(error)
            return saved
        drawn = self._drawing.submit(self.work.draw, item, loaded, result)
        return self._writing.submit(lambda: self.work.write(item, drawn.result()))

    def __enter__(self) -> "_Writers":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        # What is computed is still written where somebody stops the command, but not onto a full disk.
        is_hopeless = isinstance(error, OSError)
        for threads in filter(None, (self._drawing, self._writing)):
            threads.shutdown(cancel_futures=is_hopeless)


__all__ = ["FolderWork", "save_all", "saved_in_order"]
