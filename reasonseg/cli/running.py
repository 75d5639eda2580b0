"""What the commands that run a checkpoint over images share: loading, batches, saving."""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..folder_lock import FolderInUseError
from ..model_names import resolve_model
from ..precision import Precision, load_model
from .failures import CommandError, describe, path_text, print_error, stderr_console
from .progress import with_progress


# `processing/image_loading.py` reads it.
_PIXELS_VARIABLE = "REASONSEG_MAX_IMAGE_PIXELS"
# A full or a read-only disk.
_NOTHING_CAN_BE_WRITTEN = {errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}


def _allow_pixels(context: typer.Context, limit: int | None) -> int | None:
    """Let images of this command have as many pixels, in every process that it starts."""
    if limit is not None:
        before = os.environ.get(_PIXELS_VARIABLE)
        os.environ[_PIXELS_VARIABLE] = str(limit)
        context.call_on_close(lambda: _restore(before))
    return limit


def _restore(before: str | None) -> None:
    if before is None:
        del os.environ[_PIXELS_VARIABLE]
    else:
        os.environ[_PIXELS_VARIABLE] = before


# Of every command that reads images; giving the option is all that is needed.
MaxImagePixels = Annotated[
    int | None,
    typer.Option(
        "--max-image-pixels",
        min=1,
        callback=_allow_pixels,
        help="Largest allowed width x height of an image.  [default: the checkpoint's, or 67108864]",
    ),
]


Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; auto: an accelerator if there is one.")]
Revision = Annotated[str | None, typer.Option(help="Commit hash, tag or branch of a Hub checkpoint.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint.")
]


class Dtype(StrEnum):
    """Number formats a checkpoint can be loaded in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Quantization(StrEnum):
    """Quantizations of a language model's layers."""

    four_bit = "4bit"
    eight_bit = "8bit"
    int8 = "int8"
    int4 = "int4"


KeptDtype = Annotated[Dtype, typer.Option(help="auto keeps what the checkpoint is stored in.")]
SegmenterDtype = Annotated[
    Dtype, typer.Option(help="Of the segmenter's image encoder; auto: what the checkpoint says, else --dtype.")
]
Quantized = Annotated[
    Quantization | None,
    typer.Option(
        "--quantization",
        help="Hold the language model's layers so: 4bit and 8bit by bitsandbytes, int8 and int4 by torchao. Saves "
        "memory; not faster everywhere.",
    ),
]
Compiled = Annotated[
    bool, typer.Option("--compile", help="Compile decoding and the segmenter's encoder; pays for many images.")
]


def precision_of(dtype: Dtype, segmenter_dtype: Dtype, quantization: Quantization | None, compiled: bool) -> Precision:
    """What these options say together."""
    return Precision(
        dtype.value, segmenter_dtype.value, None if quantization is None else quantization.value, compiled
    )


def print_written(*paths: Path) -> None:
    """Say on stderr which files were written."""
    stderr_console().print(f"Written: {' and '.join(map(path_text, paths))}", soft_wrap=True)


def is_main_process() -> bool:
    """Return whether this is the one of the processes started by `torchrun` that writes what all share."""
    return int(os.environ.get("RANK", "0")) == 0


def load_checkpoint(
    name: str,
    revision: str | None,
    precision: Precision,
    device: str,
    trust_remote_code: bool,
    command: str = "segment",
    asked: str | None = None,
) -> tuple[Any, Any]:
    """Load model and processor of a folder or Hub name; the model is on its device, in evaluation mode.

    Args:
        name: as `resolve_model` takes it.
        command: which command asks. Where another one is made for this model, stderr says so.
        asked: what asks, in the words of the user; `reasonseg` and the command by default.

    Raises:
        CommandError: `name` is not a model, or `device` cannot be used here.
        WrongModelError: the command cannot run this model.
    """
    name = resolve_model(name, revision)
    import transformers
    from transformers import AutoProcessor
    from transformers.utils import logging

    from ..loading import load_pretrained
    from ..model_kinds import check_model_fits

    logging.disable_progress_bar()  # the commands have their own
    kind = check_model_fits(command, name, revision, trust_remote_code, asked)
    if kind is not None and command not in ("chat", kind.commands[0]):
        note = (
            f"{str(name)!r} is of the kind {kind.name}: such models {kind.does}. The command for that is "
            f"`reasonseg {kind.commands[0]}`."
        )
        stderr_console().print(note, soft_wrap=True, markup=False)
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    processor = load_pretrained(AutoProcessor, name, **source)
    writes_text = command == "ask" or (command == "chat" and kind is not None and "ask" in kind.commands)
    auto_class = transformers.AutoModelForImageTextToText if writes_text else transformers.AutoModel
    return load_model(auto_class, name, precision, torch_device(device), **source), processor


