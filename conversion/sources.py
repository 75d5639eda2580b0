"""Weight files as lazily read tensors: single files, shards with an index, folders.

Nothing is executed while reading: files are mapped into memory and pickles are read as data, so that a tensor costs
memory only while it is used.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open

from ..loading import CODE_FIELDS, find_absurd_number
from .errors import ConversionError
from .file_type import (
    FileKind,
    check_link,
    check_regular_file,
    check_safetensors,
    check_side_file,
    sniff,
)
from .torch_file import TorchFile


_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_INDEXES = (
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
)
_SINGLE_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
# LISA v0 keeps the segmenter and the projector beside the shards of its language model, in no index; LLaVA's training
# keeps what it trained in full beside the adapters.
SIDE_FILES = (
    "pytorch_model-visual_model.bin",
    "pytorch_model-text_hidden_fcs.bin",
    "non_lora_trainables.bin",
)
# A diffusers folder has a sub-folder for each component of its pipeline; these hold what features are made of.
DIFFUSION_INDEX = "model_index.json"
DIFFUSION_COMPONENTS = ("unet", "vae", "text_encoder")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.(?:bin|safetensors))")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_MAX_JSON_BYTES = 8_000_000


@dataclass(frozen=True)
class TensorInfo:
    """Shape and type of a tensor that has not been read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorSource(ABC):
    """Names of a checkpoint and a way to read one tensor at a time.

    Attributes:
        path (`Path`): The file or folder, for messages.
    """

    path: Path

    @abstractmethod
    def names(self) -> list[str]:
        """All tensor names, in the order of the file."""

    @abstractmethod
    def info(self, key: str) -> TensorInfo:
        """Shape and type of one tensor, without reading it."""

    @abstractmethod
    def load(self, key: str) -> torch.Tensor:
        """One tensor on the CPU. It may be a view of the mapped file: never write to it.

        Where the container has a checksum of it (safetensors and old pickles have none), its bytes are compared.

        Raises:
            ConversionError: The tensor was damaged since it was saved.
        """

    def file(self, key: str) -> Path:
        """The file that holds one tensor."""
        return self.path

    @abstractmethod
    def release(self) -> None:
        """Give back what reading has mapped or cached; the source opens again by itself."""


