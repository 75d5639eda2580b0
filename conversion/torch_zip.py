"""The zip container of torch.save: refused where torch cannot have written it, checked against its own CRC-32 sums."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import ConversionError


_MAX_ENTRIES = 100_000
_MAX_DIRECTORY_BYTES = 16 << 20
# About 18,000 tensors. A pickle can cost sixty times its size in memory, so the cap also bounds that.
_MAX_PICKLE_BYTES = 2 << 20
# torch.save stores tensors uncompressed; the slack pays for the directory of a file of many small tensors.
_MAX_UNPACKED_RATIO = 1.05
_END, _END_SIZE, _MAX_COMMENT = b"PK\x05\x06", 22, 65_535
_END64_LOCATOR, _END64_LOCATOR_SIZE, _END64_SIZE = b"PK\x06\x07", 20, 56
# Of the header in front of an entry: its length without name and extra field, and where their lengths stand.
_LOCAL_HEADER_SIZE, _NAME_LENGTH = 30, 26
_CHUNK = 1 << 22
_DAMAGE = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError, struct.error)
_DOWNLOAD_AGAIN = "Download the file again and compare its size with the one its page states."


def check_torch_zip(path: Path, size: int) -> None:
    """Refuse zip files that torch.save cannot have written, before torch reads them.

    Args:
        path (`Path`): The file.
        size (`int`): Its size in bytes.

    Raises:
        ConversionError: The archive is damaged, compressed, too large when unpacked, or not a state dict.
    """
    try:
        directory = _directory_size(path, size)
        entries = _entries(path) if directory <= _MAX_DIRECTORY_BYTES else []
    except _DAMAGE as error:
        raise _damaged(path, "its directory at the end cannot be read") from error
    names = [entry.filename for entry in entries]
    pickles = [entry for entry in entries if entry.filename.count("/") == 1 and entry.filename.endswith("/data.pkl")]
    cause = None
    if directory > _MAX_DIRECTORY_BYTES:
        cause = f"The archive's directory has {directory} bytes; at most {_MAX_DIRECTORY_BYTES} are read."
    elif len(entries) > _MAX_ENTRIES:
        cause = f"The archive has {len(entries)} entries; at most {_MAX_ENTRIES} are read."
    elif any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        cause = "The archive is compressed, which torch.save never does."
    elif any(entry.flag_bits & 1 for entry in entries):
        cause = "The archive is encrypted."
    elif sum(entry.file_size for entry in entries) > _MAX_UNPACKED_RATIO * size:
        cause = "The archive claims more data than the file holds."
    elif repeated := [name for name, count in Counter(names).items() if count > 1]:
        cause = f"The archive holds {repeated[0]!r} twice."
    elif any(name.endswith("/constants.pkl") for name in names):
        cause = "This is a TorchScript program, not a state dict."
    elif len(pickles) != 1:
        cause = "This zip archive was not written by torch.save."
    elif pickles[0].file_size > _MAX_PICKLE_BYTES:
        cause = f"The list of tensors has {pickles[0].file_size} bytes; at most {_MAX_PICKLE_BYTES} are read."
    if cause is not None:
        raise ConversionError(
            cause,
            path=path,
            next_step="Pass the state dict as torch.save or safetensors wrote it; unpack other archives first.",
        )


@dataclass(frozen=True)
class StoredBytes:
    """Where an entry's content lies in the file, and what torch.save says of it.

    Args:
        name (`str`): The entry's name, for messages.
        offset (`int`): Position of its first byte in the file.
        size (`int`): Its length in bytes.
        crc (`int`): Its CRC-32.
    """

    name: str
    offset: int
    size: int
    crc: int


class StorageSums:
    """Compares the storages of a mapped file with the CRC-32 that torch.save stored, which torch itself does not.

    Everything but the tensors' bytes is compared at once. Those are compared one storage at a time, where torch has
    mapped them, so that a conversion reads them from the disk once.

    Args:
        path (`Path`): A file that `check_torch_zip` accepts.

    Raises:
        ConversionError: Bytes were changed since the file was saved.
    """

    def __init__(self, path: Path):
        self._path = path
        self._whole_file_is_right = False
        self._right: set[int] = set()  # offsets of entries
        self._by_offset = {entry.offset: entry for entry in self._check_entries(lambda name: "/data/" not in name)}
        self._start: int | None = None

    def _check_entries(self, chosen: Callable[[str], bool]) -> list[StoredBytes]:
        """Read the chosen entries, and of all entries what stands before their content."""
        stored, entry = [], None
        try:
            with zipfile.ZipFile(self._path) as archive, self._path.open("rb") as raw:
                for entry in archive.infolist():
                    with archive.open(entry) as file:  # compares the entry's own header with the directory
                        while chosen(entry.filename) and file.read(_CHUNK):
                            pass
                    raw.seek(entry.header_offset + _NAME_LENGTH)
                    begin = entry.header_offset + _LOCAL_HEADER_SIZE + sum(struct.unpack("<HH", raw.read(4)))
                    stored.append(StoredBytes(entry.filename, begin, entry.file_size, entry.CRC))
        except _DAMAGE as error:
            where = "an entry" if entry is None else repr(entry.filename)
            raise _damaged(self._path, f"the checksum of {where} does not match") from error
        return stored

    def mapped(self, storages: Mapping[int, int]) -> None:
        """Say where torch has mapped the file.

        Args:
            storages (`Mapping[int, int]`): Address and length in bytes of every storage.
        """
        storages = {address: size for address, size in storages.items() if size}
        first = next(iter(storages), 0)
        starts = [first - entry.offset for entry in self._by_offset.values() if entry.size == storages.get(first)]
        fitting = [start for start in starts if all(self._fits(at - start, size) for at, size in storages.items())]
        # All storages lie in one mapping, so one start fits. If not, the file is read instead.
        self._start = fitting[0] if len(fitting) == 1 else None

    def _fits(self, offset: int, size: int) -> bool:
        return offset in self._by_offset and self._by_offset[offset].size == size

    def check(self, storage: torch.UntypedStorage) -> None:
        """Compare one storage, the first time it is asked for.

        Raises:
            ConversionError: Its bytes are not the ones that were saved.
        """
        if self._whole_file_is_right or not storage.nbytes():
            return
        if self._start is None:
            self._check_entries(lambda name: True)
            self._whole_file_is_right = True
            return
        entry = self._by_offset[storage.data_ptr() - self._start]
        if entry.offset in self._right:
            return
        self._announce(entry)
        content = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        if zlib.crc32(content) != entry.crc:
            raise _damaged(self._path, f"the checksum of {entry.name!r} does not match")
        self._right.add(entry.offset)

    def _announce(self, entry: StoredBytes) -> None:
        """Let the system fetch all of an entry from the disk while its first bytes are compared."""
        if hasattr(os, "posix_fadvise"):
            with self._path.open("rb") as file:
                os.posix_fadvise(file.fileno(), entry.offset, entry.size, os.POSIX_FADV_WILLNEED)


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(path) as archive:
        return archive.infolist()


def _directory_size(path: Path, size: int) -> int:
    """Bytes of the central directory as the end record states them, so that it is not parsed when it is a bomb."""
    with path.open("rb") as file:
        file.seek(max(0, size - _END_SIZE - _MAX_COMMENT - _END64_LOCATOR_SIZE))
        tail = file.read()
        end = tail.rfind(_END)
        if end < 0:
            raise zipfile.BadZipFile("no end record")
        (directory,) = struct.unpack_from("<I", tail, end + 12)
        locator = end - _END64_LOCATOR_SIZE
        if locator >= 0 and tail[locator : locator + 4] == _END64_LOCATOR:
            (position,) = struct.unpack_from("<Q", tail, locator + 8)
            file.seek(min(position, size))
            record = file.read(_END64_SIZE)
            (directory,) = struct.unpack_from("<Q", record, 40)
    return directory


def _damaged(path: Path, how: str) -> ConversionError:
    return ConversionError(f"The file is truncated or damaged: {how}.", path=path, next_step=_DOWNLOAD_AGAIN)
