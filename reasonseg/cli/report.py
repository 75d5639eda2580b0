"""`reasonseg report`: a run of `segment` as a page to look through, what the model is least sure of first."""

import heapq
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from ..atomic_files import write_whole, written_whole
from .failures import CommandError
from .result_lines import CONTACT_SHEET_NAME, REPORT_NAME, RESULTS_NAME, find_lines
from .running import print_written


if TYPE_CHECKING:
    from PIL import Image


_BINS = 10
_WIDEST_BAR = 24
_MOST_PHRASES = 200
_CELLS, _TILE = 6, 200


def report(
    results: Annotated[Path, typer.Argument(help="Folder that `reasonseg segment` has filled.")],
    most: Annotated[int, typer.Option(min=1, help="Show at most so many images.")] = 500,
):
    """Write report.html and contact_sheet.png into a folder of results.

    The page counts images, masks and rejected phrases, and shows the images whose masks have the lowest scores first.
    It needs nothing but the files of the folder. The sheet has images of high, median and low scores.
    """
    run = read_run(results, most)
    write_whole(results / REPORT_NAME, page(run))
    with written_whole(results / CONTACT_SHEET_NAME) as draft:
        sheet(run, results).save(draft, format="PNG")
    print_written(results / REPORT_NAME, results / CONTACT_SHEET_NAME)


@dataclass
class PhraseCounts:
    """How often a phrase was found and rejected, with the sums of scores and of shares of the image."""

    masks: int = 0
    rejected: int = 0
    scores: float = 0.0
    shares: float = 0.0


@dataclass
class Run:
    """
    What is told of a run.

    Args:
        models (`set[str]`): What has drawn the masks.
        images, masks, rejected, empty, without (`int`): Counts; `empty` of masks without a pixel, `without` of images
            in which nothing was found.
        histogram (`list[int]`): Masks by their score, in ten steps.
        phrases (`dict`): Counts by phrase.
        lowest (`list[dict]`): Lines of the images with the lowest scores, these first.
        sampled (`tuple[list[dict], ...]`): Lines of the images of the sheet: of high, median and low scores.
    """

    models: set[str] = field(default_factory=set)
    images: int = 0
    masks: int = 0
    rejected: int = 0
    empty: int = 0
    without: int = 0
    histogram: list[int] = field(default_factory=lambda: [0] * _BINS)
    phrases: dict[str, PhraseCounts] = field(default_factory=dict)
    lowest: list[dict[str, Any]] = field(default_factory=list)
    sampled: tuple[list[dict[str, Any]], ...] = ()


def read_run(results: Path, most: int) -> Run:
    """
    Read the results of a run, one line at a time.

    Args:
        results: the folder.
        most: images that are kept to be shown.

    Raises:
        CommandError: the folder holds no results of `reasonseg segment`.
    """
    run, positions = Run(), find_lines(results / RESULTS_NAME)
    if not positions:
        raise CommandError(f"{str(results)!r} holds no result yet. Run `reasonseg segment` until an image is done.")
    ranked: list[tuple[float, int]] = []
    for number, record in enumerate(_records(results, positions)):
        _count(run, record)
        ranked.append((image_score(record), number))
    chosen = [number for _, number in heapq.nsmallest(most, ranked)]
    run.lowest = list(_records(results, [positions[number] for number in chosen]))

    from ..evaluation.contact_sheet import choose

    groups = choose([entry for entry in ranked if math.isfinite(entry[0])] or ranked, _CELLS, lambda entry: entry[0])
    run.sampled = tuple(list(_records(results, [positions[number] for _, number in group])) for group in groups)
    return run


def image_score(record: dict[str, Any]) -> float:
    """The lowest score of the masks of an image; infinity where nothing was found, as nothing is to be looked at."""
    return min((found["score"] for found in record["segments"] if not found["rejected"]), default=math.inf)


