"""Checking a repository against its manifest, its own config, and the original weights.

Nothing of the repository is executed: its code files are hashed and parsed, and the classes of this package are built
from its config.
"""

from __future__ import annotations

import ast
import functools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..loading import find_absurd_number, load_pretrained
from .errors import ConversionError, refusing
from .locations import ADAPTER, locate
from .manifest import (
    MANIFEST,
    SIGNATURE,
    count_new,
    file_sha256,
    is_trained,
    read_manifest,
    repository_files,
    write_saved_manifest,
)
from .peft_adapter import split_adapter_names
from .plan import empty_model, expected_shapes
from .progress import ProgressCallback, no_progress
from .repository_code import code_references, is_regular, stray_files
from .shards import DTYPE_NAMES, all_finite, as_bits
from .signatures import check_signature
from .sources import SafetensorsFile, TensorInfo, TensorSource, open_source, read_any_json, read_config, read_json
from .systems import SYSTEMS
from .tensor_operations import CAST, MERGE_LORA, TensorOperations
from .tokenizer_files import FAST_TOKENIZER, check_fast_tokenizers


_PROCESSOR = "processor_config.json"
_HASHING, _COMPARING = "Checking files", "Comparing tensors"
# Words and numbers by the thousand, and nothing that transformers would build something from.
_TOKENS = ("tokenizer.json", "vocab.json", "added_tokens.json", "model.safetensors.index.json")
_RELEASE_BYTES = 1 << 30  # mapped pages count as this process's memory until they are given back


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        file (`str`): The file's path in the repository.
        cause (`str`): What is wrong with it.
    """

    file: str
    cause: str


@dataclass
class VerifyReport:
    """What a verification found.

    Args:
        repo (`Path`): The repository.
        files (`int`): Files whose size and sha256 were compared.
        tensors (`int`): Tensors whose name, shape, type and values were checked.
        compared (`dict[str, int]`): Tensors compared with the sources, by how: `"bit for bit"`, `"to the cast"`.
        not_compared (`dict[str, int]`): Tensors of sources that were not given, by source.
        problems (`list[Problem]`): Empty where all is well.
        signed (`bool`): Whether the holder of a key that was given has signed the manifest.
        new (`int`): Tensors that are random numbers, or have rows of them: a composed model has learned nothing yet.
    """

    repo: Path
    files: int = 0
    tensors: int = 0
    compared: dict[str, int] = field(default_factory=dict)
    not_compared: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    signed: bool = False
    new: int = 0

    @property
    def ok(self) -> bool:
        return not self.problems

    def add(self, file: str, cause: str) -> None:
        self.problems.append(Problem(file, " ".join(cause.split())))


def system_of(config: Mapping[str, Any], repo: Path) -> str:
    """The name of the system a repository's `config.json` belongs to.

    Raises:
        ConversionError: It belongs to none.
    """
    names = {system.model_type: name for name, system in SYSTEMS.items()}
    if config.get("model_type") not in names:
        raise ConversionError(
            f"config.json has the model_type {config.get('model_type')!r}; known are {', '.join(sorted(names))}.",
            path=repo / "config.json",
            next_step="Pass a model of this package.",
        )
    return names[config["model_type"]]


def verify_repository(
    repo: str | Path,
    *,
    against: Mapping[str, str | Path] | None = None,
    key: str | Path | None = None,
    signature: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> VerifyReport:
    """Check a converted repository.

    Args:
        repo (`str` or `Path`): The folder.
        against (`Mapping[str, str | Path]`, *optional*): Original weights by their role in the manifest:
            `"checkpoint"`, `"vision tower"`, `"base"`, `"SAM file"`, `"diffusion"`, `"adapter"`, as they were given to
            the conversion, also as names on the Hub. Every tensor that comes from them is computed again and compared
            bit for bit.
        key (`str` or `Path`, *optional*): A public key whose holder must have signed the manifest.
        signature (`str` or `Path`, *optional*): The signature, where it is not in the repository.
        progress (`ProgressCallback`, *optional*): Told about bytes read.

    Returns:
        `VerifyReport`: `ok` is true when nothing was found.

    Raises:
        ConversionError: The folder has no readable manifest, or a source cannot be opened.
    """
    repo, progress = Path(repo), progress or no_progress
    if not repo.is_dir():
        raise ConversionError("There is no such folder.", path=repo, next_step="Pass a converted repository.")
    report = VerifyReport(repo)
    try:
        manifest = read_manifest(repo)
    except ConversionError as error:
        if not (repo / MANIFEST).is_file():
            raise
        report.add(MANIFEST, error.cause)
        return report
    report.new = count_new(manifest)
    if key is not None:
        _check_signature(report, Path(key), None if signature is None else Path(signature))
    sources = {
        role: open_source(locate(location, adapter=role == ADAPTER)) for role, location in (against or {}).items()
    }
    _check_files(report, manifest, progress)
    damaged = {problem.file for problem in report.problems}
    tensors = _check_headers(report, manifest, damaged)
    if not damaged:
        _check_model(report, manifest, tensors)
        _check_processor(report, manifest)
    _check_values(report, manifest, tensors, sources, progress)
    return report


def add_manifest(repo: str | Path, *, replace: bool = False, progress: ProgressCallback | None = None) -> VerifyReport:
    """Write the manifest of a repository that has none, and keep it only where everything else is right.

    What a training run keeps beside its repository (`checkpoint-N`, optimizer states, unmerged adapters) stays out.

    Args:
        repo (`str` or `Path`): The folder, with model, code and processor.
        replace (`bool`, *optional*, defaults to `False`): Write a new one where there is one already, because the
            weights were trained further.
        progress (`ProgressCallback`, *optional*): Told about bytes read.

    Returns:
        `VerifyReport`: What `verify_repository` says of the repository with its new manifest.

    Raises:
        ConversionError: The folder is not a repository, has a manifest, or something in it is wrong.
    """
    repo = Path(repo)
    if not repo.is_dir():
        raise ConversionError("There is no such folder.", path=repo, next_step="Pass a trained or saved model.")
    if not replace and (repo / MANIFEST).exists():
        raise ConversionError(
            "The repository has a manifest already.",
            path=repo / MANIFEST,
            next_step="Verify it as it is; if it was changed on purpose, remove the manifest first.",
        )
    config = read_json(repo / "config.json")
    try:
        write_saved_manifest(repo, system=system_of(config, repo), dtype=str(config.get("dtype") or "float32"))
        report = verify_repository(repo, progress=progress)
    except BaseException:
        (repo / MANIFEST).unlink(missing_ok=True)
        raise
    if not report.ok:
        (repo / MANIFEST).unlink()
        first, more = report.problems[0], len(report.problems) - 1
        raise ConversionError(
            f"{first.file}: {first.cause}" + (f" ({more} more problems)" if more else ""),
            path=repo,
            next_step="Correct it; then `reasonseg verify --write-manifest` writes the manifest.",
        )
    return report


def _check_signature(report: VerifyReport, key: Path, signature: Path | None) -> None:
    try:
        check_signature(report.repo, key, signature)
        report.signed = True
    except ConversionError as error:
        report.add(SIGNATURE, str(error))


def check_staged(folder: Path) -> None:
    """The part of the verification that costs no second reading of the weights, before a folder is published.

    Raises:
        ConversionError: Names the first problem.
    """
    manifest, report = read_manifest(folder), VerifyReport(folder)
    for name, entry in manifest["files"].items():
        small = not name.endswith(".safetensors")
        if (folder / name).stat().st_size != entry["size"] or (
            small and file_sha256(folder / name) != entry["sha256"]
        ):
            report.add(name, "What was written is not what the file holds.")
    tensors = _check_headers(report, manifest, set())
    _check_model(report, manifest, tensors)
    if report.problems:
        first = report.problems[0]
        raise ConversionError(
            f"The finished repository does not verify: {first.file}: {first.cause}",
            next_step="Check the disk and convert again; if it stays, report it with the command and this message.",
        )


def _check_model(report: VerifyReport, manifest: Mapping[str, Any], tensors: Mapping[str, TensorSource]) -> None:
    """Build the model from its config without memory, and compare its parameters with the weight files."""
    if manifest["system"] not in SYSTEMS:
        report.add(MANIFEST, f"The system {manifest['system']!r} is not one of {', '.join(SYSTEMS)}.")
        return
    system = SYSTEMS[manifest["system"]]
    try:
        with refusing("No model can be built from it"):
            if (stated := read_config(report.repo / "config.json").get("model_type")) != system.model_type:
                raise ConversionError(f"model_type is {stated!r}; a {manifest['system']} has {system.model_type!r}.")
            config = load_pretrained(system.config_class, report.repo, local_files_only=True)
            expected = expected_shapes(empty_model(system.model_class, config))
    except (ConversionError, ImportError) as error:
        report.add("config.json", getattr(error, "cause", f"No model can be built from it ({error})."))
        return
    if missing := [name for name in expected if name not in tensors]:
        report.add("config.json", f"The weights lack {len(missing)} parameters, the first is {missing[0]!r}.")
    _, others = split_adapter_names(list(tensors), expected)
    if extra := [name for name in others if name not in expected]:
        report.add("config.json", f"The model has no parameters for {len(extra)} tensors, the first is {extra[0]!r}.")
    for name in expected.keys() & tensors.keys():
        if expected[name] != (shape := tensors[name].info(name).shape):
            report.add("config.json", f"{name!r} should be {expected[name]} and is {shape}.")


def _check_processor(report: VerifyReport, manifest: Mapping[str, Any]) -> None:
    if manifest["system"] not in SYSTEMS:
        return
    names = [name for name in manifest["files"] if Path(name).name == FAST_TOKENIZER]
    try:
        check_fast_tokenizers([report.repo / name for name in names])
    except ConversionError as error:
        report.add(Path(error.path or names[0]).relative_to(report.repo).as_posix(), error.cause)
        return
    try:
        with refusing("The processor cannot be loaded"):
            load_pretrained(_processor_class(report.repo, manifest), report.repo, local_files_only=True)
    except (ConversionError, ImportError) as error:
        cause = getattr(error, "cause", f"The processor cannot be loaded ({error}).")
        report.add(_PROCESSOR, cause)


def _processor_class(repo: Path, manifest: Mapping[str, Any]) -> type:
    """The processor that a repository names, if it is one of this package, else its system's: a model may be composed
    of parts that the processor of its system was not made for."""
    path = repo / _PROCESSOR
    named = read_json(path).get("processor_class") if path.is_file() else None
    classes = {system.processor.rpartition(":")[2]: system for system in SYSTEMS.values()}
    return classes.get(named, SYSTEMS[manifest["system"]]).processor_class


def _check_files(report: VerifyReport, manifest: Mapping[str, Any], progress: ProgressCallback) -> None:
    repo, files = report.repo, manifest["files"]
    trained = is_trained(manifest)
    present = set(repository_files(repo, trained=trained))
    for name, cause in stray_files(repo, {MANIFEST: {}, SIGNATURE: {}, **files}, trained=trained):
        report.add(name, cause)
    total, done = sum(entry["size"] for entry in files.values()), 0
    for name, entry in files.items():
        path = repo / name
        report.files += 1
        done += entry["size"]
        if name not in present:
            report.add(name, "The file is missing.")
        elif not is_regular(path):
            report.add(name, "This is not a file: a pipe, a device or a link that leads nowhere.")
        elif path.is_symlink() and not path.resolve().is_relative_to(_hub_root(repo)):
            report.add(name, "This is a link that leads out of the repository.")
        elif path.stat().st_size != entry["size"]:
            report.add(name, f"The file has {path.stat().st_size} bytes instead of {entry['size']}.")
        elif file_sha256(path) != entry["sha256"]:
            report.add(name, "The sha256 differs: the file was changed or damaged.")
        else:
            _check_content(report, path, name, files)
        progress(_HASHING, done, total)


def _hub_root(repo: Path) -> Path:
    """Where links may lead: the Hub's cache keeps files of a snapshot in `blobs` two folders up."""
    resolved = repo.resolve()
    return resolved.parents[1] if resolved.parent.name == "snapshots" else resolved


