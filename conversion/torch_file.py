"""What torch.save wrote, zip or legacy, with tensors that are views of the mapped file."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import ConversionError
from .torch_pickle import Other, PickleError, Storage, StoredTensor, read_pickle
from .torch_zip import MappedFile, StoredBytes, compare_sum, read_torch_zip


_ZIP_MAGIC = b"PK\x03\x04"
# The pickles of a legacy file: these three, the state dict, and the keys of its storages.
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_LEGACY_PICKLES = 4 << 20  # nothing says where they end
_LENGTH_BYTES = 8  # before the values of a storage
# Tied weights may share memory, but a few bytes that a thousand tensors share are a bomb.
_MAX_SHARING = 4
_NESTED_STATE = ("state_dict", "model", "module")
_DOWNLOAD_AGAIN = "Download it again; if it stays unreadable, ask its publisher for safetensors."


class TorchFile:
    """A state dict in a file, opened once.

    Everything but the tensors' values is checked at once. Those are compared with their CRC-32, which old files lack,
    when they are first used, so that a conversion reads them from the disk once.

    Args:
        path (`Path`): The file.

    Attributes:
        tensors (`Mapping[str, StoredTensor]`): What it holds, by name.

    Raises:
        ConversionError: The file is damaged, or holds something else than tensors.
    """

    def __init__(self, path: Path):
        self._file = MappedFile(path)
        try:
            if self._file.read(0, len(_ZIP_MAGIC)) == _ZIP_MAGIC:
                state, self._storages = _read_zip(self._file)
            else:
                state, self._storages = _read_legacy(self._file)
        except PickleError as error:
            raise ConversionError(
                "The file cannot be read as a state dict: it is damaged, or it holds Python objects other than "
                f"tensors, which are not loaded because they can run code ({error}).",
                path=path,
                next_step=_DOWNLOAD_AGAIN,
            ) from error
        self.tensors: Mapping[str, StoredTensor] = _tensors_of(state, path, self._file.size)
        self._right: set[int] = set()  # offsets of the storages that were compared

    def load(self, name: str) -> torch.Tensor:
        """One tensor: a view of the file, never to be written to.

        Raises:
            ConversionError: Its bytes are not the ones that were saved.
        """
        tensor = self.tensors[name]
        stored = self._storages[tensor.storage.key]
        if stored.offset not in self._right:
            compare_sum(self._file, stored)
            self._right.add(stored.offset)
        values = self._file.tensor(stored.offset, stored.size, tensor.storage.dtype)
        return values.as_strided(tensor.shape, tensor.stride, tensor.offset)

    def release(self) -> None:
        """Give back the memory of what was read."""
        self._file.release()


def _read_zip(file: MappedFile) -> tuple[Any, Mapping[str, StoredBytes]]:
    archive = read_torch_zip(file)
    storages: dict[str, Storage] = {}
    pickle = io.BytesIO(file.read(archive.pickle.offset, archive.pickle.size))
    state = read_pickle(pickle, storages)
    if pickle.read(1):
        raise PickleError("it continues after its end")
    if odd := sorted(storages.keys() ^ archive.storages.keys()):
        missing = odd[0] in storages
        raise PickleError(f"the storage {odd[0]!r} {'is missing' if missing else 'belongs to no tensor'}")
    for key, storage in storages.items():
        if storage.num_bytes != archive.storages[key].size:
            raise PickleError(f"the storage {key!r} has {archive.storages[key].size} bytes, not {storage.num_bytes}")
    return state, archive.storages


def _read_legacy(file: MappedFile) -> tuple[Any, Mapping[str, StoredBytes]]:
    """Five pickles, then the values of all storages, each after its length."""
    storages: dict[str, Storage] = {}
    pickles = io.BytesIO(file.read(0, _MAX_LEGACY_PICKLES))
    if read_pickle(pickles, storages) != _LEGACY_MAGIC or read_pickle(pickles, storages) != _LEGACY_PROTOCOL:
        raise PickleError("torch.save did not write it")
    system = read_pickle(pickles, storages)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise PickleError("it was saved by a machine with another byte order")
    state = read_pickle(pickles, storages)
    keys = read_pickle(pickles, storages)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise PickleError("its storages are not the ones that its tensors need")
    position, found = pickles.tell(), {}
    for key in keys:
        if file.read(position, _LENGTH_BYTES) != storages[key].length.to_bytes(_LENGTH_BYTES, "little"):
            raise PickleError(f"the storage {key!r} has another length than its tensors need")
        position += _LENGTH_BYTES
        found[key] = StoredBytes(key, position, storages[key].num_bytes)
        position += storages[key].num_bytes
    if position != file.size:
        raise PickleError(f"its tensors need {position} bytes and the file has {file.size}")
    return state, found


def _tensors_of(state: object, path: Path, size: int) -> dict[str, StoredTensor]:
    """The flat dict of tensors inside what a pickle holds."""
    for name in _NESTED_STATE:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not state:
        found = "an empty dict" if isinstance(state, dict) else f"a {_kind(state)}"
        raise ConversionError(f"Expected a dict of tensors, found {found}.", path=path)
    for key, value in state.items():
        if isinstance(value, Other) and value.is_tensor:
            raise ConversionError(
                f"{key!r} is {value.what}; quantized, sparse or empty tensors and those with attributes do not work, "
                "only dense ones.",
                path=path,
                next_step="Save the state dict with plain tensors.",
            )
        if not isinstance(key, str) or not isinstance(value, StoredTensor):
            raise ConversionError(
                f"Expected a dict of tensors, but {key!r} holds a {_kind(value)}.",
                path=path,
                next_step="Pass the model's state dict, not a training state; DeepSpeed's zero_to_fp32.py writes one.",
            )
        _check_tensor(key, value, path)
    claimed = sum(_num_bytes(value) for value in state.values())
    if claimed > _MAX_SHARING * size:
        raise ConversionError(
            f"The tensors claim {claimed} bytes and the file has {size}.",
            path=path,
            next_step="Save the state dict with tensors that do not share their memory.",
        )
    return state


def _check_tensor(key: str, tensor: StoredTensor, path: Path) -> None:
    """Refuse a tensor that is not plain, or that reaches out of its storage."""
    storage = tensor.storage
    if storage.dtype.is_complex:
        raise ConversionError(f"{key!r} holds complex numbers; only real ones are converted.", path=path)
    if storage.dtype in (torch.qint8, torch.quint8, torch.qint32):
        raise ConversionError(f"{key!r} holds quantized numbers; only dense tensors of plain ones work.", path=path)
    last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
    if 0 not in tensor.shape and last >= storage.length:
        raise ConversionError(
            f"{key!r} reaches value {last} of a storage with {storage.length}.", path=path, next_step=_DOWNLOAD_AGAIN
        )
    # An empty tensor may state any size; those of real ones are bounded by their bytes.
    if _num_bytes(tensor) > storage.num_bytes or max(tensor.shape, default=0) > 1 << 40:
        raise ConversionError(
            f"{key!r} claims {_num_bytes(tensor)} bytes and the file holds {storage.num_bytes} of it.",
            path=path,
            next_step="Save the state dict with contiguous tensors.",
        )


def _num_bytes(tensor: StoredTensor) -> int:
    return math.prod(tensor.shape) * tensor.storage.dtype.itemsize


def _kind(value: object) -> str:
    """What a value is, in a word."""
    if isinstance(value, Other):
        return value.what.removeprefix("a ")
    return "Tensor" if isinstance(value, StoredTensor) else type(value).__name__
