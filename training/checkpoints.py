"""Folders that a training run writes: whole under their name, or absent, and which of them a run can resume from."""

import json
import logging
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


logger = logging.getLogger(__name__)

# Where a checkpoint and the finished repository are written before they have their names.
CHECKPOINT_DRAFT = ".checkpoint.partial"
FINISHED_DRAFT = ".finished.partial"
_REPLACED = ".replaced.partial"
# What a benchmark keeps while it runs in the middle of a training; nothing of it is needed afterwards.
VALIDATION_DRAFT = ".validation.partial"
# Stands in the folder of a run from its start to its end.
_UNFINISHED = ".unfinished"
_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


def newest_complete(out: Path, with_optimizer: bool = True) -> Path | None:
    """
    The checkpoint a run resumes from; newer ones that are not complete are named in a warning.

    Args:
        out (`Path`): Folder of the run; it need not exist.
        with_optimizer (`bool`): Whether the run's checkpoints hold the optimizer's state.
    """
    for checkpoint in list_checkpoints(out):
        reason = why_incomplete(checkpoint, with_optimizer)
        if reason is None:
            return checkpoint
        logger.warning("%s is not complete (%s); looking for an older one.", checkpoint, reason)
    return None


def list_checkpoints(out: Path) -> list[Path]:
    """All `checkpoint-N` in a folder, the newest first."""
    if not out.is_dir():
        return []
    steps = {path: int(match[1]) for path in out.iterdir() if (match := _NAME.fullmatch(path.name)) and path.is_dir()}
    return sorted(steps, key=steps.__getitem__, reverse=True)


def why_incomplete(checkpoint: Path, with_optimizer: bool = True) -> str | None:
    """What is missing in a checkpoint or was cut off; `None` if a run can resume from it."""
    try:
        state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        if not isinstance(state["global_step"], int):
            raise TypeError
    except FileNotFoundError:
        return f"it has no {TRAINER_STATE_NAME}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {TRAINER_STATE_NAME} is damaged"
    # `pytorch_model*` is FSDP's; DeepSpeed keeps everything in `global_step*`.
    needed = {"weights": ("*.safetensors", "pytorch_model*", "global_step*")}
    if with_optimizer:
        needed["state of the optimizer"] = ("optimizer*", "global_step*")
        needed["state of the learning rate"] = ("scheduler.pt", "global_step*")
        needed["state of the random numbers"] = ("rng_state*.pth",)
    for what, patterns in needed.items():
        if not any(path for pattern in patterns for path in checkpoint.glob(pattern)):
            return f"it has no {what}"
    for index in checkpoint.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            return f"its {index.name} is damaged"
        if missing := sorted(shard for shard in shards if not (checkpoint / shard).is_file()):
            return f"it has no {missing[0]}"
    damaged = [path.name for path in sorted(checkpoint.iterdir()) if path.is_file() and not _is_whole(path)]
    return f"its {damaged[0]} is damaged" if damaged else None


def _is_whole(path: Path) -> bool:
    """Whether a file of tensors reaches to its end."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt"):
                return True
        except (OSError, SafetensorError):
            return False
    # What torch writes is a zip archive, whose directory stands at its end.
    return path.suffix not in (".pt", ".pth") or zipfile.is_zipfile(path)


def begin(out: Path) -> None:
    """Note that a run has begun, and remove what a stopped one has left half written; for one process alone."""
    out.mkdir(parents=True, exist_ok=True)
    (out / _UNFINISHED).touch()
    for draft in (CHECKPOINT_DRAFT, FINISHED_DRAFT, VALIDATION_DRAFT, _REPLACED):
        shutil.rmtree(out / draft, ignore_errors=True)


def was_stopped(out: Path) -> bool:
    """Whether a run in this folder has begun and not ended."""
    return (out / _UNFINISHED).exists()


def end(out: Path) -> None:
    """Note that the run has ended."""
    (out / _UNFINISHED).unlink(missing_ok=True)


def put_in_place(draft: Path, target: Path) -> None:
    """Give a folder that is completely written its name; an older folder of this name goes away."""
    replaced = target.with_name(_REPLACED)
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        target.rename(replaced)
    draft.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


def move_files_in_place(draft: Path, target: Path) -> None:
    """Move a complete repository into a folder that also holds other things; each file appears whole, `config.json`
    last. Weights that were there before go away."""
    files = sorted((path for path in draft.rglob("*") if path.is_file()), key=lambda path: path.name == "config.json")
    names = {path.relative_to(draft) for path in files}
    for old in [*target.glob("*.safetensors"), *target.glob("*.safetensors.index.json")]:
        if old.relative_to(target) not in names:
            old.unlink()
    for path in files:
        moved = target / path.relative_to(draft)
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.replace(moved)
    shutil.rmtree(draft)


__all__ = [
    "CHECKPOINT_DRAFT",
    "FINISHED_DRAFT",
    "VALIDATION_DRAFT",
    "begin",
    "end",
    "list_checkpoints",
    "move_files_in_place",
    "newest_complete",
    "put_in_place",
    "was_stopped",
    "why_incomplete",
]
