"""`reasonseg mask`: hide what a question does not need in many pictures, before another model is asked."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..whole_files import write_whole
from .failures import CommandError, describe, print_error, stderr_console
from .inputs import find_named_images, names_something, split_text
from .results import RESULTS_NAME, ResultFolder, file_sha256
from .running import Dtype, load_checkpoint, run_in_batches, with_progress


if TYPE_CHECKING:
    from PIL import Image


QUESTION_KEYS = ("question", "text")
# JPEG at the usual 75 would add blocks to pictures whose details are asked for.
SAVE_OPTIONS = {".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}
SAVE_OPTIONS[".jpeg"] = SAVE_OPTIONS[".jpg"]


@dataclass(frozen=True)
class Task:
    """One picture to mask by one question.

    `place` is where it goes below the output folder, if that is free, `key` what tells its line from the others.
    """

    image: Path
    text: str
    place: PurePosixPath
    key: str


def mask(
    model: Annotated[str, typer.Option("--model", "-m", help="Folder or Hub name of a converted IVM checkpoint.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the masked pictures, under their names.")],
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
        typer.Option(help="Instead of IMAGE and TEXT: a file with a picture and a question in every line."),
    ] = None,
    image_folder: Annotated[
        Path | None, typer.Option(help="What the pictures in --jsonl are relative to.  [default: its folder]")
    ] = None,
    image_key: Annotated[str, typer.Option(help="Field of --jsonl with the picture.")] = "image",
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
    crop: Annotated[bool, typer.Option("--crop", help="Cut the pictures to what is kept.")] = False,
    overlay_color: Annotated[str, typer.Option(help="Paint the rest with this: name, #rrggbb or R,G,B.")] = "white",
    dilate: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Widen what is kept by this share of the height.")
    ] = 0.05,
    blur: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Soften its edge over this share of the height.")
    ] = 0.05,
    min_kept: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Leave pictures whole of which a smaller share would be kept.")
    ] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per forward pass.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; auto: an accelerator if there is one.")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="auto keeps what the checkpoint is stored in.")] = Dtype.auto,
    revision: Annotated[str | None, typer.Option(help="Commit hash, tag or branch of a Hub checkpoint.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint.")
    ] = False,
    json_lines: Annotated[
        bool, typer.Option("--json", help="Print each picture's JSON line to stdout instead of a summary.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do pictures again that are already done.")] = False,
):
    """Hide what a question does not need in every IMAGE, or in every picture of a file of questions.

    Masked pictures keep their names and sub-folders in --out; results.jsonl says what was kept of each. With --jsonl
    the file is written there too, its pictures replaced, so that a benchmark runs on --out as it would on the
    original. A picture with several questions becomes one masked picture per question. A run that was stopped goes on
    where it stopped. Ends with 0 if every picture succeeded.
    """
    if jsonl is None:
        if image_folder is not None:
            raise CommandError("--image-folder belongs to --jsonl; name the folder as IMAGE instead.")
        rows, tasks = None, _image_tasks(arguments or [], text, out)
    else:
        if arguments or text is not None:
            raise CommandError("--jsonl names pictures and questions; leave IMAGE and TEXT out.")
        if jsonl.name == RESULTS_NAME:
            raise CommandError(f"{RESULTS_NAME} is what this command writes itself; give --jsonl another name.")
        rows = _read_rows(jsonl, image_folder or jsonl.parent, image_key, question_key, first_line)
        tasks = [task for _, task in rows]
    settings = {
        "model": model,
        "revision": revision,
        "text": None if jsonl else tasks[0].text,
        "threshold": threshold,
        "crop": crop,
        "overlay_color": _color(overlay_color),
        "dilate": dilate,
        "blur": blur,
        "min_kept": min_kept,
        "dtype": dtype.value,
    }
    results = ResultFolder(out, settings, overwrite, command="mask")
    tasks = list({task.key: task for task in tasks}.values())
    pending = [task for task in tasks if not results.is_done(task.image, task.key)]
    places = _free_places(tasks, results)
    _check_originals(tasks, places, out, jsonl)
    console = stderr_console()
    if len(pending) < len(tasks):
        console.print(f"{len(tasks) - len(pending)} of {len(tasks)} pictures are done already.")
    done = {task.key for task in tasks} - {task.key for task in pending}
    if pending:
        with console.status(f"Loading {model} ..."):
            masker = _Masker(settings, device, trust_remote_code)
        for task, outcome in with_progress(
            run_in_batches(masker, pending, masker.load, batch_size), len(pending), console, "Masking"
        ):
            if isinstance(outcome, Exception):
                print_error(f"{task.image}: {describe(outcome)}")
                continue
            record = _save(results, task, places[task.key], masker.picture(outcome[1]), outcome[1])
            done.add(task.key)
            _report(record, out, json_lines)
    if rows is not None:
        _write_rows(out / jsonl.name, [row for row in rows if row[1].key in done], results, image_key)
    if failed := len(tasks) - len(done):
        left_out = "" if rows is None else f" Their lines are left out of {out / jsonl.name}."
        print_error(
            f"{failed} of {len(tasks)} pictures failed, see above. The others are in {out}; the same command tries "
            f"the failed ones again.{left_out}"
        )
        raise typer.Exit(1)


def _image_tasks(arguments: list[str], text: str | None, out: Path) -> list[Task]:
    if not arguments:
        raise CommandError("Name pictures and a question, or with --jsonl a file that holds both.")
    if text is None and names_something(arguments[-1]):
        raise CommandError("There is no question. Put it after the images in quotes, or use --text QUESTION.")
    arguments, text = split_text(arguments, text, [])
    return [
        Task(image, text, PurePosixPath(place.as_posix()), str(image))
        for image, place in find_named_images(arguments, leave_out=out).items()
    ]


def _read_rows(
    path: Path, folder: Path, image_key: str, question_key: str | None, first_line: bool
) -> list[tuple[dict[str, Any], Task]]:
    """Read the lines of a file of questions, each with its task."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would cut questions at rare marks
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--jsonl {str(path)!r} cannot be read ({error}).") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CommandError(
                f"Line {number} of {str(path)!r} is not JSON ({error}). Give one object per line."
            ) from None
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
        question = question.strip().split("\n")[0].strip() if first_line else question
        place = PurePosixPath(image.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or Path(image).is_absolute():
            place = PurePosixPath(place.name)
        key = json.dumps([str(folder / image), question], ensure_ascii=False)
        rows.append((row, Task(folder / image, question, place, key)))
    if not rows:
        raise CommandError(f"{str(path)!r} has no lines.")
    return rows


def _free_places(tasks: list[Task], results: ResultFolder) -> dict[str, PurePosixPath]:
    """Where each masked picture goes: its own name, with a number where another picture or question has that name."""
    places = {
        task.key: PurePosixPath(results.records[task.key]["name"]) for task in tasks if task.key in results.records
    }
    taken = {str(name).lower() for name in (record["name"] for record in results.records.values())}
    taken.add(RESULTS_NAME)
    for task in tasks:
        if task.key in places:
            continue
        wanted = _writable(task.place)
        place, number = wanted, 1
        while str(place).lower() in taken:
            number += 1
            place = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
        taken.add(str(place).lower())
        places[task.key] = place
    return places


def _check_originals(tasks: list[Task], places: dict[str, PurePosixPath], out: Path, jsonl: Path | None) -> None:
    """
    Raises:
        CommandError: what is written would replace a picture that is read, or the file of questions.
    """
    written = [out / places[task.key] for task in tasks]
    originals = {task.image for task in tasks}
    if jsonl is not None:
        written.append(out / jsonl.name)
        originals.add(jsonl)
    # Writing replaces a link itself, not the file that it leads to.
    kept = {place for path in originals for place in (path.resolve(), path.parent.resolve() / path.name)}
    for path in written:
        if path.parent.resolve() / path.name in kept:
            raise CommandError(
                f"{str(path)!r} would be overwritten: --out is where the originals lie. Use another folder."
            )


def _writable(place: PurePosixPath) -> PurePosixPath:
    """The place with a suffix that Pillow can write."""
    from PIL import Image

    Image.init()
    kind = Image.registered_extensions().get(place.suffix.lower())
    return place if kind in Image.SAVE and kind != "PDF" else place.with_name(f"{place.name}.png")


def _color(text: str) -> list[int] | str:
    parts = text.split(",")
    try:
        return [int(part) for part in parts] if len(parts) == 3 else text
    except ValueError:
        return text  # refused with what is allowed when the first picture is masked


class _Masker:
    """A loaded IVM checkpoint that masks tasks."""

    def __init__(self, settings: dict[str, Any], device: str, trust_remote_code: bool):
        from ..masked_input import Masker, MaskingOptions
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
            settings["model"], settings["revision"], settings["dtype"], device, trust_remote_code
        )
        self.masker = Masker(network, processor, options)

    def load(self, task: Task) -> tuple["Image.Image", str]:
        return self.masker.load(task.image), task.text

    def __call__(self, loaded: list[tuple["Image.Image", str]]) -> list[Any]:
        return self.masker([picture for picture, _ in loaded], [text for _, text in loaded])

    def picture(self, masked: Any) -> "Image.Image":
        return self.masker.picture(masked)


