"""Folders of images with a stand-in model that answers at once: reading, preparing, drawing and writing alone.

    python -m benchmarks.folder_throughput [--images 96] [--workers 2]

Photographs of 640 x 480 pixels are prepared as for LISA (SAM at 1024 pixels, CLIP at 224) and get two masks each that
are written as `reasonseg segment` and `reasonseg mask` write them. A pair of processor cores, on which two threads
read or draw, should do 100 images per second of each, so that no accelerator waits: 20 ms of CPU time an image.
"""

import argparse
import contextlib
import io
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer

from benchmarks.measurement import Measurement, positive_count, print_table
from reasonseg.cli.batches import save_all
from reasonseg.cli.mask import Masking, Targets, Task
from reasonseg.cli.results import ResultFolder
from reasonseg.cli.segment import Segmenter, Segmenting, Settings
from reasonseg.data.reading_ahead import read_ahead
from reasonseg.evaluation.masked_input import Masker
from reasonseg.model_names import EMBEDDED_MODEL
from reasonseg.processing.image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor
from reasonseg.processing.processing_ivm import IvmProcessor
from reasonseg.processing.processing_lisa import LisaProcessor


SMALL = {"images": 32}
PHRASES = ["the red cup", "a dog"]
# Images per second that a pair of cores should do.
WANTED = 100.0
# Different ones; more would change nothing.
_PHOTOGRAPHS = 12


