"""A file that is opened once and mapped, so that the bytes that are checked are the bytes that are used."""

from __future__ import annotations

import mmap
import os
import zlib
from pathlib import Path

import torch

from .errors import ConversionError
from .sniffing import check_regular_mode


class MappedFile:
    """A regular file, mapped as a whole; pages are read when they are needed.

    The name is used once, when it is opened: what another program puts there later is not seen. Only a program that
    writes into the file itself meanwhile can change what was checked.

    Args:
        path (`Path`): The file.

    Attributes:
        size (`int`): Its length in bytes.

    Raises:
        ConversionError: It cannot be opened, is empty, or is no regular file.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            # A pipe would wait for a writer.
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise ConversionError(
                f"The file cannot be read ({error.strerror}).", path=path, next_step="Check its permissions."
            ) from error
        try:
            state = os.fstat(descriptor)
            check_regular_mode(state.st_mode, path)
            self.size = state.st_size
            # A copy on write: a tensor that is written to by mistake never reaches the file.
            self._map = mmap.mmap(descriptor, self.size, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise ConversionError(f"The file cannot be mapped into memory ({error}).", path=path) from error
        finally:
            os.close(descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """A copy of some bytes; fewer where the file ends."""
        return self._map[max(offset, 0) : max(offset + size, 0)]

    def crc32(self, offset: int, size: int) -> int:
        """The CRC-32 of some bytes."""
        self._announce(offset, size)
        with memoryview(self._map) as whole, whole[offset : offset + size] as part:
            return zlib.crc32(part)

    def tensor(self, offset: int, size: int, dtype: torch.dtype) -> torch.Tensor:
        """Some bytes as a flat tensor: a view of the file, or a copy where they are not aligned.

        Args:
            offset, size (`int`): Which bytes; `size` is a multiple of the item's.
            dtype (`torch.dtype`): What they hold.
        """
        if not size:
            return torch.empty(0, dtype=dtype)
        data = torch.frombuffer(self._map, dtype=torch.uint8, count=size, offset=offset)
        return (data.clone() if offset % dtype.itemsize else data).view(dtype)

    def release(self) -> None:
        """Give back the memory of the pages that were read; they are read again when they are used again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def _announce(self, offset: int, size: int) -> None:
        """Let the system fetch all of a tensor from the disk while its first bytes are compared."""
        if size and hasattr(mmap, "MADV_WILLNEED"):
            begin = offset - offset % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, begin, offset + size - begin)
