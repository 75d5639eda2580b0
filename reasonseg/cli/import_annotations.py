"""`reasonseg import`: annotations of other tools become a folder that `train` and `evaluate` take."""

from pathlib import Path
from typing import Annotated

import typer

from ..data.annotation_formats import (
    COLUMNS,
    FORMATS,
    AnnotationFormat,
    ReadingOptions,
    WritingOptions,
    find_format,
    guess_format,
)
from ..folder_lock import alone_in
from .failures import CommandError, path_text, refuse_address, stderr_console
from .printing import printable_json, write_out
from .progress import with_progress
from .running import MaxImagePixels


_FORMAT_HELP = "; ".join(f"{entry.name}: {entry.summary}" for entry in FORMATS.values())


def import_annotations(
    source: Annotated[
        str,
        typer.Argument(help="A file or folder of annotations, or ORG/NAME on the Hub.", metavar="SOURCE"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make: metadata.jsonl and the images.")],
    format_name: Annotated[
        str | None,
        typer.Option("--format", "-f", help=f"{_FORMAT_HELP}.  [default: what SOURCE looks like]", show_default=False),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images, where they do not lie beside the annotations.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Part of the data set; needed where there are several.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of a data set, where it has several.")] = None,
    question: Annotated[
        str | None,
        typer.Option(
            help="Question about labels.  [default: Please segment {phrases} in this image.]", show_default=False
        ),
    ] = None,
    answer: Annotated[
        str | None, typer.Option(help="Answer to it.  [default: Sure, {items}.]", show_default=False)
    ] = None,
    item: Annotated[
        str | None,
        typer.Option(help="What an answer says of each label.  [default: {phrase}: {seg}]", show_default=False),
    ] = None,
    per: Annotated[str, typer.Option(help="One question for each image, or for each label in it.")] = "image",
    slot: Annotated[
        str, typer.Option(help="A mask for each label, of all its objects together, or for each object.")
    ] = "label",
    absent: Annotated[
        int,
        typer.Option(
            min=0,
            help="Also ask for this many labels that an image does not have, answered by [REJ]; for models that know "
            "it, and data in which each label is marked wherever it is.",
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the choice among these.")] = 0,
    skip_label: Annotated[
        list[str] | None,
        typer.Option(help="Leave out objects of this label, such as `__ignore__`; repeat for several."),
    ] = None,
    without_mask: Annotated[
        str,
        typer.Option(help="Of objects without a mask, such as boxes and lines: refuse, skip, or box (filled)."),
    ] = "refuse",
    inner: Annotated[
        str,
        typer.Option(
            help="A polygon inside another of its object is a hole, or belongs to it (fill); refuse: not known."
        ),
    ] = "refuse",
    mask_frame: Annotated[
        str | None,
        typer.Option(help="upright or stored: what masks were drawn on, where an EXIF orientation leaves it open."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COLUMN",
            help=f"Column of a data set by what it holds: {', '.join(COLUMNS)}; repeat for several.",
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of a data set on the Hub.")] = None,
    image_files: Annotated[str, typer.Option(help="copy or link: how images come into --out.")] = "copy",
    max_image_pixels: MaxImagePixels = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
):
    """Make a data set of annotations from other tools, for `reasonseg train` and `evaluate`.

    --out is whole or not made at all; one that an earlier import has written is replaced. Masks lie in the upright
    frame, and what may mean two things is refused, with file and object. Labels become one question per image; what
    was asked and answered already stays as it is.
    """
    from ..data.annotation_writing import refuse_other_folders, write_annotations
    from ..data.label_requests import AskingOptions, read_with_requests

    if image_files not in ("copy", "link"):
        raise typer.BadParameter(f"--image-files is {image_files!r}; choose copy or link.")
    entry = _format_of(source, format_name)
    reading = ReadingOptions(
        images=images,
        split=split,
        config=config,
        revision=revision,
        columns=_columns(column or []),
        mask_frame=mask_frame,
        inner=inner,
        without_mask=without_mask,
        skip_labels=tuple(skip_label or ()),
    )
    asking = AskingOptions(question, answer, item, per, slot, absent, seed)
    refuse_address(out)
    refuse_other_folders(out)
    if Path(source).exists() and Path(source).resolve() == out.resolve():
        raise CommandError("SOURCE and --out are the same folder; name another one for what is made of it.")
    found, console = read_with_requests(source, entry, reading, asking), stderr_console()
    with alone_in(out.resolve().parent):
        written = write_annotations(
            FORMATS["reasonseg"],
            with_progress(found, None, console, "Importing"),
            out,
            WritingOptions(images=image_files),
            made_of={"read_as": entry.name},
        )
    written.left_out += reading.left_out
    console.print(f"Written: {path_text(out)} ({written.sentence()})", soft_wrap=True)
    if as_json:
        write_out(printable_json({"folder": path_text(out), "read_as": entry.name, **written.to_dict()}) + "\n")


def _format_of(source: str, name: str | None) -> AnnotationFormat:
    try:
        return guess_format(source) if name is None else find_format(name)
    except ValueError as error:
        raise CommandError(str(error).replace("format=", "--format ")) from None


def _columns(pairs: list[str]) -> dict[str, str]:
    columns = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not equals or name not in COLUMNS or not column:
            raise CommandError(f"--column {pair!r} must be NAME=COLUMN, with one of {', '.join(COLUMNS)} as NAME.")
        columns[name] = column
    return columns


__all__ = ["import_annotations"]
