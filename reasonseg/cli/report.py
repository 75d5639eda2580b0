"""`reasonseg report`: a run of `segment` as a page to look through, what the model is least sure of first."""

import heapq
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from ..atomic_files import remove_drafts, write_whole, written_whole
from .export import check_formats
from .failures import CommandError, path_text
from .labelled_shards import FolderShards, whole_parts
from .result_lines import CONTACT_SHEET_NAME, REPORT_IMAGES, REPORT_NAME, RESULTS_NAME, find_lines
from .running import MaxImagePixels, print_written


if TYPE_CHECKING:
    from PIL import Image


_BINS = 10
_WIDEST_BAR = 24
_MOST_PHRASES = 200
_CELLS, _TILE = 6, 200
# Pixels of the longer side of a row's image.
_LONGEST_SIDE = 1024
_ROW_IMAGE = re.compile(r".+-\d{8}\.jpg")


def report(
    results: Annotated[Path, typer.Argument(help="Folder that `reasonseg segment` has filled.")],
    most: Annotated[int, typer.Option(min=1, help="Show at most so many images.")] = 500,
    max_image_pixels: MaxImagePixels = None,
):
    """Write report.html and contact_sheet.png into a folder of results, also of `segment --dataset`.

    The page counts images, masks and rejected phrases, and shows the images whose masks have the lowest scores first.
    It needs nothing but the files of the folder; of a data set, the shown images are drawn into its folder
    report_images. The sheet has images of high, median and low scores.
    """
    run = read_run(results, most)
    write_whole(results / REPORT_NAME, page(run))
    with written_whole(results / CONTACT_SHEET_NAME) as draft:
        sheet(run, results).save(draft, format="PNG")
    _remove_other_images(run, results / REPORT_IMAGES)
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
        failed (`int`): Rows of a data set that could not be done; they count nowhere else.
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
    failed: int = 0
    histogram: list[int] = field(default_factory=lambda: [0] * _BINS)
    phrases: dict[str, PhraseCounts] = field(default_factory=dict)
    lowest: list[dict[str, Any]] = field(default_factory=list)
    sampled: tuple[list[dict[str, Any]], ...] = ()


def read_run(results: Path, most: int) -> Run:
    """
    Read the results of a run, one image at a time; of a data set, draw those that are shown.

    Args:
        results: the folder.
        most: images that are kept to be shown.

    Raises:
        CommandError: the folder holds no results of `reasonseg segment`.
    """
    from ..evaluation.contact_sheet import choose

    run, found = Run(), _find_results(results)
    ranked: list[tuple[float, int]] = []
    for number, record in found.records():
        if record is None:
            run.failed += 1
            continue
        _count(run, record)
        ranked.append((image_score(record), number))
    if not ranked:
        raise CommandError(f"{str(results)!r} holds no result yet. Run `reasonseg segment` until an image is done.")
    lowest = [number for _, number in heapq.nsmallest(most, ranked)]
    groups = choose([entry for entry in ranked if math.isfinite(entry[0])] or ranked, _CELLS, lambda entry: entry[0])
    sampled = [[number for _, number in group] for group in groups]
    shown = found.shown({*lowest, *(number for group in sampled for number in group)})
    run.lowest = [shown[number] for number in lowest]
    run.sampled = tuple([shown[number] for number in group] for group in sampled)
    return run


def image_score(record: dict[str, Any]) -> float:
    """The lowest score of the masks of an image; infinity where nothing was found, as nothing is to be looked at."""
    return min((found["score"] for found in record["segments"] if not found["rejected"]), default=math.inf)


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


# ---- where results lie ----------------------------------------------------------------------------------------------


def _find_results(results: Path) -> "_Lines | _Rows":
    """The results of images in files, or of the rows of a data set."""
    if not (results / RESULTS_NAME).is_file() and (parts := whole_parts(results)):
        check_formats(("datasets",))
        return _Rows(results, parts)
    return _Lines(results)


