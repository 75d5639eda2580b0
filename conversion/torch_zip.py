"""The zip container of torch.save: refused where torch cannot have written it, checked against its own CRC-32 sums."""

from __future__ import annotations

import struct
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from .errors import ConversionError


_MAX_ENTRIES = 100_000
_MAX_DIRECTORY_BYTES = 16 << 20
# About 18,000 tensors. A pickle can cost sixty times its size in memory, so the cap also bounds that.
_MAX_PICKLE_BYTES = 2 << 20
# torch.save stores tensors uncompressed; the slack pays for the directory of a file of many small tensors.
_MAX_UNPACKED_RATIO = 1.05
_END, _END_SIZE, _MAX_COMMENT = b"PK\x05\x06", 22, 65_535
_END64_LOCATOR, _END64_LOCATOR_SIZE, _END64_SIZE = b"PK\x06\x07", 20, 56
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


def check_sums(path: Path, advance: Callable[[int], None]) -> None:
    """Compare every entry with the CRC-32 that torch.save stored; mapping the file, torch itself does not.

    Args:
        path (`Path`): A file that `check_torch_zip` accepts.
        advance (`Callable[[int], None]`): Told how many bytes were read.

    Raises:
        ConversionError: Bytes were changed since the file was saved.
    """
    entry = None
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as file:
                    while data := file.read(_CHUNK):
                        advance(len(data))
    except _DAMAGE as error:
        where = "an entry" if entry is None else repr(entry.filename)
        raise _damaged(path, f"the checksum of {where} does not match") from error


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
