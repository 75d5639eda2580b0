"""What a weight file or folder holds, told without reading a tensor's values."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .recognition import Recognised, recognise
from .sources import TensorSource, open_source


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
    return Inspection(path, recognise({line.name: line.shape for line in lines}), lines)


def _line(source: TensorSource, name: str) -> TensorLine:
    info = source.info(name)
    size = math.prod(info.shape) * info.dtype.itemsize
    return TensorLine(name, info.shape, str(info.dtype).removeprefix("torch."), size, source.file(name).name)
