"""What the commands that run a checkpoint over pictures share: loading, batches, progress."""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import Any

from .failures import CommandError


class Dtype(StrEnum):
    """Number formats a checkpoint can be loaded in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def load_checkpoint(
    name: str,
    revision: str | None,
    dtype: str,
    device: str,
    trust_remote_code: bool,
    auto_class: str = "AutoModel",
) -> tuple[Any, Any]:
    """Load model and processor of a folder or Hub name; the model is on its device, in evaluation mode.

    Args:
        auto_class: the class of transformers that finds the model's own.

    Raises:
        CommandError: `device` cannot be used here.
    """
    import transformers
    from transformers import AutoProcessor
    from transformers.utils import logging

    from ..loading import load_pretrained
    from ..registration import register

    logging.disable_progress_bar()  # the commands have their own
    register()
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    processor = load_pretrained(AutoProcessor, name, **source)
    model = load_pretrained(getattr(transformers, auto_class), name, dtype=dtype, **source)
    return model.to(torch_device(device)).eval(), processor


def run_in_batches(
    run: Callable[[list[Any]], list[Any]], items: Sequence[Any], load: Callable[[Any], Any], batch_size: int
) -> Iterator[tuple[Any, Any]]:
    """Yield each item with `(loaded, result)`, or with the exception that kept it from being done.

    Args:
        run: takes a batch of loaded items and returns one result for each.
        items: what is to be done.
        load: makes what `run` takes; a ValueError or an OSError is this item's failure alone.
        batch_size: items per call of `run`.
    """
    for start in range(0, len(items), batch_size):
        batch = []
        for item in items[start : start + batch_size]:
            try:
                batch.append((item, load(item)))
            except (ValueError, OSError) as error:
                yield item, error
        try:
            results = run([loaded for _, loaded in batch]) if batch else []
        except Exception as error:
            # One picture of the batch may be at fault: the others still get their result.
            if len(batch) == 1:
                yield batch[0][0], error
                continue
            for item, _ in batch:
                yield from run_in_batches(run, [item], load, 1)
            continue
        for (item, loaded), result in zip(batch, results, strict=True):
            yield item, (loaded, result)


def with_progress(items: Iterator, total: int, console: Any, description: str) -> Iterator:
    """Pass `items` on under a progress bar with the time that is left, on a terminal only."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield from progress.track(items, total=total, description=description)


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
