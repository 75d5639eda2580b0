"""What the commands that run a checkpoint over images share: loading, batches, saving."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..model_names import resolve_model
from ..precision import Precision, load_model
from .failures import CommandError, path_text, print_error, stderr_console
from .processes import local_index


# `processing/image_loading.py` reads it.
_PIXELS_VARIABLE = "REASONSEG_MAX_IMAGE_PIXELS"


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
Workers = Annotated[
    int, typer.Option(min=0, help="Threads that read and prepare images, and as many that draw results; 0: none.")
]
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
LongestAnswer = Annotated[
    int | None,
    typer.Option(min=1, help="Longest answer, in tokens.  [default: as the model says, else 256]", show_default=False),
]
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

    Of several processes that a launcher has started on this machine each gets an accelerator of its own, unless one
    is named by its number.

    Raises:
        CommandError: it does not.
    """
    import torch

    index, hint = local_index(), "Use auto or cpu."
    try:
        device = _best_device() if name == "auto" else torch.device(name)
        if index is not None and device.type != "cpu" and device.index is None:
            hint = "Start no more processes than there are devices, or name one of them for all."
            device = torch.device(device.type, index)
            torch.empty(0, device=device)
            torch.accelerator.set_device_index(index)  # for libraries that ask for the current one
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CommandError(f"--device {name!r} cannot be used here ({reason}). {hint}") from None
    return device


def _best_device() -> Any:
    import torch

    if "ACCELERATE_USE_CPU" in os.environ:  # by `accelerate launch --cpu`
        from accelerate.utils import parse_flag_from_env

        if parse_flag_from_env("ACCELERATE_USE_CPU"):
            return torch.device("cpu")
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
