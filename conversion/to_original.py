"""The way back: a converted repository's tensors under their original names, shapes and types.

What a conversion has added is taken off again (the placeholder's row, the identity projector); what came from other
files than the checkpoint (CLIP, SAM's file, the base) is not in the original either. Three things cannot be undone: a
merged adapter stays merged, a cast to a narrower type stays rounded, and zeros stand for an entry that no code reads
and that was left out. All are counted in the report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from .errors import ConversionError
from .manifest import read_manifest
from .peft_adapter import ADAPTER_WEIGHTS
from .progress import ProgressCallback, no_progress
from .rules import ROWS, WEIGHT
from .sources import ShardedSource, TensorSource, open_source
from .tensor_operations import JOIN_ROWS, MERGE_LORA, SKIP_FIRST, TensorOperations
from .writer import staging_folder


_PATTERN, _INDEX = "pytorch_model{suffix}.bin", "pytorch_model.bin.index.json"
_CHECKPOINT = "checkpoint"
_STEP = "Writing the original layout"


@dataclass(frozen=True)
class OriginalTensor:
    """One tensor of the original checkpoint, as far as the repository holds it.

    Args:
        key (`str`): Its original name.
        names (`Mapping[int, str]`): The parameter it became; several, in this order, where its rows were split.
        dtype (`torch.dtype`): Its original type.
        rows (`slice`): Those of the parameter's rows that it has.
        num_bytes (`int`): Its size.
        lacks_first (`bool`): Whether the first entry of its second dimension was left out.
    """

    key: str
    names: Mapping[int, str]
    dtype: torch.dtype
    rows: slice
    num_bytes: int
    lacks_first: bool = False


@dataclass
class OriginalReport:
    """What was written back.

    Args:
        out (`Path`): The folder.
        tensors (`int`): Tensors written.
        merged (`list[str]`): Weights that contain their adapter now; `lora_A` and `lora_B` cannot be recovered.
        rounded (`list[str]`): Tensors the conversion had cast to a narrower type.
        zeroed (`list[str]`): Tensors with zeros for an entry that no code reads.
        elsewhere (`dict[str, int]`): Parameters that came from other files, by source.
        dropped (`int`): Tensors of the original that a conversion leaves out: recomputed, or of a part it has not.
    """

    out: Path
    tensors: int = 0
    merged: list[str] = field(default_factory=list)
    rounded: list[str] = field(default_factory=list)
    zeroed: list[str] = field(default_factory=list)
    elsewhere: dict[str, int] = field(default_factory=dict)
    dropped: int = 0


def write_original(
    repo: str | Path,
    out: str | Path,
    *,
    max_shard_size: int | str = "10GB",
    progress: ProgressCallback | None = None,
) -> OriginalReport:
    """Write a converted repository back in the layout its checkpoint had.

    Args:
        repo (`str` or `Path`): A repository with its manifest.
        out (`str` or `Path`): The folder to make: `pytorch_model.bin`, or shards with an index.
        max_shard_size (`int` or `str`, *optional*, defaults to `"10GB"`): Largest file; as much memory may be needed.
        progress (`ProgressCallback`, *optional*): Told about bytes written.

    Returns:
        `OriginalReport`: What was written, and what could not be undone.

    Raises:
        ConversionError: The repository is damaged or holds nothing of a checkpoint, or `out` holds something.
    """
    repo = Path(repo)
    manifest = read_manifest(repo)
    source = open_source(repo)
    if (repo / ADAPTER_WEIGHTS).is_file():
        source = ShardedSource(repo, [source, open_source(repo / ADAPTER_WEIGHTS)])
    report, held = OriginalReport(Path(out)), frozenset(source.names())
    # by their own name: one may have become several parameters, each the whole of it or a part of its rows
    tensors: dict[str, OriginalTensor] = {}
    for name, entry in manifest["tensors"].items():
        for tensor in _originals(name, entry, source, held, report):
            known = tensors.get(tensor.key, tensor)
            names = {**known.names, **tensor.names}
            tensors[tensor.key] = replace(tensor, names=names, num_bytes=len(names) * tensor.num_bytes)
    if not tensors:
        raise ConversionError("No tensor of this repository comes from a checkpoint.", path=repo)
    report.tensors = len(tensors)
    report.dropped = sum(map(len, manifest["dropped"].get(_CHECKPOINT, {}).values()))
    with staging_folder(out) as folder:
        _write(folder, tensors, source, max_shard_size, progress or no_progress)
    return report


def _originals(
    name: str, entry: Mapping[str, Any], source: TensorSource, held: frozenset[str], report: OriginalReport
) -> list[OriginalTensor]:
    """The tensor that a parameter was, or those whose rows it has."""
    piece = next((piece for piece in entry["from"] if piece["part"] == WEIGHT), None)
    if piece is None or piece["source"] != _CHECKPOINT:
        origin = "nothing (made by the conversion)" if piece is None else piece["source"]
        report.elsewhere[origin] = report.elsewhere.get(origin, 0) + 1
        return []
    if name not in held:
        raise ConversionError(f"The manifest names {name!r}, which no weight file holds.", path=source.path)
    try:
        operations, dtype = TensorOperations.from_json(entry), getattr(torch, piece["dtype"])
    except (ValueError, KeyError, AttributeError) as error:
        raise ConversionError(f"The manifest's entry of {name!r} is malformed ({error}).", path=source.path) from error
    info = source.info(name)
    index, _ = operations.split or (0, 1)
    is_counted = not index  # once for all parts of a tensor
    if is_counted and MERGE_LORA in operations.names:
        report.merged.append(piece["key"])
    elif is_counted and torch.promote_types(info.dtype, dtype) != info.dtype:
        report.rounded.append(piece["key"])
    if lacks_first := SKIP_FIRST in operations.names:
        if len(info.shape) < 2:
            raise ConversionError(
                f"The manifest says that a column of {name!r} was left out, which has none.",
                path=source.path,
                next_step="Convert the original again.",
            )
        report.zeroed.append(piece["key"])
    rows = info.shape[0] - operations.appended_rows if info.shape else 1
    pieces = [piece]
    if JOIN_ROWS in operations.names:
        by_part = {further["part"]: further for further in entry["from"]}
        pieces += [by_part[part] for part in ROWS if part in by_part]
    each, width = rows // len(pieces), torch.Size(info.shape[1:]).numel()
    return [
        OriginalTensor(
            own["key"],
            {index: name},
            dtype,
            slice(i * each, (i + 1) * each),
            each * width * dtype.itemsize,
            lacks_first,
        )
        for i, own in enumerate(pieces)
    ]


def _write(
    folder: Path,
    tensors: Mapping[str, OriginalTensor],
    source: TensorSource,
    max_shard_size: int | str,
    progress: ProgressCallback,
) -> None:
    try:
        split = split_state_dict_into_shards_factory(
            dict(tensors),
            get_storage_size=lambda tensor: tensor.num_bytes,
            filename_pattern=_PATTERN,
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise ConversionError(f"max_shard_size={max_shard_size!r} is not a size.", next_step="Use '10GB'.") from error
    total, done = sum(tensor.num_bytes for tensor in tensors.values()), 0
    for file, keys in split.filename_to_tensors.items():
        torch.save({key: _restore(tensors[key], source) for key in keys}, folder / file)
        source.release()
        done += sum(tensors[key].num_bytes for key in keys)
        progress(_STEP, done, total)
    if split.is_sharded:
        index = {"metadata": {"total_size": total}, "weight_map": split.tensor_to_filename}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _restore(tensor: OriginalTensor, source: TensorSource) -> torch.Tensor:
    if len(tensor.names) > 1:
        parts = [source.load(tensor.names[index]) for index in sorted(tensor.names)]
        return torch.cat(parts).to(tensor.dtype)
    (name,) = tensor.names.values()
    value = source.load(name)
    if value.ndim and tensor.rows != slice(0, len(value)):
        value = value[tensor.rows].clone()  # torch.save would write all rows of a view
    if tensor.lacks_first:
        value = torch.cat([torch.zeros_like(value[:, :1]), value], dim=1)
    return value.to(tensor.dtype)
