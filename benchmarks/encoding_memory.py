"""Peak memory of encoding many images for the segmenter: a few at a time, as by default, and all in one batch.

    python -m benchmarks.encoding_memory [--counts 1 4 8 16 32] [--at-once 2] [--side 512] [--layers 12]

Each number is that of a process of its own, without what it had before the first image. The features, which are kept
for later questions (256 x (side / 16)^2 float32 numbers of each image), are in it.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.measurement import Measurement, positive_count, print_table
from benchmarks.midsize import midsize_model
from benchmarks.own_process import resident_gb, run_alone


SMALL = {"counts": [6], "at_once": 1, "side": 256, "layers": 3}


def peak_gb(count: int, at_once: int, side: int, layers: int) -> float:
    """How much more memory than before this process has needed at most, once `count` images are encoded."""
    model = midsize_model(side, layers)
    model.config.segmenter_batch_size = at_once

    def many(number: int):
        views = torch.zeros(1, 3, 224, 224).expand(number, -1, -1, -1)
        return model.encode_image(views, torch.zeros(1, 3, side, side).expand(number, -1, -1, -1))

    with torch.no_grad():
        model._encode_missing(many(1), torch.tensor([0]))  # first calls allocate
        images = many(count)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux forgets the peak so far
        before = resident_gb()["now"]
        model._encode_missing(images, torch.arange(count))
    return resident_gb()["peak"] - before


def measurements(
    counts: Sequence[int] = (1, 4, 8, 16, 32), at_once: int = 2, side: int = 512, layers: int = 12
) -> Iterator[Measurement]:
    """
    Args:
        counts (`Sequence[int]`): Numbers of images.
        at_once (`int`): How many the segmenter's encoder takes at a time: `segmenter_batch_size`.
        side (`int`): Of the segmenter's view, in pixels.
        layers (`int`): Of the segmenter's encoder; memory hardly depends on them.
    """
    function = "benchmarks.encoding_memory:peak_gb"
    for count in counts:
        given = {"count": count, "side": side, "layers": layers}
        few, whole = (run_alone(function, at_once=size, **given).result for size in (at_once, count))
        yield Measurement(f"{count} images encoded, {at_once} at a time: memory, against one batch", few, whole, "GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=positive_count, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--at-once", type=positive_count, default=2, help="segmenter_batch_size")
    parser.add_argument("--side", type=positive_count, default=512, help="of the segmenter's view, in pixels")
    parser.add_argument("--layers", type=positive_count, default=12, help="of the segmenter's encoder")
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
