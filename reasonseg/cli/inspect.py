"""`reasonseg inspect`: what is in a weight file?"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .printing import printable_name, write_out


if TYPE_CHECKING:
    from ..conversion.recognition import Inspection


def inspect(
    path: Annotated[Path, typer.Argument(help="A weight file, or a folder with weights.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    summary: Annotated[bool, typer.Option("--summary", help="Leave the list of tensors out.")] = False,
):
    """List the tensors of a checkpoint, their types, and the system and variant it belongs to.

    No tensor is read and nothing in the file is run.
    """
    from ..conversion.manifest import MANIFEST, count_new, learned_nothing, read_manifest
    from ..conversion.recognition import inspect_checkpoint

    found = inspect_checkpoint(path)
    if (path / MANIFEST).is_file() and (said := learned_nothing(count_new(read_manifest(path)))):
        found = replace(found, recognised=replace(found.recognised, notes=(*found.recognised.notes, said)))
    write_out(_as_json(found, summary) if as_json else _as_text(found, summary))


def _as_json(found: "Inspection", summary: bool) -> str:
    values = {
        "path": str(found.path),
        **asdict(found.recognised),
        "num_tensors": len(found.tensors),
        "num_parameters": found.num_parameters,
        "num_bytes": found.num_bytes,
        "bytes_by_dtype": found.bytes_by_dtype,
    }
    if not summary:
        values["tensors"] = [asdict(tensor) for tensor in found.tensors]
    return json.dumps(values, indent=1) + "\n"


def _as_text(found: "Inspection", summary: bool) -> str:
    recognised = found.recognised
    lines = []
    if not summary:
        width = max(len(tensor.name) for tensor in found.tensors)
        lines = [
            f"{printable_name(tensor.name):<{width}}  {tensor.dtype:<9} {list(tensor.shape)}"
            for tensor in found.tensors
        ]
        lines.append("")
    types = ", ".join(f"{size / 1e9:.3f} GB {name}" for name, size in sorted(found.bytes_by_dtype.items()))
    rank = "" if recognised.lora_rank is None else f", unmerged LoRA of rank {recognised.lora_rank}"
    lines += [
        f"{printable_name(found.path)}: {len(found.tensors)} tensors, {found.num_parameters:,} parameters ({types})",
        f"system: {recognised.system}; variant: {recognised.variant}{rank}",
        *recognised.notes,
    ]
    if recognised.dropped:
        lines.append(f"{recognised.dropped} tensors are left out by a conversion (recomputed or not needed)")
    if recognised.unknown:
        shown = ", ".join(map(printable_name, recognised.unknown[:3]))
        lines.append(f"{len(recognised.unknown)} tensors are not of this layout, the first are {shown}")
    return "\n".join(lines) + "\n"