def _check_content(report: VerifyReport, path: Path, name: str, files: Mapping[str, Any]) -> None:
    """Parse a small file; what a config says of code and sizes is looked at before anything is built from it."""
    try:
        if path.suffix == ".py":
            _parse_code(path.read_bytes())
        elif path.name in _TOKENS:
            read_any_json(path)
        elif path.suffix == ".json":
            content = read_any_json(path)
            for cause in code_references(name, content, files):
                report.add(name, cause)
            if isinstance(content, Mapping) and (cause := find_absurd_number(content)) is not None:
                report.add(name, f"The file states {cause}.")
    except (SyntaxError, ValueError, RecursionError, MemoryError, ConversionError) as error:
        report.add(name, f"The file cannot be parsed ({error}).")


@functools.lru_cache(maxsize=128)
def _parse_code(content: bytes) -> None:
    """Many repositories hold the same code; what cannot be parsed is not remembered."""
    ast.parse(content)


def _check_headers(report: VerifyReport, manifest: Mapping[str, Any], damaged: set[str]) -> dict[str, TensorSource]:
    """Compare names, shapes and types in the weight files with the manifest; returns the file of each tensor."""
    found: dict[str, TensorSource] = {}
    for name in manifest["files"]:
        if name.endswith(".safetensors") and name not in damaged:
            try:
                source = SafetensorsFile(report.repo / name)
            except ConversionError as error:
                report.add(name, error.cause)
                continue
            found |= dict.fromkeys(source.names(), source)
    for name, entry in manifest["tensors"].items():
        if name not in found:
            if not damaged:
                report.add(MANIFEST, f"No weight file holds {name!r}.")
            continue
        info = found[name].info(name)
        if list(info.shape) != entry["shape"] or DTYPE_NAMES.get(info.dtype) != entry["dtype"]:
            wanted = f"{entry['dtype']} {entry['shape']}"
            report.add(found[name].path.name, f"{name!r} is {info.dtype} {list(info.shape)} instead of {wanted}.")
    for name in found.keys() - manifest["tensors"].keys():
        report.add(found[name].path.name, f"The manifest does not know the tensor {name!r}.")
    return found


