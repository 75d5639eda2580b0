"""The zip container of torch.save, mapped: one plain layout is read, and everything else is refused.

The file is opened once, so that the bytes that are checked are the bytes that are used.

Zip files can be written so that two readers see two contents: a second directory, a second end record, entries that
overlap, bytes that no entry names. Here the entries must follow each other from the first byte to the directory, and
the directory must reach to the end, as torch writes it. Such a file has one reading only.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import ConversionError
from .file_type import check_regular_mode


_MAX_ENTRIES = 100_000
_MAX_DIRECTORY_BYTES = 16 << 20
# About 16,000 tensors. A pickle can cost sixty times its size in memory, so the cap also bounds that.
_MAX_PICKLE_BYTES = 2 << 20
# The records of a zip file, from their signature on.
_END = struct.Struct("<4sHHHHIIH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
_HEADER = struct.Struct("<4sHHHHHIIIHH")
_EXTRA = struct.Struct("<HH")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # "the number stands in the zip64 field"
_HAS_DESCRIPTOR, _IS_UTF8, _IS_ENCRYPTED = 1 << 3, 1 << 11, 1
# Extra fields: numbers of eight bytes, and the padding with which torch aligns tensors.
_ZIP64, _PADDING, _PADDING_BYTE = 1, 0x4246, b"Z"
_PICKLE, _STORAGES, _BYTE_ORDER = "data.pkl", "data/", "byteorder"
_BESIDE = (_PICKLE, _BYTE_ORDER, "version", ".format_version", ".storage_alignment", ".data/serialization_id")
_TORCHSCRIPT = ("constants.pkl", "code/")
_DOWNLOAD_AGAIN = "Download the file again and compare its size with the one its page states."
_SAVE_AGAIN = "Pass the state dict as torch.save or safetensors wrote it; unpack other archives first."


class MappedFile:
    """A regular file, mapped as a whole; pages are read when they are needed.

    The name is used once, when it is opened: what another program puts there later is not seen. Only a program that
    writes into the file itself meanwhile can change what was checked.

    Args:
        path (`Path`): The file.

    Attributes:
        size (`int`): Its length in bytes.

    Raises:
        ConversionError: It cannot be opened, is empty, or is not a regular file.
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


@dataclass(frozen=True)
class StoredBytes:
    """Where an entry's content lies in the file, and what torch.save says of it.

    Args:
        name (`str`): The entry's name, for messages.
        offset (`int`): Position of its first byte in the file.
        size (`int`): Its length in bytes.
        crc (`int`, *optional*): Its CRC-32; old pickles have none.
    """

    name: str
    offset: int
    size: int
    crc: int | None = None


@dataclass(frozen=True)
class TorchZip:
    """What a file of torch.save holds.

    Args:
        pickle (`StoredBytes`): The list of tensors.
        storages (`Mapping[str, StoredBytes]`): The tensors' values by their key in that list.
    """

    pickle: StoredBytes
    storages: Mapping[str, StoredBytes]


class _DamageError(Exception):
    """Something is not where the rest of the archive says; the message says what."""


