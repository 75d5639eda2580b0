"""Peak memory of `reasonseg segment` over many small images, in a folder and in a data set: of all, and of a tenth.

    python -m benchmarks.labelling_memory [--images 10000] [--side 64]

A stand-in answers for the model, as in `benchmarks/folder_throughput.py`: what is measured is all else that the
command does. Each number is that of a process of its own, with everything in it, so that the difference is what more
images cost. Rows of a data set need the package datasets.
"""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from benchmarks.folder_throughput import PHRASES, StandIn, lisa_processor
from benchmarks.measurement import Measurement, positive_count, print_table
from benchmarks.own_process import resident_gb, run_alone


SMALL = {"images": 200}


def png(number: int, side: int) -> bytes:
    """The content of a file with noise, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_images(folder: Path, count: int, side: int) -> None:
    """A folder of images."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:06}.png").write_bytes(png(number, side))


def write_rows(folder: Path, count: int, side: int) -> None:
    """A data set of one file."""
    import datasets

    folder.mkdir()
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_generator(
        lambda: ({"image": {"bytes": png(number, side), "path": None}} for number in range(count)),
        features=features,
        cache_dir=str(folder.with_name(f"{folder.name}-cache")),
    )
    rows.to_parquet(folder / "train.parquet")


def peak_gb(command: list[str], side: int) -> float:
    """Memory of this process at most, while it runs a command."""
    from reasonseg.cli import segment
    from reasonseg.cli.app import app

    model = StandIn(side)
    model.config = SimpleNamespace()
    segment.load_checkpoint = lambda *given: (model, lisa_processor(side))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        app(command, prog_name="reasonseg")
    return resident_gb()["peak"]


def measurements(images: int = 10_000, side: int = 64) -> Iterator[Measurement]:
    """
    Args:
        images (`int`): How many images.
        side (`int`): Their width and height in pixels.
    """
    asked = [word for phrase in PHRASES for word in ("--phrase", phrase)]
    asked += ["--model", "stand-in", "--batch-size", "4"]
    kinds = {"a folder": (write_images, []), "a data set": (write_rows, ["--dataset"])}
    for kind, (write, option) in kinds.items():
        peaks = []
        for count in (images, images // 10):
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                write(folder / "in", count, side)
                command = ["segment", *option, str(folder / "in"), *asked, "--out", str(folder / "out")]
                peaks.append(run_alone("benchmarks.labelling_memory:peak_gb", command=command, side=side).result)
                done = folder / "out" / ("results.jsonl" if not option else "README.md")
                assert done.is_file(), f"{kind} was not segmented"
        what = f"{images} images of {side} x {side} in {kind} segmented: peak memory, against {images // 10}"
        yield Measurement(what, *peaks, "GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive_count, default=10_000)
    parser.add_argument("--side", type=positive_count, default=64, help="width and height of an image")
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
