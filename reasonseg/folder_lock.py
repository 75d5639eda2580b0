"""Keep two processes from writing to one folder at the same time."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


LOCK_NAME = ".reasonseg.lock"
# Longer than any single result takes to write.
_PATIENCE = 300.0


class FolderInUseError(OSError):
    """Another process writes to the folder."""


class FolderLock:
    """
    A lock that one process at a time holds; the system takes it from a process that is killed.

    Args:
        folder (`Path`): Made when the lock is first taken.
        name (`str`, *optional*): Of the lock's file, where it stands for something else than the whole folder.
    """

    def __init__(self, folder: Path, name: str = LOCK_NAME):
        from filelock import FileLock

        self.folder = folder
        self.path = folder / name
        self._lock = FileLock(self.path)

    @contextmanager
    def held(self, patience: float = _PATIENCE) -> Iterator[None]:
        """Hold the lock in a block; blocks may be nested.

        Args:
            patience (`float`): Seconds to wait for it.

        Raises:
            FolderInUseError: The time is over.
        """
        from filelock import Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=patience)
        except Timeout:
            raise FolderInUseError(
                f"Another process writes to {str(self.folder)!r}. Wait until it has finished, or use another folder."
            ) from None
        try:
            yield
        finally:
            self._lock.release()

    def remove(self) -> None:
        """Remove the lock's file, unless another process holds it now; it is made again where it is needed."""
        if not self.path.exists():
            return
        try:
            # Whoever opened the file before and gets the lock now sees that it is gone, and makes a new one.
            with self.held(patience=0):
                self.path.unlink(missing_ok=True)
        except OSError:  # of the system, or FolderInUseError
            return


@contextmanager
def alone_in(folder: Path, patience: float = 6.0) -> Iterator[None]:
    """Hold the lock of a folder during a whole run; a folder that stays empty is removed again.

    Args:
        folder (`Path`): Made if it does not exist.
        patience (`float`): Seconds to wait; what a killed run had started may need some to end.

    Raises:
        FolderInUseError: Another run holds it.
    """
    lock, is_new = FolderLock(folder), not folder.exists()
    try:
        with lock.held(patience):
            yield
    finally:
        lock.remove()
        if is_new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


__all__ = ["LOCK_NAME", "FolderInUseError", "FolderLock", "alone_in"]
