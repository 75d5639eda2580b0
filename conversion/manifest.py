"""`manifest.json`: sha256 of every file of a repository, and where every tensor comes from.

The manifest also holds its own sha256, so that no single changed bit in any file goes unseen.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..atomic_files import write_whole
from .errors import ConversionError
from .file_type import check_link, check_regular_file
from .inventory import Dropped
from .locations import hub_snapshot
from .plan import PlannedTensor
from .rules import WEIGHT
from .shards import DTYPE_NAMES
from .sources import SafetensorsFile, read_json
from .tensor_operations import DRAW, DRAW_ROWS


MANIFEST, SIGNATURE = "manifest.json", "manifest.json.sig"
_FORMAT = 1
_OWN = (MANIFEST, SIGNATURE)
_OWN_DIGEST = "manifest_sha256"
_FIELDS = {"format": int, "system": str, "dtype": str, "files": dict, "tensors": dict, "dropped": dict}
_MAKER, TRAINING = "made_by", "training"
# What a training run needs to resume, beside the repository it has finished.
_TRAINING_STATE = re.compile(
    r"(?:checkpoint-\d+|towers|dwsl|composed|runs)/.*|trained_parts\.safetensors|training_args\.bin|composed\.json"
)


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def repository_files(folder: Path, *, trained: bool = False) -> list[str]:
    """Relative paths of the files of a repository; hidden ones (`.git`, `.cache`) belong to other tools.

    Args:
        folder (`Path`): The repository.
        trained (`bool`, *optional*, defaults to `False`): Whether a training run made it, whose own state in the same
            folder does not belong to it either.
    """
    files = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not any(part.startswith(".") or part == "__pycache__" for part in relative.parts) and not path.is_dir():
            files.append(relative.as_posix())
    return [name for name in files if not (trained and _TRAINING_STATE.fullmatch(name))]


def is_trained(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest describes what a training run has left."""
    return manifest.get(_MAKER) == TRAINING


def write_manifest(
    folder: Path,
    *,
    system: str,
    dtype: torch.dtype,
    tensors: Sequence[PlannedTensor],
    dropped: Iterable[Dropped],
    digests: Mapping[Path, str],
    folders: Mapping[str, Path] | None = None,
) -> None:
    """Write the manifest of a finished repository.

    Of sources that were downloaded from the Hub it holds the commit.

    Args:
        folder (`Path`): The repository.
        system (`str`): Name of the `PublishedSystem`, such as `"lisa"`.
        dtype (`torch.dtype`): Type of the vision-language model.
        tensors (`Sequence[PlannedTensor]`): What was written.
        dropped (`Iterable[Dropped]`): What was left out, and why.
        digests (`Mapping[Path, str]`): sha256 of files that need not be read again.
        folders (`Mapping[str, Path]`, *optional*): What was read beside tensors, such as `"tokenizer"`.
    """
    paths = {piece.origin: piece.source.path for tensor in tensors for piece in tensor.pieces.values()}
    left_out: dict[str, dict[str, list[str]]] = {}
    for entry in dropped:
        left_out.setdefault(entry.origin, {}).setdefault(entry.reason, []).append(entry.key)
    body = {
        "format": _FORMAT,
        "system": system,
        "dtype": str(dtype).removeprefix("torch."),
        "sources": _downloads(dict(folders or {}) | paths),
        "files": {name: _describe(folder / name, digests.get(folder / name)) for name in repository_files(folder)},
        "tensors": {tensor.name: _origin(tensor) for tensor in tensors},
        "dropped": left_out,
    }
    _write(folder, body)


def write_saved_manifest(folder: Path, *, system: str, dtype: str) -> None:
    """Write the manifest of a repository whose tensors come from training.

    Args:
        folder (`Path`): The repository.
        system (`str`): Such as `"lisa"`.
        dtype (`str`): The type its config names.

    Raises:
        ConversionError: A weight file is unreadable, or holds a type that is not published.
    """
    names = [name for name in repository_files(folder, trained=True) if name not in _OWN]
    tensors = {}
    for name in names:
        check_link(folder / name, folder)
        if name.endswith(".safetensors"):
            source = SafetensorsFile(folder / name)
            tensors |= {key: _saved(source, key) for key in source.names()}
    body = {
        "format": _FORMAT,
        "system": system,
        "dtype": dtype,
        _MAKER: TRAINING,
        "sources": {},
        "files": {name: _describe(folder / name) for name in names},
        "tensors": dict(sorted(tensors.items())),
        "dropped": {},
    }
    _write(folder, body)


def _saved(source: SafetensorsFile, key: str) -> dict[str, Any]:
    info = source.info(key)
    if info.dtype not in DTYPE_NAMES:
        raise ConversionError(
            f"{key!r} is stored as {info.dtype}; allowed are {', '.join(map(str, DTYPE_NAMES))}.", path=source.path
        )
    dtype = str(info.dtype).removeprefix("torch.")
    piece = {"part": WEIGHT, "source": TRAINING, "file": source.path.name, "key": key, "dtype": dtype}
    return {"dtype": DTYPE_NAMES[info.dtype], "shape": list(info.shape), "operations": [], "from": [piece]}