def _records(results: Path, positions: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    with (results / RESULTS_NAME).open("rb") as file:
        for start, size in positions:
            file.seek(start)
            yield json.loads(file.read(size))


def _count(run: Run, record: dict[str, Any]) -> None:
    run.images += 1
    run.models.add(str(record["request"].get("model")))
    run.without += all(found["rejected"] for found in record["segments"])
    for index, found in enumerate(record["segments"]):
        counts = run.phrases.setdefault(_label(found, index), PhraseCounts())
        if found["rejected"]:
            run.rejected += 1
            counts.rejected += 1
            continue
        run.masks += 1
        run.empty += not found["area"]
        run.histogram[min(_BINS - 1, int(found["score"] * _BINS))] += 1
        counts.masks += 1
        counts.scores += found["score"]
        counts.shares += found["area"] / (record["height"] * record["width"])


def _label(found: dict[str, Any], index: int) -> str:
    from ..processing.segments import segment_name

    return segment_name(found["label"], index)


# ---- the page -------------------------------------------------------------------------------------------------------


def page(run: Run) -> str:
    """The page as HTML; every text in it is escaped."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("reasonseg.cli", "."), autoescape=True)
    fullest = max(run.histogram) or 1
    return environment.get_template("report.html.jinja").render(
        title=f"{run.images} segmented image{'' if run.images == 1 else 's'}",
        about=f"Masks by {', '.join(sorted(run.models))}.",
        numbers={
            "images": run.images,
            "masks": run.masks,
            "rejected phrases": run.rejected,
            "images in which nothing was found": run.without,
            "masks without a pixel": run.empty,
        },
        histogram=[
            {
                "name": f"{number / _BINS:.1f} to {(number + 1) / _BINS:.1f}",
                "count": count,
                "width": f"{_WIDEST_BAR * count / fullest:.2f}",
            }
            for number, count in enumerate(run.histogram)
        ],
        phrases=[_phrase_row(name, counts) for name, counts in _most_frequent(run)],
        more_phrases=max(0, len(run.phrases) - _MOST_PHRASES),
        images=[_image_row(record) for record in run.lowest],
        more_images=run.images - len(run.lowest),
    )


def _most_frequent(run: Run) -> list[tuple[str, PhraseCounts]]:
    ranked = sorted(run.phrases.items(), key=lambda entry: -(entry[1].masks + entry[1].rejected))
    return ranked[:_MOST_PHRASES]


def _phrase_row(name: str, counts: PhraseCounts) -> dict[str, Any]:
    score, area = "", ""
    if counts.masks:
        score, area = f"{counts.scores / counts.masks:.2f}", f"{counts.shares / counts.masks:.1%}"
    return {"name": name, "masks": counts.masks, "rejected": counts.rejected, "score": score, "area": area}


def _image_row(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": record["image"],
        "link": quote(record["overlay"]),
        "text": record["text"],
        "width": record["width"],
        "height": record["height"],
        "lines": [_about(found, index) for index, found in enumerate(record["segments"])],
    }


def _about(found: dict[str, Any], index: int) -> str:
    what = "rejected" if found["rejected"] else f"{found['score']:.2f}, {found['area']} pixels"
    return f"{_label(found, index)}: {what}"


# ---- the sheet ------------------------------------------------------------------------------------------------------


def sheet(run: Run, results: Path) -> "Image.Image":
    """Overlays of images with high, median and low scores."""
    from ..evaluation.contact_sheet import draw_cells

    names = ("high scores", "median scores", "low scores")
    return draw_cells(
        {
            f"{name}, of {run.images} images": [_cell(record, results) for record in group]
            for name, group in zip(names, run.sampled, strict=True)
        },
        _TILE,
    )


def _cell(record: dict[str, Any], results: Path) -> Any:
    from ..evaluation.contact_sheet import Cell, fit
    from ..processing.image_loading import MAX_IMAGE_PIXELS, load_rgb_image

    limit = max(MAX_IMAGE_PIXELS, record["height"] * record["width"])  # it was accepted before
    score = image_score(record)
    about = "nothing was found" if math.isinf(score) else f"lowest score {score:.2f}"
    return Cell((fit(load_rgb_image(results / record["overlay"], limit), _TILE),), Path(record["image"]).name, about)


__all__ = ["page", "read_run", "report", "sheet"]
