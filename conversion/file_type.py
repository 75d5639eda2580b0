"""What a file is, told from its bytes before anything is unpickled or mapped."""

from __future__ import annotations

import json
import stat
from enum import Enum
from pathlib import Path

from .errors import ConversionError


_LENGTH_BYTES = 8  # in front of a safetensors header
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_LFS_MAGIC = b"version https://git-lfs"
# About 50,000 tensors. JSON can cost twenty times its size in memory, so this is far below safetensors' own 100 MB.
_MAX_HEADER_BYTES = 8_000_000
_MAX_SIDE_FILE_BYTES = 64_000_000  # the largest tokenizer.json of a published model has 17 MB

_OTHER_KINDS = {
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\xfd7zXZ": "an xz archive",
    b"BZh": "a bzip2 archive",
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"%PDF": "a PDF document",
}
_DOWNLOAD_AGAIN = "Download the file again and compare its size with the one its page states."


class FileKind(Enum):
    """The containers a state dict can come in."""

    SAFETENSORS = "safetensors"
    TORCH = "torch.save"


def sniff(path: Path) -> FileKind:
    """Tell the container of a weight file and refuse what cannot be one.

    Args:
        path (`Path`): The file.

    Returns:
        `FileKind`: How to read it.

    Raises:
        ConversionError: The file is missing, empty, truncated, compressed, a Git LFS pointer, a web page or of
            another kind.
    """
    check_regular_file(path)
    size = path.stat().st_size
    if size == 0:
        raise ConversionError("The file is empty.", path=path, next_step=_DOWNLOAD_AGAIN)
    head = read_head(path)
    refuse_placeholder(head, path)
    if head.startswith(_ZIP_MAGIC):
        return FileKind.TORCH
    for magic, kind in _OTHER_KINDS.items():
        if head.startswith(magic):
            raise ConversionError(
                f"This is {kind}, not a weight file.",
                path=path,
                next_step="Pass a .safetensors file or a PyTorch state dict (.bin, .pth, .pt); unpack archives first.",
            )
    if len(head) > 8 and head[8:9] == b"{":
        return FileKind.SAFETENSORS
    if head.startswith(_PICKLE_MAGIC):
        return FileKind.TORCH
    raise ConversionError(
        f"The file starts with {head[:8]!r} and is neither safetensors nor a PyTorch state dict.",
        path=path,
        next_step="Pass a .safetensors, .bin, .pth or .pt file.",
    )


def check_regular_file(path: Path) -> None:
    """Refuse a path that is missing, a folder or a device.

    Raises:
        ConversionError: The path is not a regular file.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ConversionError("There is no such file.", path=path, next_step="Check the path.") from None
    except OSError as error:
        raise ConversionError(f"The file cannot be opened ({error.strerror}).", path=path) from error
    check_regular_mode(mode, path)


def check_regular_mode(mode: int, path: Path) -> None:
    """Refuse a folder, pipe or device.

    Args:
        mode (`int`): `st_mode` of the path, or of what was opened under it.
        path (`Path`): For the message.

    Raises:
        ConversionError: It is not a regular file.
    """
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
        raise ConversionError(f"Expected a file, found {kind}.", path=path, next_step="Pass the file itself.")


def read_head(path: Path, size: int = 512) -> bytes:
    """The first bytes of a file.

    Raises:
        ConversionError: The file may not be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise ConversionError(
            f"The file cannot be read ({error.strerror}).", path=path, next_step="Check its permissions."
        ) from error


def refuse_placeholder(head: bytes, path: Path) -> None:
    """Refuse the two things that often lie where a download should be.

    Args:
        head (`bytes`): The first bytes of the file.
        path (`Path`): The file, for the message.

    Raises:
        ConversionError: It is a Git LFS pointer or a web page.
    """
    if head.startswith(_LFS_MAGIC):
        raise ConversionError(
            "This is a Git LFS pointer, not the file itself.",
            path=path,
            next_step="Run `git lfs pull` in the folder, or download the repository with `hf download`.",
        )
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise ConversionError(
            "This is a web page, not the file itself: the download link led to a login or warning page.",
            path=path,
            next_step="Open the link in a browser, confirm, and download the file again.",
        )


def check_safetensors(path: Path) -> None:
    """Bound the header of a safetensors file, and compare the sizes it states with the size of the file.

    Args:
        path (`Path`): The file.

    Raises:
        ConversionError: The header is too long, names a tensor twice, or does not fit the file.
    """
    check_regular_file(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > _MAX_HEADER_BYTES:
            raise ConversionError(
                f"The safetensors header claims {length} bytes; at most {_MAX_HEADER_BYTES} are allowed.",
                path=path,
                next_step=_DOWNLOAD_AGAIN,
            )
        if length + _LENGTH_BYTES > size:
            raise ConversionError(
                "Not a valid safetensors file: it ends inside its header.", path=path, next_step=_DOWNLOAD_AGAIN
            )
        try:
            header = json.loads(file.read(length), object_pairs_hook=_unique)
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = _LENGTH_BYTES + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise ConversionError(
                "The safetensors header cannot be read.", path=path, next_step=_DOWNLOAD_AGAIN
            ) from error
    if expected != size:
        raise ConversionError(
            f"The header describes {expected} bytes and the file has {size}.", path=path, next_step=_DOWNLOAD_AGAIN
        )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object without doubled names, which two readers could resolve in two ways."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def check_side_file(path: Path) -> None:
    """Refuse a small file beside the weights that is a link elsewhere, a placeholder, a device, or huge.

    Args:
        path (`Path`): The file; one that does not exist is left to whoever needs it.

    Raises:
        ConversionError: It is not what it should be.
    """
    check_link(path, path.parent)
    if not path.exists():
        return
    check_regular_file(path)
    if (size := path.stat().st_size) > _MAX_SIDE_FILE_BYTES:
        raise ConversionError(
            f"The file has {size} bytes; at most {_MAX_SIDE_FILE_BYTES} are read.",
            path=path,
            next_step="Copy the file again from the original publisher.",
        )
    refuse_placeholder(read_head(path), path)


def check_link(path: Path, folder: Path) -> None:
    """Refuse a file of a folder that is a link to somewhere else.

    The Hub's cache keeps the files of `snapshots/REVISION` and its sub-folders as links to `blobs` beside `snapshots`,
    which is allowed.

    Args:
        path (`Path`): The file.
        folder (`Path`): The folder it was found in or named by.

    Raises:
        ConversionError: The link leads out of the folder.
    """
    if not path.is_symlink():
        return
    root = folder.resolve()
    snapshot = next((path for path in (root, root.parent) if path.parent.name == "snapshots"), None)
    if snapshot is not None:
        root = snapshot.parents[1]
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        target = None
    if target is None or not target.is_relative_to(root):
        raise ConversionError(
            "This is a link that leads nowhere or out of its folder.",
            path=path,
            next_step="Copy the file there, or pass the folder it really lies in.",
        )
