"""What training changed, without the base: exported from a converted repository, and put together with the base again.

A tensor that equals the base's is left out. A changed one is stored as the exclusive or of both bit patterns, which
holds nothing of the base for whoever does not have it and gives back every bit to whoever has. New tensors are stored
whole. The repository has the layout

    config.json, processor, code, README.md     as in the full repository, with its own card
    trained/trained.safetensors                 differences and new tensors
    trained/trained.json                        what to do for every tensor, and the sha256 of every result
    trained/full/                               card, manifest and index of the full repository
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..loading import load_pretrained
from .card import card_trainings, card_values, read_card, render_card
from .errors import ConversionError, refusing
from .file_type import check_link
from .inventory import Inventory
from .locations import Location, locate
from .manifest import MANIFEST, file_sha256, is_trained, read_manifest, repository_files
from .progress import ProgressCallback, no_progress
from .repository_code import code_references, stray_files
from .rules import WEIGHT
from .rules_lisa_gsva import SEGMENTER, TEXT_MODEL, VLM, clip_table, detect_layout, lisa_gsva_table, sam_table
from .shards import BITS, DTYPE_NAMES, as_bits
from .sources import (
    SafetensorsFile,
    TensorSource,
    check_plain_name,
    open_source,
    read_any_json,
    read_json,
)
from .systems import SYSTEMS, PublishedSystem
from .writer import staging_folder


TRAINED = "trained"
_WEIGHTS, _EXPORT, _FULL = f"{TRAINED}/trained.safetensors", f"{TRAINED}/trained.json", f"{TRAINED}/full"
_CARD = "README.md"
_INDEX = "model.safetensors.index.json"
_OWN = (_CARD, MANIFEST, _INDEX)  # files that only fit the full weights
_FORMAT = 1
_SAME, _DIFFERENCE, _WHOLE = "same as base", "difference", "whole"
_LANGUAGE_MODEL = (TEXT_MODEL, f"{VLM}lm_head.")
# Far above every tensor, and above the tokens that a training adds.
_MAX_SIZE, _MAX_NEW_ROWS = 1 << 31, 1 << 16
_RELEASE_BYTES = 1 << 30  # mapped pages count as this process's memory until they are given back


@dataclass(frozen=True)
class Base:
    """What a checkpoint was trained from.

    Args:
        llava (`str` or `os.PathLike`): The base LLaVA, with weights: a folder, or `org/name[@revision]` on the Hub.
        vision_tower (`str` or `os.PathLike`, *optional*): The CLIP model, likewise.
        sam (`str` or `os.PathLike`, *optional*): SAM's own file, or `org/name/file.pth` on the Hub.
    """

    llava: Location
    vision_tower: Location | None = None
    sam: Location | None = None


class _BaseWeights:
    """The base's tensors under the converted names, in the shape and type of the trained ones."""

    def __init__(self, base: Base):
        self._inventory = Inventory()
        llava = open_source(locate(base.llava))
        try:
            self._inventory.add(llava, lisa_gsva_table(detect_layout(llava.names())), "base")
        except ConversionError as error:
            raise error.at(llava.path) from None
        if base.vision_tower is not None:
            tower = open_source(locate(base.vision_tower))
            self._inventory.add(tower, clip_table(tower.names()), "vision tower")
        if base.sam is not None:
            self._inventory.add(open_source(locate(base.sam)), sam_table(), "SAM file")
        self.release = self._inventory.release

    def load(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
        """A tensor, cast, with rows of zeros where the trained one has more; `None` if the base has none like it."""
        piece = self._inventory.pieces.get(name, {}).get(WEIGHT)
        if piece is None:
            return None
        own = piece.info.shape
        if own[1:] != shape[1:] or len(own) != len(shape) or own[:1] > shape[:1]:
            return None
        if own and shape[0] - own[0] > _MAX_NEW_ROWS:
            return None
        value = piece.load().to(dtype)
        if own != shape:
            value = torch.cat([value, value.new_zeros(shape[0] - own[0], *shape[1:])])
        return value.contiguous()


def is_trained_export(folder: str | Path) -> bool:
    """Whether a folder holds what training changed rather than full weights."""
    return (Path(folder) / _EXPORT).is_file()


def export_trained(
    repo: str | Path,
    out: str | Path,
    *,
    base: Base,
    card: str | None = None,
    progress: ProgressCallback | None = None,
) -> Path:
    """Write what training changed into a new repository.

    Args:
        repo (`str` or `Path`): A converted repository, verified.
        out (`str` or `Path`): The folder to make; it must not exist or be empty.
        base (`Base`): What the checkpoint was trained from.
        card (`str`, *optional*): Name of the card's values; by default the repository's card says it.
        progress (`ProgressCallback`, *optional*): Told about bytes read.

    Returns:
        `Path`: `out`.

    Raises:
        ConversionError: The base is not this checkpoint's, or something cannot be read or written.
    """
    repo, out, progress = Path(repo), Path(out), progress or no_progress
    manifest = read_manifest(repo)
    exporting = _exporting_systems()
    system = exporting.get(manifest["system"])
    if system is None:
        raise ConversionError(
            f"Trained tensors of the system {manifest['system']!r} cannot be exported.",
            path=repo,
            next_step=f"Possible with {', '.join(exporting)}.",
        )
    names = repository_files(repo, trained=is_trained(manifest))
    headers = {name: _raw_header(repo / name) for name in names if name.endswith(".safetensors")}
    full, base_weights = open_source(repo), _BaseWeights(base)
    tensors = _compare(full, base_weights, progress)
    with staging_folder(out) as folder:
        _copy_others(repo, folder, names)
        (folder / _FULL).mkdir(parents=True)
        for name in _OWN:
            if (repo / name).is_file():
                shutil.copyfile(repo / name, folder / _FULL / name)
        _write_changed(folder / _WEIGHTS, full, base_weights, tensors)
        config = load_pretrained(system.config_class, repo)
        readme = read_card(repo)
        described = card or card_values(readme) or system.name
        trainings = card_trainings(readme)
        text = render_card(system.name, described, config, config.dtype, form="trained", trainings=trainings)
        (folder / _CARD).write_text(text, encoding="utf-8")
        digests = {name: file_sha256(folder / name) for name in repository_files(folder) if name != _CARD}
        body = {"format": _FORMAT, "system": system.name, "files": digests, "headers": headers, "tensors": tensors}
        (folder / _EXPORT).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return out


def check_trained(folder: str | Path) -> None:
    """Check every file of an export but its card, which may be edited.

    Raises:
        ConversionError: A file is missing, was changed or added.
    """
    folder = Path(folder)
    digests = _read_export(folder)["files"]
    for name, digest in digests.items():
        check_link(folder / name, folder)
        if not (folder / name).is_file() or file_sha256(folder / name) != digest:
            raise ConversionError(
                "The file is missing or not the one that was exported.",
                path=folder / name,
                next_step="Export or download it again.",
            )
        if name.endswith(".json"):
            for cause in code_references(name, read_any_json(folder / name), digests):
                raise ConversionError(cause, path=folder / name, next_step="Get it from its original publisher.")
    known = {name: {"sha256": digest} for name, digest in digests.items()} | {_CARD: {}, _EXPORT: {}}
    for name, _ in stray_files(folder, known, trained=False):
        raise ConversionError("The export did not write this file.", path=folder / name, next_step="Remove it.")


def restore(folder: str | Path, out: str | Path, *, base: Base, progress: ProgressCallback | None = None) -> Path:
    """Put an export and its base together to the full repository, byte for byte the one it was exported from.

    Args:
        folder (`str` or `Path`): What `export_trained` wrote.
        out (`str` or `Path`): The folder to make; it must not exist or be empty.
        base (`Base`): What the checkpoint was trained from.
        progress (`ProgressCallback`, *optional*): Told about bytes written.

    Returns:
        `Path`: `out`.

    Raises:
        ConversionError: A file is damaged, or the base is another one.
    """
    folder, out, progress = Path(folder), Path(out), progress or no_progress
    check_trained(folder)
    export, load = _open_export(folder, base)
    headers = {name: json.loads(raw) for name, raw in export["headers"].items()}
    total = sum(end for header in headers.values() for end in _ends(header))
    done = 0
    with staging_folder(out) as staging:
        _copy_others(folder, staging, repository_files(folder))
        for name in _OWN:
            if (folder / _FULL / name).is_file():
                shutil.copyfile(folder / _FULL / name, staging / name)
        for file_name, raw in export["headers"].items():
            with (staging / file_name).open("wb") as file:
                encoded = raw.encode("utf-8")
                file.write(len(encoded).to_bytes(8, "little") + encoded)
                for name in _in_order(headers[file_name]):
                    data = _bytes_of(load(name))
                    file.write(data)
                    done += len(data)
                    progress("Restoring weights", done, total)
    return out


def _exporting_systems() -> dict[str, PublishedSystem]:
    return {name: system for name, system in SYSTEMS.items() if system.exports_trained}


def _compare(full: TensorSource, base: _BaseWeights, progress: ProgressCallback) -> dict[str, dict[str, Any]]:
    """What to do for every tensor."""
    tensors, total = {}, sum(_num_bytes(full, name) for name in full.names())
    done = since = 0
    for name in sorted(full.names()):
        value = full.load(name)
        counterpart = base.load(name, tuple(value.shape), value.dtype)
        if counterpart is None:
            how = _WHOLE
        else:
            how = _SAME if torch.equal(as_bits(value), as_bits(counterpart)) else _DIFFERENCE
        if how == _WHOLE and name.startswith(_LANGUAGE_MODEL):
            raise ConversionError(
                f"The base has no tensor like {name!r} of {tuple(value.shape)}, so there is no difference to store.",
                next_step="Pass the base LLaVA, with its weights, that the checkpoint was trained from.",
            )
        tensors[name] = {
            "how": how,
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "sha256": hashlib.sha256(_bytes_of(value)).hexdigest(),
        }
        done, since = done + value.nbytes, since + value.nbytes
        progress("Comparing with the base", done, total)
        if since > _RELEASE_BYTES:
            since = 0
            full.release()
            base.release()
    language = [entry["how"] for name, entry in tensors.items() if name.startswith(_LANGUAGE_MODEL)]
    if _SAME not in language:
        raise ConversionError(
            "Not one tensor of the language model equals the base's, so this is not the base it was trained from.",
            next_step="Pass the base LLaVA that the checkpoint was trained from; LISA's and GSVA's READMEs name it.",
        )
    return tensors


def _write_changed(
    path: Path, full: TensorSource, base: _BaseWeights, tensors: Mapping[str, Mapping[str, Any]]
) -> None:
    """Differences as integers, which nobody mistakes for weights, and whole tensors as they are."""
    stored = {name: entry for name, entry in tensors.items() if entry["how"] != _SAME}
    # Wide types first keeps every tensor aligned.
    order = sorted(stored, key=lambda name: (-_dtype(stored[name]).itemsize, name))
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in order:
        entry, dtype = stored[name], _dtype(stored[name])
        code = BITS[dtype.itemsize][1] if entry["how"] == _DIFFERENCE else DTYPE_NAMES[dtype]
        end = offset + _num_bytes(full, name)
        header[name] = {"dtype": code, "shape": entry["shape"], "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        since = 0
        for name in order:
            value = full.load(name)
            if stored[name]["how"] == _DIFFERENCE:
                value = as_bits(value) ^ as_bits(base.load(name, tuple(value.shape), value.dtype))
            file.write(_bytes_of(value))
            since += value.nbytes
            if since > _RELEASE_BYTES:
                since = 0
                full.release()
                base.release()


def _open_export(folder: Path, base: Base) -> tuple[dict[str, Any], Callable[[str], torch.Tensor]]:
    """What the export says, and a function that gives every full tensor, checked."""
    export = _read_export(folder)
    changed, base_weights = SafetensorsFile(folder / _WEIGHTS), _BaseWeights(base)
    since = 0

    def load(name: str) -> torch.Tensor:
        nonlocal since
        entry = export["tensors"][name]
        shape, dtype = tuple(entry["shape"]), _dtype(entry)
        if entry["how"] == _WHOLE:
            value = changed.load(name)
        else:
            value = base_weights.load(name, shape, dtype)
            if value is not None and entry["how"] == _DIFFERENCE:
                value = (as_bits(value) ^ changed.load(name)).view(dtype)
        if value is None or hashlib.sha256(_bytes_of(value)).hexdigest() != entry["sha256"]:
            source = "SAM" if name.startswith(SEGMENTER) else "language model or vision tower"
            raise ConversionError(
                f"With this base {name!r} does not come out as it was: its {source} is not the one the checkpoint was "
                "trained from.",
                path=folder,
                next_step="Pass the base, the vision tower and the SAM file that the card names.",
            )
        since += value.nbytes
        if since > _RELEASE_BYTES:
            since = 0
            value = value.clone()
            changed.release()
            base_weights.release()
        return value

    return export, load


def _read_export(folder: Path) -> dict[str, Any]:
    path = folder / _EXPORT
    if not path.is_file():
        raise ConversionError(
            f"The folder has no {_EXPORT}, so it is not an export of trained tensors.",
            path=folder,
            next_step="Pass what `reasonseg publish --trained-only` has written.",
        )
    export = read_json(path)
    expected = {"format": int, "system": str, "files": dict, "headers": dict, "tensors": dict}
    odd = [name for name, kind in expected.items() if not isinstance(export.get(name), kind)]
    if odd or export["format"] != _FORMAT or export["system"] not in _exporting_systems():
        raise ConversionError(
            f"The export cannot be read by this version (format {export.get('format')!r}, fields {odd} are odd).",
            path=path,
            next_step="Use the version of reasonseg that wrote it.",
        )
    for name in [*export["files"], *export["headers"]]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ConversionError(f"The export names the file {name!r} outside its folder.", path=path)
    if bad := [name for name, entry in export["tensors"].items() if not _is_entry(entry)]:
        raise ConversionError(f"The export's entry of the tensor {bad[0]!r} is malformed.", path=path)
    with refusing("The export's headers cannot be read", path=path, next_step="Export or download it again."):
        for name, raw in export["headers"].items():
            check_plain_name(name, path)
            header = json.loads(raw)
            order, ends = _in_order(header), list(_ends(header))
            wrong = [key for key in order if header[key]["shape"] != export["tensors"][key]["shape"]]
            if wrong or type(ends[0]) is not int or not name.endswith(".safetensors"):
                raise ConversionError(f"The header of {name!r} does not fit the tensors.")
    return export


def _is_entry(entry: object) -> bool:
    """Whether an entry says of a tensor what `_compare` writes, with sizes that a tensor can have."""
    if not isinstance(entry, dict) or not isinstance(entry.get("shape"), list):
        return False
    sizes = [size for size in entry["shape"] if type(size) is int and 0 <= size <= _MAX_SIZE]
    known = {str(dtype).removeprefix("torch.") for dtype in DTYPE_NAMES}
    return (
        len(sizes) == len(entry["shape"])
        and entry.get("how") in (_SAME, _DIFFERENCE, _WHOLE)
        and entry.get("dtype") in known
        and isinstance(entry.get("sha256"), str)
    )


def _copy_others(source: Path, target: Path, names: Iterable[str]) -> None:
    """Of the named files, those that neither are weights nor name them."""
    for name in names:
        own = name.split("/")[0] == TRAINED or name.endswith(".safetensors") or name in _OWN
        if not own:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)


def _raw_header(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little")).decode("utf-8")


def _ends(header: Mapping[str, Any]) -> Iterator[int]:
    yield max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)


def _in_order(header: Mapping[str, Any]) -> list[str]:
    names = [name for name in header if name != "__metadata__"]
    return sorted(names, key=lambda name: header[name]["data_offsets"])


def _dtype(entry: Mapping[str, Any]) -> torch.dtype:
    return getattr(torch, entry["dtype"])


def _num_bytes(source: TensorSource, name: str) -> int:
    info = source.info(name)
    return torch.Size(info.shape).numel() * info.dtype.itemsize


def _bytes_of(value: torch.Tensor) -> memoryview:
    return memoryview(value.contiguous().reshape(-1).view(torch.uint8).numpy())
