"""`reasonseg mask`: hide what a question does not need in many images, before another model is asked."""

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..atomic_files import LONGEST_NAME, write_whole
from ..precision import Precision
from .failures import CommandError, path_text, stderr_console
from .inputs import find_images, names_something, split_text
from .printing import printable_json, printable_name, write_out
from .result_lines import RESULTS_NAME, json_line
from .results import ResultFolder, file_sha256, hashed_stem
from .running import (
    Compiled,
    Device,
    Dtype,
    KeptDtype,
    MaxImagePixels,
    Quantized,
    Revision,
    SegmenterDtype,
    TrustRemoteCode,
    end_with_failures,
    load_checkpoint,
    precision_of,
    save_all,
)


if TYPE_CHECKING:
    from PIL import Image

    from .image_search import FoundImages


QUESTION_KEYS = ("question", "text")
# JPEG at the usual 75 would add blocks to images whose details are asked for.
SAVE_OPTIONS = {".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}
SAVE_OPTIONS[".jpeg"] = SAVE_OPTIONS[".jpg"]


@dataclass(frozen=True)
class Task:
    """One image to mask by one question.

    `target` is where it goes below the output folder, if that is free, `key` what tells its line from the others.
    """

    image: Path
    text: str
    target: PurePosixPath
    key: str


def mask(
    model: Annotated[str, typer.Option("--model", "-m", help="Folder or Hub name of a converted IVM checkpoint.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the masked images, under their names.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE...] [TEXT]",
            help="Files, folders or patterns, then the question in quotes.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[str | None, typer.Option("--text", "-t", help="The question, if not the last argument.")] = None,
    jsonl: Annotated[
        Path | None,
        typer.Option(help="Instead of IMAGE and TEXT: a file with an image and a question in every line."),
    ] = None,
    image_folder: Annotated[
        Path | None, typer.Option(help="What the images in --jsonl are relative to.  [default: its folder]")
    ] = None,
    image_key: Annotated[str, typer.Option(help="Field of --jsonl with the image.")] = "image",
    question_key: Annotated[
        str | None, typer.Option(help="Field of --jsonl with the question.  [default: question, else text]")
    ] = None,
    first_line: Annotated[
        bool,
        typer.Option("--first-line", help="Mask by the first line of a question: without options and instructions."),
    ] = False,
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Keep pixels with a larger value of the heat-map.")
    ] = 0.1,
    crop: Annotated[bool, typer.Option("--crop", help="Cut the images to what is kept.")] = False,
    overlay_color: Annotated[str, typer.Option(help="Paint the rest with this: name, #rrggbb or R,G,B.")] = "white",
    dilate: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Widen what is kept by this share of the height.")
    ] = 0.05,
    blur: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Soften its edge over this share of the height.")
    ] = 0.05,
    min_kept: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Leave images whole of which a smaller share would be kept.")
    ] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 1,
    device: Device = "auto",
    dtype: KeptDtype = Dtype.auto,
    segmenter_dtype: SegmenterDtype = Dtype.auto,
    quantization: Quantized = None,
    compiled: Compiled = False,
    max_image_pixels: MaxImagePixels = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    json_lines: Annotated[
        bool, typer.Option("--json", help="Print each image's JSON line to stdout instead of a summary.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do images again that are already done.")] = False,
):
    """Hide what a question does not need in every IMAGE, or in every image of a file of questions.

    Masked images keep their names and sub-folders in --out; results.jsonl says what was kept of each. With --jsonl
    the file is written there too, its images replaced, so that a benchmark runs on --out as it would on the
    original. An image with several questions becomes one masked image per question. A run that was stopped resumes
    where it stopped. Ends with 0 if every image succeeded.
    """
    found = None
    if jsonl is None:
        if image_folder is not None:
            raise CommandError("--image-folder belongs to --jsonl; name the folder as IMAGE instead.")
        rows, (found, tasks) = None, _image_tasks(arguments or [], text, out)
    else:
        if arguments or text is not None:
            raise CommandError("--jsonl names images and questions; leave IMAGE and TEXT out.")
        if jsonl.name == RESULTS_NAME:
            raise CommandError(f"{RESULTS_NAME} is what this command writes itself; give --jsonl another name.")
        rows = _read_rows(jsonl, image_folder or jsonl.parent, image_key, question_key, first_line)
        tasks = [task for _, task in rows]
    precision = precision_of(dtype, segmenter_dtype, quantization, compiled)
    settings = {
        "model": model,
        "revision": revision,
        "text": None if jsonl or not tasks else tasks[0].text,
        "threshold": threshold,
        "crop": crop,
        "overlay_color": _color(overlay_color),
        "dilate": dilate,
        "blur": blur,
        "min_kept": min_kept,
        "dtype": dtype.value,
        **precision.settings(),
    }
    tasks, console = list({task.key: task for task in tasks}.values()), stderr_console()
    with ResultFolder(out, settings, overwrite, command="mask") as results:
        pending = [task for task in tasks if not results.is_done(task.image, task.key)]
        targets = _Targets(results, tasks, jsonl)
        if found is not None:
            found.report(console)
        results.tidy(*targets.folders)
        done = {task.key for task in tasks} - {task.key for task in pending}
        if done:
            console.print(f"{len(done)} of {len(tasks)} images are done already.")
        if pending:
            with console.status(f"Loading {escape(model)} ..."):
                masker = _Masker(settings, precision, device, trust_remote_code)

            def save(task: Task, _: Any, masked: Any) -> dict[str, Any]:
                return _save(results, task, targets, masker.shown(masked), masked)

            for task, record in save_all(masker, pending, save, batch_size, "Masking"):
                done.add(task.key)
                _report(record, out, json_lines)
        if rows is not None:
            with results.writing():
                _write_rows(out / jsonl.name, [row for row in rows if row[1].key in done], results, image_key)
    total = len(tasks) + (0 if found is None else len(found.problems))
    left_out = "" if rows is None else f"Their lines are left out of {path_text(out / jsonl.name)}."
    end_with_failures(total - len(done), total, out, left_out)