class PickleFile(TensorSource):
    """A PyTorch state dict (`.bin`, `.pth`, `.pt`).

    Args:
        path (`Path`): The file.

    Raises:
        ConversionError: The file is damaged, or holds something else than tensors.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = TorchFile(path)
        self._infos = {
            key: TensorInfo(tensor.shape, tensor.storage.dtype) for key, tensor in self._file.tensors.items()
        }

    def names(self) -> list[str]:
        return list(self._infos)

    def info(self, key: str) -> TensorInfo:
        return self._infos[key]

    def load(self, key: str) -> torch.Tensor:
        return self._file.load(key)

    def release(self) -> None:
        self._file.release()


class SafetensorsFile(TensorSource):
    """A `.safetensors` file.

    Args:
        path (`Path`): The file.

    Raises:
        ConversionError: The header is inconsistent or names a type that is not supported.
    """

    def __init__(self, path: Path):
        self.path = path
        self._handle = None
        self._infos = {}
        check_safetensors(path)
        handle = self._open()
        for key in handle.keys():  # noqa: SIM118 (a safe_open handle is not a dict)
            entry = handle.get_slice(key)
            if entry.get_dtype() not in _SAFETENSORS_DTYPES:
                raise ConversionError(
                    f"{key!r} has the type {entry.get_dtype()}; allowed are {', '.join(_SAFETENSORS_DTYPES)}.",
                    path=path,
                    next_step="Pass the weights in full, half or bfloat16 precision.",
                )
            self._infos[key] = TensorInfo(tuple(entry.get_shape()), _SAFETENSORS_DTYPES[entry.get_dtype()])

    def _open(self):
        if self._handle is None:
            try:
                self._handle = safe_open(self.path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ConversionError(f"Not a valid safetensors file ({error}).", path=self.path) from error
        return self._handle

    def names(self) -> list[str]:
        return list(self._infos)

    def info(self, key: str) -> TensorInfo:
        return self._infos[key]

    def load(self, key: str) -> torch.Tensor:
        return self._open().get_tensor(key)

    def release(self) -> None:
        self._handle = None


class ShardedSource(TensorSource):
    """Several files that together hold one checkpoint.

    Args:
        path (`Path`): The folder, for messages.
        files (`Iterable[TensorSource]`): The shards.

    Raises:
        ConversionError: Two shards hold the same tensor.
    """

    def __init__(self, path: Path, files: Iterable[TensorSource]):
        self.path = path
        self._files = list(files)
        self._where: dict[str, TensorSource] = {}
        for file in self._files:
            for key in file.names():
                if key in self._where:
                    raise ConversionError(
                        f"{key!r} is in {self._where[key].path.name} and in {file.path.name}.",
                        path=path,
                        next_step="Keep the files of one checkpoint only in this folder.",
                    )
                self._where[key] = file
            file.release()

    def names(self) -> list[str]:
        return list(self._where)

    def info(self, key: str) -> TensorInfo:
        return self._where[key].info(key)

    def load(self, key: str) -> torch.Tensor:
        return self._where[key].load(key)

    def file(self, key: str) -> Path:
        return self._where[key].file(key)

    def release(self) -> None:
        for file in self._files:
            file.release()


class DiffusersSource(TensorSource):
    """The components of a diffusers folder; names begin with the component's own, as in `unet.conv_in.weight`.

    Args:
        path (`Path`): The folder, for messages.
        components (`Mapping[str, TensorSource]`): The weights of each component.
    """

    def __init__(self, path: Path, components: Mapping[str, TensorSource]):
        self.path = path
        self._components = dict(components)

    def _find(self, key: str) -> tuple[TensorSource, str]:
        component, _, name = key.partition(".")
        return self._components[component], name

    def names(self) -> list[str]:
        return [f"{component}.{name}" for component, source in self._components.items() for name in source.names()]

    def info(self, key: str) -> TensorInfo:
        source, name = self._find(key)
        return source.info(name)

    def load(self, key: str) -> torch.Tensor:
        source, name = self._find(key)
        return source.load(name)

    def file(self, key: str) -> Path:
        source, name = self._find(key)
        return source.file(name)

    def release(self) -> None:
        for source in self._components.values():
            source.release()


def open_file(path: Path) -> TensorSource:
    """Open one weight file, whatever its container.

    Raises:
        ConversionError: See `sniff`, `PickleFile` and `SafetensorsFile`.
    """
    kind = sniff(path)
    return SafetensorsFile(path) if kind is FileKind.SAFETENSORS else PickleFile(path)


def open_source(path: str | Path) -> TensorSource:
    """Open a weight file, or the weights of a folder.

    In a folder an index comes first, then a single file of a usual name, then shards without an index, then the only
    weight file there is. Safetensors go before pickles. A diffusers folder is opened with all components that are
    known.

    Args:
        path (`str` or `Path`): A file or folder.

    Raises:
        ConversionError: There are no readable weights, or shards are missing.
    """
    path = Path(path)
    if not path.is_dir():
        return open_file(path)
    if (path / DIFFUSION_INDEX).exists():
        components = {
            component: open_source(path / component)
            for component in DIFFUSION_COMPONENTS
            if holds_weights(path / component)
        }
        if not components:
            raise ConversionError(
                "The diffusion model's folders hold no weights.", path=path, next_step="Download them too."
            )
        return DiffusersSource(path, components)
    for name in _INDEXES:
        if (path / name).exists():
            return _open_indexed(path, path / name)
    for name in _SINGLE_FILES:
        if (path / name).is_dir():  # newer versions of DeepSpeed's zero_to_fp32.py write a folder of this name
            return open_source(path / name)
        if (path / name).exists():
            return _with_side_files(path, [path / name])
    files = sorted(file for file in path.iterdir() if file.suffix in _WEIGHT_SUFFIXES)
    for file in files:
        check_link(file, path)
    if shards := [file for file in files if _SHARD.fullmatch(file.name)]:
        return _with_side_files(path, _complete_shards(path, shards))
    if len(files) == 1:
        return open_file(files[0])
    raise ConversionError(_no_weights(path, files), path=path, next_step="Pass the weight file itself.")


def holds_weights(folder: Path) -> bool:
    """Whether a folder holds anything that looks like weights, readable or not."""
    return folder.is_dir() and any(file.suffix in _WEIGHT_SUFFIXES for file in folder.iterdir())


def _no_weights(path: Path, files: list[Path]) -> str:
    if files:
        return f"The folder holds several weight files ({', '.join(file.name for file in files[:4])}) and no index."
    if (path / "zero_to_fp32.py").exists() or (path / "latest").exists():
        return "This is a DeepSpeed training state; its zero_to_fp32.py turns it into a weight file."
    return "The folder holds no weights."


def _open_indexed(folder: Path, index: Path) -> TensorSource:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConversionError("The index has no `weight_map`.", path=index, next_step="Download the index again.")
    for name in weight_map.values():
        check_plain_name(name, index)
    source = _with_side_files(folder, [folder / name for name in sorted(set(weight_map.values()))])
    held = set(source.names())
    if missing := [key for key in weight_map if key not in held]:
        raise ConversionError(
            f"The index names {len(missing)} tensors that no shard holds, the first is {missing[0]!r}.",
            path=index,
            next_step="Download index and shards again from one revision.",
        )
    return source


def _complete_shards(folder: Path, shards: list[Path]) -> list[Path]:
    """Check that shards without an index are one complete set."""
    first = _SHARD.fullmatch(shards[0].name)
    count = int(first["count"])
    expected = {f"{first['stem']}-{i:05d}-of-{first['count']}{first['suffix']}" for i in range(1, count + 1)}
    found = {shard.name for shard in shards}
    if found != expected:
        odd = sorted(found ^ expected)
        raise ConversionError(
            f"The shards are not one complete set of {count}: {', '.join(odd[:3])} is missing or does not belong.",
            path=folder,
            next_step="Download the missing shards.",
        )
    return shards


def _with_side_files(folder: Path, files: list[Path]) -> TensorSource:
    files = files + [folder / name for name in SIDE_FILES if (folder / name).exists()]
    unique = list(dict.fromkeys(files))
    for file in unique:
        check_link(file, folder)
    return open_file(unique[0]) if len(unique) == 1 else ShardedSource(folder, map(open_file, unique))


def check_plain_name(name: object, origin: Path) -> None:
    """Refuse a file name from a checkpoint's own index that could point outside its folder.

    Raises:
        ConversionError: The name holds a path.
    """
    plain = isinstance(name, str) and name not in ("", ".", "..") and PurePosixPath(name).name == name
    if not plain or any(character in name for character in "\\:\0"):
        raise ConversionError(
            f"The index names the file {name!r}; only plain file names beside the index are read.",
            path=origin,
            next_step="Get the checkpoint from its original publisher.",
        )


def read_config(path: Path) -> dict:
    """Read a config: a JSON object whose numbers a model can have, without the code that it names.

    Raises:
        ConversionError: As `read_json`, or a size is out of all proportion.
    """
    config = read_json(path)
    if (cause := find_absurd_number(config)) is not None:
        raise ConversionError(
            f"The config states {cause}.", path=path, next_step="Download it again from the original publisher."
        )
    return _without_code(config)


def _without_code(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_code(inner) for name, inner in value.items() if name not in CODE_FIELDS}
    return [_without_code(inner) for inner in value] if isinstance(value, list) else value


def read_json(path: Path) -> dict:
    """Read a JSON object as plain data.

    Checkpoints come from others, so links, sizes and Git LFS pointers are looked at first, which
    `data.data_files.read_json` leaves out for data sets of one's own.

    Raises:
        ConversionError: The file is missing, a placeholder, or no JSON object.
    """
    check_regular_file(path)
    check_link(path, path.parent)
    if (size := path.stat().st_size) > _MAX_JSON_BYTES:
        raise ConversionError(f"The file has {size} bytes; at most {_MAX_JSON_BYTES} are read.", path=path)
    value = read_any_json(path)
    if not isinstance(value, dict):
        raise ConversionError(f"Expected a JSON object, found a {type(value).__name__}.", path=path)
    return value


def read_optional_json(path: Path) -> dict:
    """As `read_json`; empty where there is no such file."""
    return read_json(path) if path.is_file() else {}


def read_any_json(path: Path) -> object:
    """Read a JSON file of any kind, such as a tokenizer's, as plain data.

    Raises:
        ConversionError: The file is missing, a placeholder, too large, or no JSON.
    """
    check_regular_file(path)
    check_side_file(path)
    data = path.read_bytes()
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"Not valid JSON ({error}).", path=path, next_step="Download it again.") from error