def write_photographs(folder: Path, count: int, width: int, height: int) -> list[Path]:
    """Write JPEG files as cameras do: structure at every scale, and noise."""
    rng, contents = np.random.default_rng(0), []
    for _ in range(min(count, _PHOTOGRAPHS)):
        pixels = np.zeros((height, width, 3), np.float32)
        for side, share in ((8, 0.49), (32, 0.27), (128, 0.16), (width, 0.08)):
            noise = rng.normal(128, 50, (max(2, side * height // width), side, 3)).clip(0, 255).astype(np.uint8)
            pixels += share * np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90)
        contents.append(file.getvalue())
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(contents[number % len(contents)])
    return paths


def lisa_processor(side: int) -> LisaProcessor:
    """LISA's processor with a tokenizer of this package, for a segmenter's view of this side."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    tokenizer.name_or_path = ""  # it does not stand for the embedded model here, whose images are looked at
    return LisaProcessor(ReasoningSegmentationImageProcessor(segmenter_size={"longest_edge": side}), tokenizer)


class StandIn:
    """A model that has known all masks before: two discs in every image."""

    device = torch.device("cpu")

    def __init__(self, side: int):
        rows, columns = np.mgrid[: side // 4, : side // 4] / (side / 4)
        discs = [0.2 - np.hypot(rows - 0.3, columns - x) for x in (0.35, 0.65)]
        self.masks = torch.from_numpy(np.stack(discs).astype(np.float32))

    def __call__(self, input_ids: torch.Tensor, **inputs: Any) -> dict[str, Any]:
        return {"pred_masks": [self.masks] * len(input_ids), "mask_scores": torch.full((len(input_ids), 2), 0.9)}


class Ready:
    """Work whose results are there: what is left is to draw and to write them.

    Args:
        work: draws and writes.
        read: what was read of every item.
        result: of every item.
    """

    def __init__(self, work: Any, read: Any, result: Any):
        self.work, self.read, self.result, self.write = work, read, result, work.write

    def load(self, item: Any) -> Any:
        return self.read

    def prepare(self, loaded: list[Any]) -> list[Any]:
        return loaded

    def compute(self, prepared: list[Any]) -> list[Any]:
        return [self.result] * len(prepared)

    def draw(self, item: Any, loaded: Any, result: Any) -> Any:
        return self.work.draw(item, loaded, result)


def seconds(run: Callable[[int], Any]) -> tuple[float, float]:
    """How long a call takes, and its CPU time, at best of three: other programs take turns on the same cores."""
    taken = []
    for number in range(3):
        start = time.perf_counter(), time.process_time()
        run(number)
        taken.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return min(wall for wall, _ in taken), min(cpu for _, cpu in taken)


def save(work: Any, items: list[Any], workers: int) -> None:
    """Do all items as a command does; how far it is, is not shown."""
    with contextlib.redirect_stderr(io.StringIO()):
        failed = save_all(work, items, lambda item, record: None, 1, "Segmenting", workers)
    assert not failed, f"{len(failed)} images failed"


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def measurements(
    images: int = 96, workers: int = 2, width: int = 640, height: int = 480, side: int = 1024
) -> Iterator[Measurement]:
    """
    Args:
        images (`int`): How many images.
        workers (`int`): Threads that read, and as many that draw.
        width, height (`int`): Of an image.
        side (`int`): Of the segmenter's view.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield from _measured(Path(folder), images, workers, (width, height), side)
    finally:
        torch.set_num_threads(threads)


def _measured(folder: Path, count: int, workers: int, size: tuple[int, int], side: int) -> Iterator[Measurement]:
    (folder / "images").mkdir()
    paths = write_photographs(folder / "images", count, *size)
    settings = Settings("stand-in", None, None, PHRASES, 256, 0.0, None, "auto")
    segmenter = Segmenter(settings, StandIn(side), lisa_processor(side))
    names = {path: path.stem for path in paths}

    def segmenting(out: str) -> Segmenting:
        return Segmenting(segmenter, ResultFolder(folder / out, vars(settings)), names)

    def rows(what: str, run: Callable[[int], Any]) -> Iterator[Measurement]:
        wall, cpu = seconds(run)
        wanted = f"{what}, {workers} threads, against what is wanted"
        yield Measurement(wanted, count / wall, WANTED, "images/s", more_is_better=True)
        yield Measurement(f"{what}: CPU time of one, against what is wanted", 1e3 * cpu / count, 2e3 / WANTED, "ms")

    loaded = segmenter.load(paths[0])
    (result,) = segmenter.compute(segmenter.prepare([loaded]))  # first calls are slower
    steps = {"read": segmenter.load, "prepared": lambda path: segmenter.prepare([loaded])}
    for step, run in steps.items():
        yield from rows(f"images {step}", lambda number, run=run: deque(read_ahead(run, paths, workers), maxlen=0))
    yield from rows(
        "masks and overlays drawn and written",
        lambda number: save(Ready(segmenting(f"drawn {number}"), loaded, result), paths, workers),
    )
    distance = np.hypot(*np.mgrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j])
    heatmap = np.exp(-4 * distance**2).astype(np.float32)

    def mask(number: int) -> None:
        masking, tasks = _masking(folder / f"masked {number}", paths, segmenter.processor)
        save(Ready(masking, (loaded, "where?"), heatmap), tasks, workers)

    yield from rows("masked images painted and written", mask)
    apart, _ = seconds(lambda number: save(segmenting(f"apart {number}"), paths, 0))
    together, _ = seconds(lambda number: save(segmenting(f"together {number}"), paths, workers))
    assert content(folder / "apart 0") == content(folder / "together 0"), "threads change what is written"
    what = "a folder segmented with a stand-in model, against one step after the other"
    yield Measurement(what, count / together, count / apart, "images/s", more_is_better=True)


def _masking(out: Path, paths: list[Path], processor: LisaProcessor) -> tuple[Masking, list[Task]]:
    tasks = [Task(path, "where?", PurePosixPath(path.name), str(path)) for path in paths]
    results = ResultFolder(out, {"crop": False}, command="mask")
    masker = Masker(torch.nn.Identity(), IvmProcessor(processor.image_processor, processor.tokenizer))
    return Masking(masker, results, Targets(results, tasks, None)), tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive_count, default=96)
    parser.add_argument("--workers", type=positive_count, default=2)
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