def _image_tasks(arguments: list[str], text: str | None, out: Path) -> tuple["FoundImages", list[Task]]:
    if not arguments:
        raise CommandError("Name images and a question, or with --jsonl a file that holds both.")
    if text is None and names_something(arguments[-1]):
        raise CommandError("There is no question. Put it after the images in quotes, or use --text QUESTION.")
    arguments, text = split_text(arguments, text, [])
    found = find_images(arguments, leave_out=out)
    return found, [
        Task(image, text, PurePosixPath(target.as_posix()), path_text(image))
        for image, target in found.relative_paths.items()
    ]


def _read_rows(
    path: Path, folder: Path, image_key: str, question_key: str | None, first_line: bool
) -> list[tuple[dict[str, Any], Task]]:
    """Read the lines of a file of questions, each with its task."""
    from ..data.data_files import read_json_lines

    problems: dict[int, str] = {}
    try:
        lines = list(read_json_lines(path, problems=problems))
    except OSError as error:
        raise CommandError(f"--jsonl {str(path)!r} cannot be read ({error}).") from None
    if problems:
        number, reason = next(iter(problems.items()))
        raise CommandError(f"Line {number} of {str(path)!r} is not JSON ({reason}). Give one object per line.")
    rows = []
    for number, row in lines:
        row = row if isinstance(row, dict) else {}
        keys = (
            [question_key] if question_key else [key for key in QUESTION_KEYS if key in row][:1] or QUESTION_KEYS[:1]
        )
        image, question = row.get(image_key), row.get(keys[0])
        if not isinstance(image, str) or not isinstance(question, str) or not image or not question.strip():
            raise CommandError(
                f"Line {number} of {str(path)!r} has no text under {image_key!r} and {keys[0]!r}; it has "
                f"{sorted(row)}. Name its fields with --image-key and --question-key."
            )
        if not _can_name_a_file(image):
            raise CommandError(f"Line {number} of {str(path)!r} names the image {image!r}; no file has such a name.")
        question = question.strip().split("\n")[0].strip() if first_line else question
        target = PurePosixPath(image.replace("\\", "/"))
        if target.is_absolute() or ".." in target.parts or Path(image).is_absolute():
            target = PurePosixPath(target.name)
        key = json.dumps([str(folder / image), question], ensure_ascii=False)
        rows.append((row, Task(folder / image, question, target, key)))
    if not rows:
        raise CommandError(f"{str(path)!r} has no lines.")
    return rows


def _can_name_a_file(name: str) -> bool:
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


class _Targets:
    """Where each masked image goes: its own name, with a number where another image or question has that name.

    Args:
        results: what there is already.
        tasks: what is to be done.
        jsonl: the file of questions, if there is one.

    Raises:
        CommandError: what is written would replace an image that is read, or the file of questions.
    """

    def __init__(self, results: ResultFolder, tasks: list[Task], jsonl: Path | None):
        self.results = results
        originals = {os.path.abspath(path) for path in [task.image for task in tasks] + ([jsonl] if jsonl else [])}
        # Writing replaces a link itself, not the file that it leads to.
        self._originals = {entry for path in originals for entry in (os.path.realpath(path), _entry(path))}
        self._taken = {record["name"].lower() for record in results.records.values()} | {RESULTS_NAME}
        self._targets: dict[str, PurePosixPath] = {}
        for task in tasks:
            known = results.records.get(task.key)
            self._targets[task.key] = self._check(PurePosixPath(known["name"]) if known else self._free(task))
        if jsonl is not None:
            self._check(PurePosixPath(jsonl.name))

    @property
    def folders(self) -> set[Path]:
        """The folders that are written to."""
        return {self.results.folder / target.parent for target in self._targets.values()}

    def of(self, task: Task) -> PurePosixPath:
        """Return the target of a task; another one if another process has taken it by now."""
        if not self.results.is_free(str(self._targets[task.key]), task.key):
            self._taken |= {record["name"].lower() for record in self.results.records.values()}
            self._targets[task.key] = self._check(self._free(task))
        return self._targets[task.key]

    def _free(self, task: Task) -> PurePosixPath:
        wanted, number = _writable(task.target), 1
        while str(target := _numbered(wanted, number, task.image)).lower() in self._taken:
            number += 1
        self._taken.add(str(target).lower())
        return target

    def _check(self, target: PurePosixPath) -> PurePosixPath:
        path = self.results.folder / target
        if _entry(path) in self._originals:
            raise CommandError(
                f"{path_text(path)!r} would be overwritten: --out is where the originals lie. Use another folder."
            )
        return target


