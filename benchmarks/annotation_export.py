"""Results of many images written for annotation tools: speed, and memory against that for a tenth of the images.

python -m benchmarks.annotation_export [--images 10000]
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measurement import Measurement, positive_count, print_table
from benchmarks.own_process import resident_gb
from reasonseg.data.annotation_formats import WritingOptions, find_format
from reasonseg.data.annotation_writing import write_annotations
from reasonseg.data.labelled_images import LabelledImage, LabelledObject
from reasonseg.processing.segments import mask_to_rle


SIZE = (96, 128)
FORMATS = ("coco", "labelme", "yolo", "voc", "reasonseg")
SMALL = {"images": 300}


def drawn_images(folder: Path, images: int) -> Iterator[LabelledImage]:
    """Images with two round masks each and a rejected phrase, of one file."""
    source = folder / "image.png"
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(source)
    rows, columns = np.indices(SIZE)
    for number in range(images):
        masks = [(rows - 40) ** 2 + (columns - 30 - number % 60 - shift) ** 2 < 20**2 for shift in (0, 9)]
        objects = [LabelledObject(f"cup {number % 50}", mask_to_rle(mask), 0.5) for mask in masks]
        yield LabelledImage(f"{number}.png", SIZE, source, (*objects, LabelledObject("a dog", None, 0.1, True)))


def written(name: str, images: int) -> tuple[float, float]:
    """Seconds for writing, and the largest memory of this process in MB."""
    entry = find_format(name)
    with tempfile.TemporaryDirectory() as folder:
        labelled, begun = drawn_images(Path(folder), images), time.perf_counter()
        write_annotations(entry, labelled, Path(folder) / "out", WritingOptions(entry.masks[0]))
        return time.perf_counter() - begun, 1000 * resident_gb()["peak"]


def measurements(images: int = 10_000) -> Iterator[Measurement]:
    for name in FORMATS:
        taken = []
        for count in (images // 10, images):
            # A fork, as importing takes longer than writing a few images; its largest memory is its own.
            with ProcessPoolExecutor(1, mp_context=get_context("fork")) as alone:
                taken.append(alone.submit(written, name, count).result())
        few, many = taken
        yield Measurement(f"images written as {name}", images / many[0], None, "images/s", True)
        what = f"memory for {images} images as {name}, against {images // 10}"
        yield Measurement(what, many[1], few[1], "MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive_count, default=10_000)
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
