"""`reasonseg export`, and `--format` of `segment`: results in the formats of annotation tools."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..data.annotation_formats import FORMATS, AnnotationFormat, WritingOptions, find_format
from ..folder_lock import alone_in
from .failures import CommandError, path_text, refuse_address, stderr_console
from .labelled_shards import FolderShards, whole_parts
from .printing import printable_json, write_out
from .progress import with_progress
from .result_lines import EXPORT_FOLDER, RESULTS_NAME, find_lines
from .results import file_sha256
from .running import MaxImagePixels


if TYPE_CHECKING:
    from ..data.annotation_formats import ReadingOptions
    from ..data.labelled_images import LabelledImage


_FORMAT_HELP = "; ".join(f"{entry.name}: {entry.summary}" for entry in FORMATS.values())
# Two runs that end together write one after the other.
_PATIENCE = 600.0


def _known_formats(names: list[str] | None) -> list[str] | None:
    for name in names or ():
        try:
            find_format(name)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return names


Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        "-f",
        callback=_known_formats,
        help=f"Also write the results as {', '.join(FORMATS)} into a folder below --out/export; repeat for several.",
        show_default=False,
    ),
]


def export(
    results: Annotated[Path, typer.Argument(help="Folder that `reasonseg segment` has filled.")],
    formats: Annotated[
        list[str],
        typer.Option("--format", "-f", callback=_known_formats, help=f"Repeat for several. {_FORMAT_HELP}."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for a folder per format.  [default: RESULTS/export]"),
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(help="exact or polygons, where a format has both.  [default: exact, if the format can]"),
    ] = None,
    images: Annotated[str, typer.Option(help="copy, link or none: how the images come along.")] = "copy",
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Pixels by which polygons may leave the masks; 0 follows every pixel.")
    ] = 0.0,
    image_folder: Annotated[
        Path | None, typer.Option(help="Where the images lie now, if they were moved since.", show_default=False)
    ] = None,
    max_image_pixels: MaxImagePixels = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write again what is already there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
):
    """Write the results of an earlier run, also of `segment --dataset`, in the formats of annotation tools.

    Each format gets a folder of its own in --out, whole or not at all; what an earlier export has written there is
    replaced if the results have changed since. Masks lie in the upright frame, and an image that its EXIF orientation
    turns is written upright. `segment --format` writes the same.
    """
    if images not in ("copy", "link", "none"):
        raise typer.BadParameter(f"--images is {images!r}; choose copy, link or none.")
    written = export_results(
        results,
        formats,
        out or results / EXPORT_FOLDER,
        masks=masks,
        images=images,
        tolerance=tolerance,
        image_folder=image_folder,
        overwrite=overwrite,
    )
    if as_json:
        write_out(printable_json(written) + "\n")


def check_formats(formats: Sequence[str]) -> list[AnnotationFormat]:
    """The formats with these names, each once.

    Raises:
        CommandError: What one of them needs is not installed.
    """
    entries = list({(entry := find_format(name)).name: entry for name in formats}.values())
    for entry in entries:
        try:
            entry.check()
        except ImportError as error:
            raise CommandError(str(error)) from None
    return entries


def export_results(
    results: Path,
    formats: Sequence[str],
    out: Path,
    *,
    masks: str | None = None,
    images: str = "copy",
    tolerance: float = 0.0,
    image_folder: Path | None = None,
    sources: Mapping[str, Path] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a folder of results in several formats; return what was written by the format's name.

    Args:
        results: the folder.
        formats: their names.
        out: gets a folder per format.
        masks, images, tolerance: see `WritingOptions`.
        image_folder: where the images lie.
        sources: files of images by their text in `results.jsonl`, which cannot hold every name.
        overwrite: write also what is there already.

    Raises:
        CommandError: The folder holds no results, or a format cannot be written.
    """
    from ..data.annotation_formats import ReadingOptions
    from ..data.annotation_writing import is_written, write_annotations

    entries, console = check_formats(formats), stderr_console()
    refuse_address(out)
    for entry in entries:
        if masks is not None and masks not in entry.masks:
            raise CommandError(
                f"--masks is {masks!r}, and the format {entry.name} has {' or '.join(entry.masks)}. Leave it out, or "
                "export this format by a command of its own."
            )
        if tolerance and (masks or entry.masks[0]) != "polygons":
            hint = "Add --masks polygons" if "polygons" in entry.masks else "Export this format by itself"
            raise CommandError(
                f"--tolerance is for polygons, and the format {entry.name} is written with exact masks. {hint}, or "
                "leave --tolerance out."
            )
    run = _find_run(results, image_folder, sources, images != "none")
    told: dict[str, Any] = {}
    with alone_in(out, _PATIENCE):
        for entry in entries:
            options = WritingOptions(masks or entry.masks[0], images, tolerance)
            target = out / entry.name
            if not overwrite and is_written(entry, target, options, run.made_of):
                console.print(f"{path_text(target)} is written already.", soft_wrap=True)
                told[entry.name] = {"folder": path_text(target), "is_new": False}
                continue
            reading = ReadingOptions(without_mask="skip")
            shown = with_progress(run.read(reading), run.count, console, f"Writing {entry.name}")
            written = write_annotations(entry, shown, target, options, run.made_of)
            written.left_out += reading.left_out
            console.print(f"Written: {path_text(target)} ({written.sentence()})", soft_wrap=True)
            told[entry.name] = {"folder": path_text(target), "is_new": True, **written.to_dict()}
    return told