def _check_values(
    report: VerifyReport,
    manifest: Mapping[str, Any],
    tensors: Mapping[str, TensorSource],
    sources: Mapping[str, TensorSource],
    progress: ProgressCallback,
) -> None:
    """Check that all values are finite and, where the source is at hand, that they are the source's."""
    compared, not_compared, read = Counter(), Counter(), 0
    known = {role: frozenset(source.names()) for role, source in sources.items()}
    total = sum(_num_bytes(source.info(name)) for name, source in tensors.items())
    done = 0
    for name, source in tensors.items():
        value = source.load(name)
        report.tensors += 1
        if not value.is_floating_point():
            report.add(source.path.name, f"{name!r} holds {value.dtype} and no weights.")
            continue
        if not all_finite(value):
            report.add(source.path.name, f"{name!r} holds NaN or infinite values.")
        entry = manifest["tensors"].get(name)
        if sources and entry is not None:
            pieces = {piece["part"]: piece for piece in entry["from"]}
            lacking = {piece["source"] for piece in pieces.values()} - sources.keys()
            gone = [piece["key"] for piece in pieces.values() if piece["key"] not in known.get(piece["source"], ())]
            if lacking:
                not_compared[" + ".join(sorted(lacking))] += 1
            elif gone:
                report.add(source.path.name, f"{name!r} was made from {gone[0]!r}, which the source does not hold.")
            else:
                how = _compare(report, source.path.name, name, value, entry, pieces, sources)
                compared.update([how] if how else [])
        done += value.nbytes
        read += value.nbytes
        del value
        if read > _RELEASE_BYTES:
            read = 0
            for opened in {*tensors.values(), *sources.values()}:
                opened.release()
        progress(_COMPARING, done, total)
    report.compared, report.not_compared = dict(compared), dict(not_compared)