def read_torch_zip(file: MappedFile) -> TorchZip:
    """Find the entries of a file, and compare all but the tensors' values with their CRC-32.

    Args:
        file (`MappedFile`): The file as it is mapped.

    Raises:
        ConversionError: The archive is damaged, compressed, not a state dict, or laid out in another way than torch's.
    """
    try:
        entries = list(_entries(file))
    except _DamageError as error:
        raise _damaged(file.path, str(error)) from error
    except (struct.error, UnicodeDecodeError) as error:
        raise _damaged(file.path, "a record of the archive cannot be read") from error
    by_name: dict[str, StoredBytes] = {}
    for entry in entries:
        if by_name.setdefault(entry.name, entry) is not entry:
            raise _refused(file.path, f"The archive holds {entry.name!r} twice.")
    prefix = entries[0].name.partition("/")[0] + "/" if entries else ""
    inside = {name.removeprefix(prefix): entry for name, entry in by_name.items() if name.startswith(prefix)}
    if any(name.startswith(_TORCHSCRIPT) for name in inside):
        raise _refused(file.path, "This is a TorchScript program, not a state dict.")
    odd = [entry.name for name, entry in inside.items() if name not in _BESIDE and not _is_storage(name)]
    odd += [name for name in by_name if not name.startswith(prefix)]
    if odd or _PICKLE not in inside:
        what = f"{odd[0]!r} does not belong in it" if odd else f"it has no {_PICKLE}"
        raise _refused(file.path, f"This zip archive was not written by torch.save: {what}.")
    if inside[_PICKLE].size > _MAX_PICKLE_BYTES:
        size = inside[_PICKLE].size
        raise _refused(file.path, f"The list of tensors has {size} bytes; at most {_MAX_PICKLE_BYTES} are read.")
    for name, entry in inside.items():
        if not name.startswith(_STORAGES):
            compare_sum(file, entry)
    order = inside.get(_BYTE_ORDER)
    if order is not None and file.read(order.offset, order.size) != b"little":
        raise _refused(file.path, "The file was saved by a machine with another byte order.")
    storages = {name.removeprefix(_STORAGES): entry for name, entry in inside.items() if name.startswith(_STORAGES)}
    return TorchZip(inside[_PICKLE], storages)


def compare_sum(file: MappedFile, entry: StoredBytes) -> None:
    """Compare the bytes of an entry with its CRC-32.

    Raises:
        ConversionError: They are not the ones that were saved.
    """
    if entry.crc is not None and file.crc32(entry.offset, entry.size) != entry.crc:
        raise _damaged(file.path, f"the checksum of {entry.name!r} does not match")


def _is_storage(name: str) -> bool:
    return name.startswith(_STORAGES) and "/" not in name.removeprefix(_STORAGES)


def _entries(file: MappedFile) -> Iterator[StoredBytes]:
    """Follow the directory and, at the same pace, the entries themselves."""
    count, at, end = _directory(file)
    size = end - at
    if size > _MAX_DIRECTORY_BYTES:
        raise _refused(file.path, f"The directory has {size} bytes; at most {_MAX_DIRECTORY_BYTES} are read.")
    if count > _MAX_ENTRIES:
        raise _refused(file.path, f"The archive has {count} entries; at most {_MAX_ENTRIES} are read.")
    start, position = at, 0
    for _ in range(count):
        signature, *fields = _ENTRY.unpack(file.read(at, _ENTRY.size))
        _, _, flags, method, _, _, crc, packed, unpacked, name_size, extra_size, comment, disk, _, _, header = fields
        if signature != b"PK\x01\x02" or comment or disk:
            raise _DamageError("its directory at the end cannot be read")
        name = file.read(at + _ENTRY.size, name_size).decode("utf-8")
        extra = file.read(at + _ENTRY.size + name_size, extra_size)
        at += _ENTRY.size + name_size + extra_size
        if method:
            raise _refused(file.path, "The archive is compressed, which torch.save never does.")
        if flags & _IS_ENCRYPTED:
            raise _refused(file.path, "The archive is encrypted.")
        if flags & ~(_HAS_DESCRIPTOR | _IS_UTF8):
            raise _DamageError(f"the entry {name!r} has unknown flags")
        unpacked, packed, header = _wide((unpacked, packed, header), extra, name)
        if packed != unpacked or header != position:
            raise _DamageError(f"the entry {name!r} does not begin where the one before it ends")
        offset, has_zip64 = _content_offset(file, position, flags, crc, unpacked, name)
        position = offset + unpacked
        if flags & _HAS_DESCRIPTOR:
            wide = "Q" if has_zip64 else "I"
            expected = struct.pack(f"<4sI{wide}{wide}", b"PK\x07\x08", crc, unpacked, unpacked)
            if file.read(position, len(expected)) != expected:
                raise _DamageError(f"what follows the entry {name!r} contradicts the directory")
            position += len(expected)
        if position > start:
            raise _DamageError(f"the entry {name!r} reaches into the directory")
        yield StoredBytes(name, offset, unpacked, crc)
    if at != end or position != start:
        raise _DamageError("between its entries, its directory and its end are bytes that belong to none of them")


