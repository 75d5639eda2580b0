"""Work that threads do before its result is needed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar


Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item], workers: int = 2) -> Iterator[Result]:
    """Yield `read(item)` for every item, in order, while threads are at work on the next ones.

    Decoding, resizing, tokenising and the like leave Python's lock free, so that they go on beside each other and
    beside whatever is done with the results.

    Args:
        read (`Callable`): Called in several threads at once, but for the first item. What it raises is raised here,
            in the item's turn.
        items (`Iterable`): Taken one by one, `workers` of them ahead: so many results wait in memory.
        workers (`int`): Threads; two keep two cores busy, and more pay where reading waits for a disk or a network.
            With 0 everything happens here, and nothing ahead.
    """
    if not workers:
        yield from map(read, items)
        return
    items = iter(items)
    # Alone: tokenizers set themselves up in their first call, which no two threads may do.
    done = [read(item) for item in islice(items, 1)]
    threads = ThreadPoolExecutor(workers, thread_name_prefix="read_ahead")
    try:
        ahead = deque(threads.submit(read, item) for item in islice(items, workers))
        yield from done
        while ahead:
            result = ahead.popleft().result()
            ahead.extend(threads.submit(read, item) for item in islice(items, 1))
            yield result
    finally:
        threads.shutdown(cancel_futures=True)


__all__ = ["read_ahead"]