def _num_bytes(info: TensorInfo) -> int:
    return math.prod(info.shape) * info.dtype.itemsize


def _compare(
    report: VerifyReport,
    file: str,
    name: str,
    value: torch.Tensor,
    entry: Mapping[str, Any],
    pieces: Mapping[str, Mapping[str, str]],
    sources: Mapping[str, TensorSource],
) -> str | None:
    """Compute a tensor again from its sources; returns how it agrees, `None` where it does not."""

    def load(part: str) -> torch.Tensor:
        return sources[pieces[part]["source"]].load(pieces[part]["key"])

    try:
        operations = TensorOperations.from_json(entry)
        expected = operations.compute(load, tuple(value.shape), value.dtype)
    except (ConversionError, KeyError, ValueError, RuntimeError) as error:
        report.add(file, f"{name!r} cannot be computed from the source ({error}).")
        return None
    if torch.equal(as_bits(expected), as_bits(value)):
        return "to the cast" if CAST in operations.names else "bit for bit"
    # Another machine may add the products of a matrix product in another order.
    step = torch.finfo(value.dtype).eps
    if MERGE_LORA in operations.names and torch.allclose(expected, value, rtol=2 * step, atol=1e-6):
        return "to the rounding of the LoRA merge"
    differing = (as_bits(expected) != as_bits(value)).sum().item()
    report.add(file, f"{name!r} differs from the source in {differing} of {value.numel()} values.")
    return None