def _entry(path: str | os.PathLike) -> str:
    """The real folder of a path with its own name, which may be a link."""
    return os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.basename(path))


def _writable(target: PurePosixPath) -> PurePosixPath:
    """The target with a suffix that Pillow can write, in folders whose names a result line can hold."""
    from PIL import Image

    Image.init()
    kind = Image.registered_extensions().get(target.suffix.lower())
    name = target.name if kind in Image.SAVE and kind != "PDF" else f"{target.name}.png"
    folders = [part if path_text(part) == part else hashed_stem(part, part) for part in target.parent.parts]
    return PurePosixPath(*folders, name)


def _numbered(target: PurePosixPath, number: int, image: Path) -> PurePosixPath:
    """The target with a number in its name above 1; with a hash where the name is too long or not UTF-8."""
    stem = target.stem if number == 1 else f"{target.stem}-{number}"
    name = stem + target.suffix
    if path_text(name) != name or len(name.encode()) > LONGEST_NAME:
        name = hashed_stem(stem, os.fsencode(image) + str(number).encode()) + target.suffix
    return target.with_name(name)


def _color(text: str) -> list[int] | str:
    parts = text.split(",")
    try:
        return [int(part) for part in parts] if len(parts) == 3 else text
    except ValueError:
        return text  # refused with what is allowed when the first image is masked


class _Masker:
    """A loaded IVM checkpoint that masks tasks."""

    def __init__(self, settings: dict[str, Any], precision: Precision, device: str, trust_remote_code: bool):
        from ..evaluation.masked_input import Masker, MaskingOptions
        from ..processing.colors import read_color

        options = MaskingOptions(
            threshold=settings["threshold"],
            crop=settings["crop"],
            overlay_color=read_color(settings["overlay_color"], whole=False),
            dilate=settings["dilate"],
            blur=settings["blur"],
            min_kept_ratio=settings["min_kept"],
        )
        network, processor = load_checkpoint(
            settings["model"], settings["revision"], precision, device, trust_remote_code, "mask"
        )
        self.masker = Masker(network, processor, options)

    def load(self, task: Task) -> tuple["Image.Image", str]:
        return self.masker.load(task.image), task.text

    def __call__(self, loaded: list[tuple["Image.Image", str]]) -> list[Any]:
        return self.masker([image for image, _ in loaded], [text for _, text in loaded])

    def shown(self, masked: Any) -> "Image.Image":
        return self.masker.shown(masked)


def _save(results: ResultFolder, task: Task, targets: _Targets, image: "Image.Image", masked: Any) -> dict[str, Any]:
    """Write one masked image, then its line, unless another process has done so by now."""
    with results.writing():
        if results.is_done(task.image, task.key):
            return results.records[task.key]
        target = targets.of(task)
        options = SAVE_OPTIONS.get(target.suffix.lower(), {})
        name = results.save_file(str(target), lambda path: image.save(path, **options))
        record = {
            "image": path_text(task.image),
            "question": task.text,
            "key": task.key,
            "sha256": file_sha256(task.image),
            "name": name,
            "files": [name],
            "height": image.height,
            "width": image.width,
            "found": masked.found,
            "kept_ratio": round(masked.kept_ratio, 6),
            "box_xyxy": list(masked.box_xyxy) if masked.box_xyxy is not None else None,
            "crop_box_xyxy": list(masked.crop_box_xyxy) if results.request["crop"] else None,
            "request": results.request,
        }
        results.add(record)
    return record


def _write_rows(path: Path, rows: list[tuple[dict[str, Any], Task]], results: ResultFolder, image_key: str) -> None:
    """Write the file of questions for the masked images."""
    lines = []
    for row, task in rows:
        record = results.records[task.key]
        masking = {"image": row[image_key], **{name: record[name] for name in ("found", "kept_ratio", "box_xyxy")}}
        lines.append(json_line({**row, image_key: record["name"], "masking": masking}))
    write_whole(path, "".join(lines))


def _report(record: dict[str, Any], out: Path, json_lines: bool) -> None:
    if json_lines:
        line = printable_json(record)
    else:
        kept = f"{record['kept_ratio']:.1%} kept" if record["found"] else "nothing found, the whole image is kept"
        line = f"{printable_name(record['image'])}: {kept} -> {printable_name(out / record['name'])}"
    write_out(line + "\n")