@dataclass
class _Run:
    """
    What is exported.

    Args:
        made_of: tells its results from others, as JSON types.
        count: of images.
        read: yields them; takes what is left out.
    """

    made_of: dict[str, Any]
    count: int
    read: "Callable[[ReadingOptions], Iterator[LabelledImage]]"


def _find_run(results: Path, image_folder: Path | None, sources: Mapping[str, Path] | None, with_images: bool) -> _Run:
    """See [`export_results`]; images in files, or rows of a data set."""
    if not (results / RESULTS_NAME).is_file() and (parts := whole_parts(results)):
        if image_folder is not None:
            raise CommandError("--image-folder is for images in files; the rows of a data set hold theirs.")
        files = [(name, file_sha256(results / shards.file_name(name))) for shards, name, _ in parts]
        made_of = {"parts_sha256": hashlib.sha256(repr(files).encode()).hexdigest()}
        return _Run(made_of, sum(rows for *_, rows in parts), partial(_labelled_rows, results))
    lines = find_lines(results / RESULTS_NAME)
    made_of = {"results_sha256": file_sha256(results / RESULTS_NAME)}
    return _Run(
        made_of, len(lines), lambda _: labelled_images(results, lines, image_folder, sources, with_images=with_images)
    )


def _labelled_rows(results: Path, options: "ReadingOptions") -> "Iterator[LabelledImage]":
    """Yield the images of a labelled data set, a split after the other."""
    from dataclasses import replace

    names: set[str] = set()
    for split in FolderShards(results).splits():
        request = FolderShards(results, split).request()
        columns = {what: column for what in ("image", "text") if (column := request[f"{what}_column"]) is not None}
        if columns.get("text") in request["drop_columns"]:
            del columns["text"]
        for found in FORMATS["datasets"].read(results, replace(options, split=split, columns=columns)):
            # what two splits call the same is told apart by a folder
            named = f"{split}/{found.file_name}" if found.file_name in names else found.file_name
            names.add(named)
            requests = found.requests
            if (text := request["text"]) is not None:
                requests = tuple(replace(asked, question=text) for asked in requests)
            yield replace(found, file_name=named, requests=requests)


def labelled_images(
    results: Path,
    lines: Sequence[tuple[int, int]],
    image_folder: Path | None = None,
    sources: Mapping[str, Path] | None = None,
    with_images: bool = True,
) -> Iterator["LabelledImage"]:
    """Yield the images of a folder of results, one read at a time.

    Args:
        results: the folder.
        lines: see `find_lines`.
        image_folder, sources: see `export_results`.
        with_images: check that each image is the one that was segmented.

    Raises:
        CommandError: an image or a mask is not there, or is another one.
    """
    from ..data.labelled_images import from_result_line

    with (results / RESULTS_NAME).open("rb") as file:
        for start, size in lines:
            file.seek(start)
            record = json.loads(file.read(size))
            source = _source(record, image_folder, sources)
            if with_images:
                _check_image(record, source)
            try:
                yield from_result_line(record, results, source)
            except (OSError, ValueError) as error:
                raise CommandError(f"{path_text(results)}, the result of {record['image']!r}: {error}") from None


def _source(record: Mapping[str, Any], image_folder: Path | None, sources: Mapping[str, Path] | None) -> Path:
    """The file of the image of a line, wherever it lies now."""
    image = record["image"]
    if image_folder is not None:
        inside = image_folder / image  # an absolute name stays what it is
        return inside if inside.is_file() and not Path(image).is_absolute() else image_folder / Path(image).name
    return (sources or {}).get(image, Path(image))


def _check_image(record: Mapping[str, Any], source: Path) -> None:
    try:
        is_same = file_sha256(source) == record["sha256"]
    except OSError as error:
        raise CommandError(
            f"The image {path_text(source)!r} cannot be read ({error.strerror}). Name the folder where the images lie "
            "with --image-folder, or leave them out with --images none."
        ) from None
    if not is_same:
        raise CommandError(
            f"The image {path_text(source)!r} is not the one that was segmented: its content has changed. Segment it "
            "again, or name the folder of the images with --image-folder."
        )


__all__ = ["Formats", "check_formats", "export", "export_results", "labelled_images"]
