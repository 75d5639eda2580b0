"""What a weight file or folder holds, told without reading a tensor's values."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import ConversionError
from .recognition import CONVERTED, Recognised, recognise
from .sources import TensorSource, open_source, read_json
from .systems import SYSTEMS


@dataclass(frozen=True)
class TensorLine:
    """One tensor.

    Args:
        name (`str`): Its name in the file.
        shape (`tuple[int, ...]`): Its shape.
        dtype (`str`): Its type, such as `"bfloat16"`.
        num_bytes (`int`): Its size.
        file (`str`): Name of the file that holds it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    file: str


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Args:
        path (`Path`): The file or folder.
        recognised (`Recognised`): System and variant.
        tensors (`list[TensorLine]`): In the order of the files.
    """

    path: Path
    recognised: Recognised
    tensors: list[TensorLine]

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def bytes_by_dtype(self) -> dict[str, int]:
        sizes = Counter()
        for tensor in self.tensors:
            sizes[tensor.dtype] += tensor.num_bytes
        return dict(sizes)


def inspect_checkpoint(path: str | Path) -> Inspection:
    """List the tensors of a file or folder and tell what it is.

    Args:
        path (`str` or `Path`): A weight file, or a folder with one or with shards.

    Raises:
        ConversionError: It is missing, damaged, or no checkpoint.
    """
    path = Path(path)
    source = open_source(path)
    lines = [_line(source, name) for name in source.names()]
    source.release()
    return Inspection(path, _named(recognise({line.name: line.shape for line in lines}), path), lines)


def _named(found: Recognised, path: Path) -> Recognised:
    """With the system that `config.json` beside converted weights names, as their tensors do not tell it."""
    if found.system != CONVERTED:
        return found
    try:
        model_type = read_json((path if path.is_dir() else path.parent) / "config.json").get("model_type")
    except ConversionError:
        model_type = None
    for name, system in SYSTEMS.items():
        if system.model_type == model_type:
            return replace(found, system=name)
    return replace(found, notes=(*found.notes, "Its config.json would say which system it is."))


def _line(source: TensorSource, name: str) -> TensorLine:
    info = source.info(name)
    size = math.prod(info.shape) * info.dtype.itemsize
    return TensorLine(name, info.shape, str(info.dtype).removeprefix("torch."), size, source.file(name).name)