class _Lines:
    """The lines of `results.jsonl`, whose overlays lie beside it."""

    def __init__(self, results: Path):
        self._path = results / RESULTS_NAME
        self._positions = find_lines(self._path)

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield each line with its number."""
        return self._read(range(len(self._positions)))

    def shown(self, numbers: set[int]) -> dict[int, dict[str, Any]]:
        """The lines with these numbers."""
        return dict(self._read(numbers))

    def _read(self, numbers: Iterable[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        with self._path.open("rb") as file:
            for number in numbers:
                start, size = self._positions[number]
                file.seek(start)
                yield number, json.loads(file.read(size))


class _Rows:
    """
    The rows of a labelled data set, each as a line would have it. Only the images that are shown are read.

    Args:
        results: the folder.
        parts: see `whole_parts`.
    """

    def __init__(self, results: Path, parts: Sequence[tuple[FolderShards, str, int]]):
        self._results, self._parts = results, parts

    def records(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Yield what became of each row with its number among all; `None` where it could not be done."""
        for shards, file, start, first in self._files():
            for number, row in self._read(file):
                is_done = row["error"] is None
                yield start + number, _row_record(row, _row_name(shards, first + number)) if is_done else None

    def shown(self, numbers: set[int]) -> dict[int, dict[str, Any]]:
        """The rows with these numbers, drawn into files."""
        found = {}
        for shards, file, start, first in self._files():
            image = self._image_column(shards, file)
            for number, row in self._read(file, {wanted - start for wanted in numbers}, image):
                try:
                    found[start + number] = self._draw(row, image, _row_name(shards, first + number))
                except ValueError as error:
                    raise CommandError(f"{path_text(file)!r}, row {number}: {error}") from None
        return found

    def _files(self) -> Iterator[tuple[FolderShards, Path, int, int]]:
        """Yield each part with its file and the numbers of its first row, among all and in its split."""
        start, of_split = 0, Counter()
        for shards, name, rows in self._parts:
            yield shards, self._results / shards.file_name(name), start, of_split[shards.split]
            start += rows
            of_split[shards.split] += rows

    def _read(self, file: Path, numbers: set[int] | None = None, *more: str) -> Iterator[tuple[int, dict[str, Any]]]:
        from ..data.labelled_rows import NEW_COLUMNS, part_schema, read_part

        named = {"file_name"}.intersection(part_schema(file).names)
        return read_part(file, [*NEW_COLUMNS, *named, *more], numbers)

    def _image_column(self, shards: FolderShards, file: Path) -> str:
        from ..data.labelled_rows import part_schema
        from ..data.streamed_tables import DataSetError, image_column

        schema, image = part_schema(file), shards.request()["image_column"]
        if image is None:
            with suppress(DataSetError):
                image = image_column(schema.empty_table())
        if image not in schema.names:
            raise CommandError(
                f"The rows in {path_text(self._results)!r} have no images to draw masks on: they were left out with "
                "--drop-column. Label them again without it."
            )
        return image

    def _draw(self, row: dict[str, Any], image: str, name: str) -> dict[str, Any]:
        """Draw the masks over the image, and return the row's record."""
        from ..data.labelled_rows import row_result
        from ..data.streamed_tables import DataSetName, image_content

        origin = DataSetName(str(self._results), None, is_folder=True)
        result = row_result(row, image_content(row[image], origin))
        overlay, shown = result.overlay(), f"{REPORT_IMAGES}/{name}.jpg"
        overlay.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        with written_whole(self._results / shown) as draft:
            overlay.save(draft, format="JPEG", quality=90, subsampling=0)
        height, width = result.image_size
        return {**_row_record(row, name), "height": height, "width": width, "overlay": shown}


def _row_name(shards: FolderShards, number: int) -> str:
    """As `reasonseg export` has it."""
    return f"{shards.split}-{number:08d}"


def _row_record(row: dict[str, Any], name: str) -> dict[str, Any]:
    """The fields of a line that are told of, but those of the overlay."""
    sizes = (found["rle"]["size"] for found in row["objects"] if found["rle"] is not None)
    height, width = next(sizes, (0, 0))
    named, told = row.get("file_name"), ("label", "score", "rejected", "area")
    return {
        "image": named if isinstance(named, str) and named else name,
        "text": row["answer"] or "",
        "segments": [{field: found[field] for field in told} for found in row["objects"]],
        "height": height,
        "width": width,
        "request": {"model": row["model"]},
    }


def _remove_other_images(run: Run, folder: Path) -> None:
    """Remove the rows that an earlier page has shown and this one does not."""
    kept = {Path(record["overlay"]).name for record in chain(run.lowest, *run.sampled)}
    remove_drafts(folder)
    for image in folder.glob("*.jpg"):
        if _ROW_IMAGE.fullmatch(image.name) and image.name not in kept:
            image.unlink()


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
            **({"rows that could not be done": run.failed} if run.failed else {}),
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
