"""Convert a synthetic LISA checkpoint: peak memory, and time against copying the same bytes.

    python -m benchmarks.convert_full_size --share 0.1 --runs 3 --folder /some/disk

Shards are written on the fly with the published names, shapes and types. Then copies and conversions take turns, each
in a process of its own that reads from the disk and is timed until all it wrote is there; every product is deleted
before the next. The numbers are the medians over the turns. At `--share 1` the source and one product together take
about 60 GB; smaller shares keep the widths, and with them the largest tensor, and leave layers out, so that starting
Python and torch weighs more.
"""

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measurement import Measurement, positive_count, positive_number, print_table, work_folder
from benchmarks.own_process import run_alone


LARGE, SMALLER = "lisa-13b-llama2-v1", "lisa-7b-v1"
SOURCE, TOWER, COPY, REPO = "lisa", "clip", "copy", "repo"  # folders in the work folder
PRODUCT_SHARE = 1.1  # a product against its source: the segmenter grows to float32
SMALL = {"share": 0.01, "runs": 1, "layout": SMALLER}


def measurements(
    share: float = 0.05,
    runs: int = 3,
    folder: str | None = None,
    max_shard_size: str = "5GB",
    layout: str = LARGE,
) -> Iterator[Measurement]:
    """Write the source, then copy and convert it in turns."""
    from benchmarks.synthetic_lisa import flush, forget

    work = Path(tempfile.mkdtemp(prefix="convert-full-size-", dir=folder))
    steps = {
        COPY: {"reference": "benchmarks.convert_full_size:copy"},
        REPO: {"reference": "benchmarks.convert_full_size:convert", "max_shard_size": max_shard_size},
    }
    taken = {COPY: [], REPO: []}
    try:
        run_alone("benchmarks.convert_full_size:prepare", folder=str(work), share=share, layout=layout)
        for turn in range(1, runs + 1):
            for product, step in steps.items():
                forget(work / SOURCE, work / TOWER)
                load, start = os.getloadavg()[0], time.perf_counter()
                finished = run_alone(folder=str(work), **step)
                flush()
                wall = time.perf_counter() - start
                taken[product].append((wall, finished.cpu_s, finished.peak_rss / 1e9))
                shutil.rmtree(work / product)
                told = f"{wall:.1f} s, {finished.cpu_s:.1f} s of CPU, load {load:.1f}"
                sys.stderr.write(f"{product} {turn} of {runs}: {told}\n")
        source_gb = sum(file.stat().st_size for name in (SOURCE, TOWER) for file in (work / name).iterdir()) / 1e9
    finally:
        shutil.rmtree(work)
    copies, conversions = (list(zip(*taken[product], strict=True)) for product in (COPY, REPO))
    what = f"{source_gb:.1f} GB of {'-'.join(layout.upper().split('-')[:2])} converted"
    yield Measurement(f"{what}, against copied", statistics.median(conversions[0]), statistics.median(copies[0]))
    yield Measurement(f"{what}, CPU time", statistics.median(conversions[1]), statistics.median(copies[1]))
    yield Measurement(f"{what}, peak memory, against its size", max(conversions[2]), source_gb, "GB")


def copy(folder: str) -> None:
    """The baseline: every file of source and tower, as it is."""
    target = Path(folder) / COPY
    target.mkdir()
    for name in (SOURCE, TOWER):
        for file in (Path(folder) / name).iterdir():
            shutil.copyfile(file, target / f"{name}-{file.name}")


def convert(folder: str, max_shard_size: str) -> None:
    """What is measured."""
    from reasonseg.conversion.convert_lisa import convert_lisa

    work = Path(folder)
    convert_lisa(work / SOURCE, vision_tower=work / TOWER, out=work / REPO, max_shard_size=max_shard_size)


def prepare(folder: str, share: float, layout: str) -> None:
    """Write the source, after a look at the disk."""
    from benchmarks.synthetic_lisa import checkpoint_bytes, require_space, write_checkpoint

    work = Path(folder)
    require_space(work, checkpoint_bytes(layout, share) * (1 + PRODUCT_SHARE))
    write_checkpoint(work / SOURCE, work / TOWER, layout, share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=positive_number(1), default=0.05, help="Share of the layers, from 0 to 1.")
    parser.add_argument("--runs", type=positive_count, default=3, help="How many times each side runs.")
    parser.add_argument("--folder", type=work_folder, help="Where to work; by default where temporary files go.")
    parser.add_argument("--max-shard-size", default="5GB")
    parser.add_argument("--layout", choices=(LARGE, SMALLER), default=LARGE)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the disk is left as it was then, too
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