def _save(
    results: ResultFolder, task: Task, place: PurePosixPath, picture: "Image.Image", masked: Any
) -> dict[str, Any]:
    """Write one masked picture, then its line."""
    options = SAVE_OPTIONS.get(place.suffix.lower(), {})
    name = results.save_picture(str(place), lambda path: picture.save(path, **options))
    record = {
        "image": str(task.image),
        "question": task.text,
        "key": task.key,
        "sha256": file_sha256(task.image),
        "name": name,
        "files": [name],
        "height": picture.height,
        "width": picture.width,
        "found": masked.found,
        "kept_ratio": round(masked.kept_ratio, 6),
        "box_xyxy": list(masked.box_xyxy) if masked.box_xyxy is not None else None,
        "crop_xyxy": list(masked.crop_box_xyxy) if results.request["crop"] else None,
        "request": results.request,
    }
    results.add(record)
    return record


def _write_rows(path: Path, rows: list[tuple[dict[str, Any], Task]], results: ResultFolder, image_key: str) -> None:
    """Write the file of questions for the masked pictures."""
    lines = []
    for row, task in rows:
        record = results.records[task.key]
        masking = {"image": row[image_key], **{name: record[name] for name in ("found", "kept_ratio", "box_xyxy")}}
        lines.append(json.dumps({**row, image_key: record["name"], "masking": masking}, ensure_ascii=False) + "\n")
    write_whole(path, "".join(lines))


def _report(record: dict[str, Any], out: Path, json_lines: bool) -> None:
    if json_lines:
        line = json.dumps(record, ensure_ascii=False)
    else:
        kept = f"{record['kept_ratio']:.1%} kept" if record["found"] else "nothing found, the whole picture is kept"
        line = f"{record['image']}: {kept} -> {out / record['name']}"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