def run_in_batches(
    run: Callable[[list[Any]], list[Any]], items: Sequence[Any], load: Callable[[Any], Any], batch_size: int
) -> Iterator[tuple[Any, Any]]:
    """Yield each item with `(loaded, result)`, or with the exception that kept it from being done.

    Args:
        run: takes a batch of loaded items and returns one result for each.
        items: what is to be done.
        load: makes what `run` takes; what it raises is this item's failure alone.
        batch_size: items per call of `run`.
    """
    for start in range(0, len(items), batch_size):
        batch = []
        for item in items[start : start + batch_size]:
            try:
                batch.append((item, load(item)))
            except Exception as error:
                yield item, error
        try:
            results = run([loaded for _, loaded in batch]) if batch else []
        except Exception as error:
            # One image of the batch may be at fault: the others still get their result.
            if len(batch) == 1:
                yield batch[0][0], error
                continue
            for item, _ in batch:
                yield from run_in_batches(run, [item], load, 1)
            continue
        for (item, loaded), result in zip(batch, results, strict=True):
            yield item, (loaded, result)


def save_each(outcomes: Iterator[tuple[Any, Any]], save: Callable[..., Any]) -> Iterator[tuple[Any, Any]]:
    """Save what `run_in_batches` yields; yield each item with what `save` returned, or with its exception.

    Args:
        outcomes: each item with `(loaded, result)` or an exception.
        save: takes an item, what was loaded and the result.

    Raises:
        OSError: nothing more can be written, whatever the item.
    """
    for item, outcome in outcomes:
        if not isinstance(outcome, Exception):
            try:
                outcome = save(item, *outcome)
            except Exception as error:
                if isinstance(error, FolderInUseError) or getattr(error, "errno", None) in _NOTHING_CAN_BE_WRITTEN:
                    raise
                outcome = error
        yield item, outcome


def save_all(
    run: Any, pending: Sequence[Any], save: Callable[..., dict[str, Any]], batch_size: int, step: str
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Do and save what is pending, show how far that is, and tell every failure on stderr.

    Args:
        run: takes a batch of loaded items and returns one result for each; `run.load` makes what it takes of an item.
        pending: paths of images, or what has such a path as `image`.
        save: takes an item, what was loaded and the result; returns its record.
        batch_size: items per call of `run`.
        step: what is done, for the progress bar.

    Yields:
        Each item that did not fail, with its record, as soon as it is saved.
    """
    outcomes = save_each(run_in_batches(run, pending, run.load, batch_size), save)
    for item, outcome in with_progress(outcomes, len(pending), stderr_console(), step):
        if isinstance(outcome, Exception):
            print_error(f"{path_text(getattr(item, 'image', item))}: {describe(outcome)}")
        else:
            yield item, outcome


def end_with_failures(failed: int, total: int, out: Path, more: str = "") -> None:
    """End the command with 1 and a summary if some images failed.

    Args:
        failed: how many of `total` failed.
        out: where the others are.
        more: what follows in the summary.
    """
    if failed:
        print_error(
            f"{failed} of {total} images failed, see above. The others are in {path_text(out)}; the same command tries"
            f" the failed ones again. {more}"
        )
        raise typer.Exit(1)


def torch_device(name: str) -> Any:
    """Turn `--device` into a torch device that works here.

    Raises:
        CommandError: it does not.
    """
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CommandError(f"--device {name!r} cannot be used here ({reason}). Use auto or cpu.") from None
    return device
