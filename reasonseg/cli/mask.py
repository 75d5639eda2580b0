"""`reasonseg mask`: hide what a question does not need in many images, before another model is asked."""

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..atomic_files import LONGEST_NAME, write_whole
from .batches import save_all
from .failures import CommandError, path_text, stderr_console
from .inputs import find_images, names_something, split_text
from .png import encode_rgb_png
from .printing import printable_json, printable_name, write_out
from .processes import launched_processes
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
    Workers,
    end_with_failures,
    load_checkpoint,
    precision_of,
)


if TYPE_CHECKING:
    from PIL import Image

    from ..evaluation.masked_input import Masker, MaskingOptions
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
    workers: Workers = 2,
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
    where it stopped. With `torchrun` or `accelerate launch` (`-m reasonseg mask ...`) the images are shared among
    processes. Ends with 0 if every image succeeded.
    """
    precision = precision_of(dtype, segmenter_dtype, quantization, compiled)
    with launched_processes() as processes:
        found, rows, tasks = None, None, []
        if processes.is_first and jsonl is None:
            if image_folder is not None:
                raise CommandError("--image-folder belongs to --jsonl; name the folder as IMAGE instead.")
            found, tasks = _image_tasks(arguments or [], text, out)
        elif processes.is_first:
            if arguments or text is not None:
                raise CommandError("--jsonl names images and questions; leave IMAGE and TEXT out.")
            if jsonl.name == RESULTS_NAME:
                raise CommandError(f"{RESULTS_NAME} is what this command writes itself; give --jsonl another name.")
            rows = _read_rows(jsonl, image_folder or jsonl.parent, image_key, question_key, first_line)
            tasks = [task for _, task in rows]
        settings = {
            "model": model,
            "revision": revision,
            "text": processes.agree(lambda: None if jsonl or not tasks else tasks[0].text),
            "threshold": threshold,
            "crop": crop,
            "overlay_color": _color(overlay_color),
            "dilate": dilate,
            "blur": blur,
            "min_kept": min_kept,
            "dtype": dtype.value,
            **precision.settings(),
        }
        tasks, console = list({task.key: task for task in tasks}.values()), stderr_console(processes.is_first)
        with ResultFolder(out, settings, overwrite, command="mask") as results:

            def plan() -> list[tuple[str, ...]]:
                pending = [task for task in tasks if not results.is_done(task.image, task.key)]
                targets = Targets(results, tasks, jsonl)
                if found is not None:
                    found.report(console)
                results.tidy(*targets.folders)
                if len(pending) < len(tasks):
                    console.print(f"{len(tasks) - len(pending)} of {len(tasks)} images are done already.")
                return [(str(task.image), task.text, str(targets.of(task)), task.key) for task in pending]

            pending = [
                Task(Path(image), asked, PurePosixPath(target), key)
                for image, asked, target, key in processes.agree(plan)
            ]
            failed: list[int] = []
            if pending:
                from ..evaluation.masked_input import Masker

                options = _masking_options(settings)
                with console.status(f"Loading {escape(model)} ..."):
                    loaded = load_checkpoint(model, revision, precision, device, trust_remote_code, "mask")
                targets = Targets(results, pending, jsonl, originals=tasks)
                work = Masking(Masker(*loaded, options), results, targets)

                def show(task: Task, record: dict[str, Any]) -> None:
                    _report(record, out, json_lines)

                failed = save_all(work, pending, show, batch_size, "Masking", workers, processes)
            if not processes.is_first:
                return
            results.arrange([task.key for task in tasks])
            if rows is not None:
                left_out = {pending[index].key for index in failed}
                with results.writing():
                    done = [row for row in rows if row[1].key not in left_out]
                    _write_rows(out / jsonl.name, done, results, image_key)
    problems = 0 if found is None else len(found.problems)
    left_out = "" if rows is None else f"Their lines are left out of {path_text(out / jsonl.name)}."
    end_with_failures(len(failed) + problems, len(tasks) + problems, out, left_out)


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


class Targets:
    """Where each masked image goes: its own name, with a number where another image or question has that name.

    Args:
        results: what there is already.
        tasks: what is to be done.
        jsonl: the file of questions, if there is one.
        originals (*optional*): all tasks of the command, whose images must stay; by default `tasks`.

    Raises:
        CommandError: what is written would replace an image that is read, or the file of questions.
    """

    def __init__(
        self, results: ResultFolder, tasks: list[Task], jsonl: Path | None, originals: list[Task] | None = None
    ):
        self.results = results
        read = [task.image for task in [*tasks, *(originals or [])]] + ([jsonl] if jsonl else [])
        originals = {os.path.abspath(path) for path in read}
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


def _masking_options(settings: dict[str, Any]) -> "MaskingOptions":
    from ..evaluation.masked_input import MaskingOptions
    from ..processing.colors import read_color

    return MaskingOptions(
        threshold=settings["threshold"],
        crop=settings["crop"],
        overlay_color=read_color(settings["overlay_color"], whole=False),
        dilate=settings["dilate"],
        blur=settings["blur"],
        min_kept_ratio=settings["min_kept"],
    )


class Masking:
    """Masks images into a folder: what `save_all` runs.

    Args:
        masker: the model.
        results: the folder.
        targets: where each masked image goes.
    """

    def __init__(self, masker: "Masker", results: ResultFolder, targets: Targets):
        self.masker, self.results, self.targets = masker, results, targets

    def load(self, task: Task) -> tuple["Image.Image", str]:
        return self.masker.load(task.image), task.text

    def prepare(self, loaded: list[tuple["Image.Image", str]]) -> Any:
        return self.masker.prepare([image for image, _ in loaded], [text for _, text in loaded])

    def compute(self, inputs: Any) -> list[Any]:
        """Return one heat-map per image."""
        return self.masker.rate(inputs)

    def draw(self, task: Task, loaded: Any, heatmap: Any) -> tuple[dict[str, Any], bytes]:
        """Return the task's line without its file, and the content of this."""
        masked = self.masker.paint(loaded[0], heatmap)
        image = self.masker.shown(masked)
        record = {
            "image": path_text(task.image),
            "question": task.text,
            "key": task.key,
            "sha256": file_sha256(task.image),
            "name": "",
            "files": [],
            "height": image.height,
            "width": image.width,
            "found": masked.found,
            "kept_ratio": round(masked.kept_ratio, 6),
            "box_xyxy": list(masked.box_xyxy) if masked.box_xyxy is not None else None,
            "crop_box_xyxy": list(masked.crop_box_xyxy) if self.results.request["crop"] else None,
            "request": self.results.request,
        }
        return record, _encoded(image, task.target.suffix.lower())

    def write(self, task: Task, drawn: tuple[dict[str, Any], bytes]) -> dict[str, Any]:
        """Write one masked image, then its line, unless another process has done so by now."""
        record, content = drawn
        with self.results.writing():
            if self.results.is_done(task.image, task.key):
                return self.results.records[task.key]
            target = str(self.targets.of(task))
            record["name"] = self.results.save_file(target, lambda path: path.write_bytes(content))
            record["files"] = [record["name"]]
            self.results.add(record)
        return record


def _encoded(image: "Image.Image", suffix: str) -> bytes:
    """The content of an image file with this ending."""
    from PIL import Image

    if suffix == ".png":
        return encode_rgb_png(image)
    Image.init()
    file = io.BytesIO()
    image.save(file, format=Image.registered_extensions()[suffix], **SAVE_OPTIONS.get(suffix, {}))
    return file.getvalue()


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
