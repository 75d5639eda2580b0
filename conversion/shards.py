"""Writing safetensors tensor by tensor, so that memory holds one or two of them and not a shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from .errors import ConversionError
from .plan import PlannedTensor
from .progress import ProgressCallback


DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
BITS = {1: (torch.uint8, "U8"), 2: (torch.int16, "I16"), 4: (torch.int32, "I32"), 8: (torch.int64, "I64")}
"""Integers that hold the bits of a number, and their name in safetensors, by the number's bytes."""

_WEIGHTS, _INDEX = "model{suffix}.safetensors", "model.safetensors.index.json"
_STEP = "Writing weights"
_RELEASE_BYTES = 256 << 20  # pages of mapped sources count as this process's memory until they are given back
_AHEAD_BYTES = 512 << 20  # of two tensors that are larger together, the second is read when the first is written


def as_bits(value: torch.Tensor) -> torch.Tensor:
    """The same bits as integers, of which NaN equals itself and zero differs from minus zero."""
    return value.contiguous().view(BITS[value.dtype.itemsize][0])


def write_shards(
    folder: Path,
    tensors: Sequence[PlannedTensor],
    max_shard_size: int | str,
    progress: ProgressCallback,
    release: Callable[[], None],
) -> dict[Path, str]:
    """Write all tensors as `model.safetensors`, or as shards with an index.

    Args:
        folder (`Path`): Where to write.
        tensors (`Sequence[PlannedTensor]`): What to write; shards are filled in this order.
        max_shard_size (`int` or `str`): Largest size of a shard in bytes, or such as `"5GB"`.
        progress (`ProgressCallback`): Told about every tensor.
        release (`Callable[[], None]`): Called after every shard and every quarter gigabyte, to unmap what was read;
            never while a tensor is built, but in the thread that builds them.

    Returns:
        `dict[Path, str]`: The weight files and their sha256, taken from what was written.

    Raises:
        ConversionError: A tensor is in a type that is not published, or holds NaN or infinite values.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    if odd := next((tensor for tensor in tensors if tensor.dtype not in DTYPE_NAMES), None):
        raise ConversionError(
            f"{odd.name!r} would be stored as {odd.dtype}; allowed are {', '.join(map(str, DTYPE_NAMES))}.",
            next_step="Pass one of them as dtype.",
        )
    try:
        split = split_state_dict_into_shards_factory(
            by_name,
            get_storage_size=lambda tensor: tensor.num_bytes,
            filename_pattern=_WEIGHTS,
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise ConversionError(f"max_shard_size={max_shard_size!r} is not a size.", next_step="Use '5GB'.") from error
    total = sum(tensor.num_bytes for tensor in tensors)
    done, digests = 0, {}
    for file_name, names in split.filename_to_tensors.items():
        chosen = [by_name[name] for name in names]
        digests[folder / file_name] = _write_file(folder / file_name, chosen, done, total, progress, release)
        done += sum(tensor.num_bytes for tensor in chosen)
        release()
    if split.is_sharded:
        index = {
            "metadata": {"total_size": total},
            "weight_map": dict(sorted(split.tensor_to_filename.items())),
        }
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return digests


def _write_file(
    path: Path,
    tensors: list[PlannedTensor],
    done: int,
    total: int,
    progress: ProgressCallback,
    release: Callable[[], None],
) -> str:
    """Write one file; returns its sha256."""
    # Wide types first keeps every tensor aligned, which readers that map the file rely on.
    ordered = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for tensor in ordered:
        end = offset + tensor.num_bytes
        header[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)
    digest = hashlib.sha256()
    # Reading, hashing and writing leave Python's lock alone, so that the slowest of them alone costs time.
    with path.open("wb") as file, ThreadPoolExecutor(1) as pool, closing(_read_ahead(ordered, release)) as contents:

        def write(data: bytes | memoryview) -> None:
            hashed = pool.submit(digest.update, data)
            file.write(data)
            hashed.result()

        write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in ordered:
            # Nothing here may keep the bytes: two large tensors at once would double the memory needed.
            write(next(contents))
            done += tensor.num_bytes
            progress(_STEP, done, total)
    return digest.hexdigest()


def _read_ahead(tensors: list[PlannedTensor], release: Callable[[], None]) -> Iterator[memoryview]:
    """The bytes of all tensors in turn; while those of one are used, the next one is built, if both are small."""
    mapped = 0

    def read(tensor: PlannedTensor) -> memoryview:
        nonlocal mapped
        data = _checked_bytes(tensor.build(), tensor)
        mapped += tensor.num_bytes
        if mapped > _RELEASE_BYTES:
            mapped = 0
            release()
        return data

    with ThreadPoolExecutor(1) as pool:
        reading = None
        for tensor, following in pairwise([*tensors, None]):
            ready = [(reading or pool.submit(read, tensor)).result()]
            ahead = following is not None and tensor.num_bytes + following.num_bytes <= _AHEAD_BYTES
            reading = pool.submit(read, following) if ahead else None
            yield ready.pop()  # so that neither this frame nor a finished future keeps them


def _checked_bytes(value: torch.Tensor, tensor: PlannedTensor) -> memoryview:
    """The bytes of a tensor whose values are all finite."""
    if not all_finite(value):
        sources = ", ".join(f"{piece.key!r} in {piece.source.file(piece.key)}" for piece in tensor.pieces.values())
        raise ConversionError(
            f"{tensor.name!r}, stored as {tensor.dtype}, would hold NaN or infinite values (from {sources}).",
            next_step="Download the source again; where it is right, pass a dtype with a wider range.",
        )
    return memoryview(value.reshape(-1).view(torch.uint8).numpy())


def all_finite(value: torch.Tensor) -> bool:
    """Whether a floating point tensor holds no NaN and no infinity, without a copy of it."""
    return value.numel() == 0 or all(bool(torch.isfinite(bound)) for bound in torch.aminmax(value))