def _directory(file: MappedFile) -> tuple[int, int, int]:
    """Number of entries, and where the directory begins and ends, as all end records say."""
    end = file.size - _END.size
    signature, disk, first, here, count, size, offset, comment = _END.unpack(file.read(end, _END.size))
    if signature != b"PK\x05\x06" or comment or disk or first or here != count:
        raise _DamageError("it does not end with the end record of an archive")
    locator = end - _END64_LOCATOR.size
    found = file.read(locator, _END64_LOCATOR.size) if locator >= 0 else b""
    if found.startswith(b"PK\x06\x07"):
        end = locator - _END64.size
        if found != _END64_LOCATOR.pack(b"PK\x06\x07", 0, end, 1):
            raise _DamageError("its end records contradict each other")
        signature, length, _, _, disk, first, here, wide_count, *wide = _END64.unpack(file.read(end, _END64.size))
        plain = (signature, length, disk, first, here) == (b"PK\x06\x06", _END64.size - 12, 0, 0, wide_count)
        narrow = (_FULL16, _FULL32, _FULL32)
        pairs = zip((count, size, offset), (wide_count, *wide), narrow, strict=True)
        if not plain or any(stated != min(real, full) for stated, real, full in pairs):
            raise _DamageError("its end records contradict each other")
        count, (size, offset) = wide_count, wide
    if offset + size != end:
        raise _DamageError("its directory does not end where its end record begins")
    return count, offset, end


def _wide(values: tuple[int, int, int], extra: bytes, name: str) -> list[int]:
    """Size, packed size and position of an entry, from its zip64 field where they do not fit into 32 bits."""
    missing = [index for index, value in enumerate(values) if value == _FULL32]
    fields = list(_extra_fields(extra, name))
    if not missing and not fields:
        return list(values)
    if len(fields) != 1 or fields[0][0] != _ZIP64 or len(fields[0][1]) != 8 * len(missing):
        raise _DamageError(f"the entry {name!r} has fields in the directory that torch does not write")
    wide = list(values)
    for index, value in zip(missing, struct.unpack(f"<{len(missing)}Q", fields[0][1]), strict=True):
        wide[index] = value
    return wide


def _content_offset(file: MappedFile, position: int, flags: int, crc: int, size: int, name: str) -> tuple[int, bool]:
    """Where the content of the entry at a position begins, and whether its header has a zip64 field."""
    signature, *fields = _HEADER.unpack(file.read(position, _HEADER.size))
    _, own_flags, method, _, _, own_crc, packed, unpacked, name_size, extra_size = fields
    begin = position + _HEADER.size + name_size
    extra = _extra_fields(file.read(begin, extra_size), name)
    zip64 = False
    for kind, content in extra:
        if kind == _ZIP64 and not zip64 and len(content) in (8, 16):
            zip64 = True
            known = all(value in (0, size, position) for (value,) in struct.iter_unpack("<Q", content))
        else:
            known = kind == _PADDING and content == _PADDING_BYTE * len(content)
        if not known:
            raise _DamageError(f"the entry {name!r} has fields that torch does not write")
    # With a descriptor after the content, the header holds zeros.
    empty = (0, 0, 0) if flags & _HAS_DESCRIPTOR else None
    narrow = min(size, _FULL32)
    if (
        (signature, own_flags, method) != (b"PK\x03\x04", flags, 0)
        or (own_crc, packed, unpacked) not in (empty, (crc, narrow, narrow))
        or file.read(position + _HEADER.size, name_size) != name.encode()
    ):
        raise _DamageError(f"the header of the entry {name!r} contradicts the directory")
    return begin + extra_size, zip64


def _extra_fields(data: bytes, name: str) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        kind, size = _EXTRA.unpack_from(data, at)
        content = data[at + _EXTRA.size : at + _EXTRA.size + size]
        if len(content) != size:
            raise _DamageError(f"the entry {name!r} has a field that ends too early")
        yield kind, content
        at += _EXTRA.size + size


def _damaged(path: Path, how: str) -> ConversionError:
    return ConversionError(f"The file is truncated or damaged: {how}.", path=path, next_step=_DOWNLOAD_AGAIN)


def _refused(path: Path, cause: str) -> ConversionError:
    return ConversionError(cause, path=path, next_step=_SAVE_AGAIN)