def update_manifest(folder: Path, names: Iterable[str]) -> None:
    """Enter files again that were changed on purpose, such as a new model card.

    Args:
        folder (`Path`): The repository.
        names (`Iterable[str]`): Relative paths; those that are gone are struck out.

    Raises:
        ConversionError: The manifest is missing or damaged.
    """
    body = read_manifest(folder)
    for name in names:
        if (folder / name).exists():
            body["files"][name] = _describe(folder / name)
        else:
            body["files"].pop(name, None)
    _write(folder, body)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest's fields, after its own digest was checked.

    Raises:
        ConversionError: It is missing, damaged, or of a version that is not known.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ConversionError(
            "The folder has no manifest.json, so it is not a repository that `reasonseg convert` made.",
            path=folder,
            next_step="Pass the folder a conversion has written; for a model you have trained or saved, "
            "`reasonseg verify --write-manifest` checks it and writes one.",
        )
    body = read_json(path)
    body.pop(_OWN_DIGEST, None)
    if not _is_intact(path.read_bytes()):
        raise ConversionError(
            "The manifest was changed after the conversion: its own sha256 does not match.",
            path=path,
            next_step="Convert again, or download the repository again.",
        )
    odd = [name for name, kind in _FIELDS.items() if not isinstance(body.get(name), kind)]
    if odd or body["format"] != _FORMAT:
        raise ConversionError(
            f"The manifest cannot be read by this version (format {body.get('format')!r}, fields {odd} are odd).",
            path=path,
            next_step="Verify with the version of reasonseg that made the repository.",
        )
    if bad := next((name for name, entry in body["files"].items() if not _is_file_entry(entry)), None):
        raise ConversionError(f"The manifest's entry of the file {bad!r} is malformed.", path=path)
    if bad := next((name for name, entry in body["tensors"].items() if not _is_tensor_entry(entry)), None):
        raise ConversionError(f"The manifest's entry of the tensor {bad!r} is malformed.", path=path)
    return body


def count_new(manifest: Mapping[str, Any]) -> int:
    """How many tensors of a composed repository are random numbers, or have rows of them; 0 for one that has learned.

    Args:
        manifest (`Mapping[str, Any]`): As `read_manifest` returns it.
    """
    drawn = {DRAW, DRAW_ROWS}
    return sum(not drawn.isdisjoint(map(str, entry["operations"])) for entry in manifest["tensors"].values())


def learned_nothing(count: int) -> str:
    """That in a sentence; empty for 0."""
    return f"It has learned nothing yet: {count} tensors, or rows of them, are random numbers." if count else ""


def _is_file_entry(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("size"), int) and isinstance(entry.get("sha256"), str)


def _is_tensor_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("from"), list):
        return False
    pieces = [piece for piece in entry["from"] if isinstance(piece, dict)]
    return (
        isinstance(entry.get("shape"), list)
        and isinstance(entry.get("dtype"), str)
        and isinstance(entry.get("operations"), list)
        and len(pieces) == len(entry["from"])
        and all(isinstance(piece.get(name), str) for piece in pieces for name in ("part", "source", "file", "key"))
    )


def _downloads(paths: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """The commits of those that are downloads from the Hub, by their role."""
    return {role: snapshot for role, path in sorted(paths.items()) if (snapshot := hub_snapshot(path)) is not None}


def _origin(tensor: PlannedTensor) -> dict[str, Any]:
    pieces = [
        {
            "part": part,
            "source": piece.origin,
            "file": piece.source.file(piece.key).name,
            "key": piece.key,
            "dtype": str(piece.info.dtype).removeprefix("torch."),
        }
        for part, piece in tensor.pieces.items()
    ]
    return {
        "dtype": DTYPE_NAMES[tensor.dtype],
        "shape": list(tensor.shape),
        **tensor.operations.to_json(),
        "from": pieces,
    }


def _describe(path: Path, digest: str | None = None) -> dict[str, Any]:
    check_regular_file(path)
    return {"size": path.stat().st_size, "sha256": digest or file_sha256(path)}


@lru_cache(maxsize=8)
def _is_intact(data: bytes) -> bool:
    """Whether a manifest is as it was written; one command reads the same one several times."""
    body = json.loads(data)
    digest = body.pop(_OWN_DIGEST, None)
    return digest == _digest(body) and data == _encode(body, digest)


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode("utf-8")).hexdigest()


def _encode(body: Mapping[str, Any], digest: str) -> bytes:
    return (json.dumps({**body, _OWN_DIGEST: digest}, indent=1) + "\n").encode("utf-8")


def _write(folder: Path, body: dict[str, Any]) -> None:
    body["files"] = {name: entry for name, entry in sorted(body["files"].items()) if name not in _OWN}
    write_whole(folder / MANIFEST, _encode(body, _digest(body)))
