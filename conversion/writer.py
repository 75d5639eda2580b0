"""Writing a complete repository: all or nothing."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save

from ..atomic_files import is_running
from .errors import ConversionError
from .plan import PlannedTensor
from .progress import ProgressCallback
from .shards import write_shards
from .systems import is_of_transformers


_SMALL_FILES_BYTES = 20_000_000  # tokenizer, code, configs, manifest


@contextmanager
def staging_folder(out: str | Path) -> Iterator[Path]:
    """A sibling of `out` that becomes `out` when the block ends well, and vanishes when it does not.

    Folders that a killed process has left behind are removed.

    Args:
        out (`str` or `Path`): The target; it must not exist, or be empty.

    Raises:
        ConversionError: The target holds something, or cannot be written.
    """
    out = Path(out).absolute()
    refuse_existing(out)
    prefix = f".{out.name}.{socket.gethostname()}-"
    staging = out.parent / f"{prefix}{os.getpid()}.partial"
    new_parents = [parent for parent in out.parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out.parent, prefix)
        staging.mkdir()
    except OSError as error:
        raise ConversionError(
            f"The target cannot be written ({error.strerror}).", path=out, next_step="Choose another folder."
        ) from error
    try:
        yield staging
        refuse_existing(out)
        if out.exists():
            out.rmdir()
        staging.rename(out)
    except OSError as error:
        raise ConversionError(
            f"The conversion failed ({error.strerror or error}); nothing was left behind.",
            path=error.filename or out,
            next_step="Check free space and permissions, then convert again.",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not out.exists():
            for parent in new_parents:
                with suppress(OSError):  # somebody else may have put something there meanwhile
                    parent.rmdir()


def check_free_space(out: Path, num_bytes: int) -> None:
    """Refuse before anything is written what the disk cannot hold.

    Args:
        out (`Path`): The target.
        num_bytes (`int`): Size of the weights.

    Raises:
        ConversionError: Names what is needed and what is free.
    """
    disk = next(parent for parent in out.absolute().parents if parent.exists())
    free, needed = shutil.disk_usage(disk).free, num_bytes + _SMALL_FILES_BYTES
    if free < needed:
        raise ConversionError(
            f"The repository needs {needed / 1e9:.1f} GB and {disk} has {free / 1e9:.1f} GB free.",
            path=out,
            next_step="Free space, choose another disk, or store smaller types with dtype=.",
        )


def refuse_existing(out: Path) -> None:
    """Refuse a target that would be overwritten.

    Raises:
        ConversionError: It is a file or a folder that holds something.
    """
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise ConversionError(
            "The target exists already and is not an empty folder.",
            path=out,
            next_step="Choose another folder or remove this one; existing files are never overwritten.",
        )


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for folder in parent.iterdir():
        if folder.name.startswith(prefix) and folder.name.endswith(".partial"):
            owner = folder.name.removeprefix(prefix).removesuffix(".partial")
            # This process holds no staging folder yet, so its own number is that of an earlier one.
            if owner.isdigit() and (int(owner) == os.getpid() or not is_running(int(owner))):
                shutil.rmtree(folder, ignore_errors=True)


def write_repository(
    folder: Path,
    *,
    model: PreTrainedModel,
    tensors: Sequence[PlannedTensor],
    dtype: torch.dtype,
    generation_config: GenerationConfig,
    processor: ProcessorMixin,
    max_shard_size: int | str,
    progress: ProgressCallback,
    release: Callable[[], None],
) -> dict[Path, str]:
    """Write weights, configs, processor and published code into a folder.

    Args:
        folder (`Path`): An empty folder.
        model (`PreTrainedModel`): The model, on the meta device: its config and code are written, not its weights.
        tensors (`Sequence[PlannedTensor]`): The weights.
        dtype (`torch.dtype`): What `dtype="auto"` loads.
        generation_config (`GenerationConfig`): Defaults of `generate`.
        processor (`ProcessorMixin`): Tokenizer, image processor and chat template.
        max_shard_size (`int` or `str`): See `write_shards`.
        progress (`ProgressCallback`): See `write_shards`.
        release (`Callable[[], None]`): See `write_shards`.

    Returns:
        `dict[Path, str]`: sha256 of the weight files.
    """
    model.config.architectures = [type(model).__name__]
    model.config.dtype = dtype
    if not is_of_transformers(type(model)):
        custom_object_save(model, folder, config=model.config)
    model.config.save_pretrained(folder)
    generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return write_shards(folder, tensors, max_shard_size, progress, release)
