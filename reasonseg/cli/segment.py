"""`reasonseg segment`: images and a question in, masks out."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..model_names import EMBEDDED_HELP
from .batches import save_all
from .export import Formats, check_formats, export_results
from .failures import CommandError, path_text, stderr_console
from .image_search import FoundImages
from .inputs import DataSetOptions, find_images, split_text
from .png import encode_mask_png, encode_rgb_png
from .printing import printable_json, printable_name, write_out
from .processes import launched_processes
from .remote import ApiKey, RemoteSegmenter, Server, connect
from .result_lines import ANSWER_FIELDS, EXPORT_FOLDER
from .results import ResultFolder, file_sha256, hashed_stem
from .running import (
    Compiled,
    Device,
    Dtype,
    KeptDtype,
    LongestAnswer,
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
from .shards import ShardOption, read_shard


if TYPE_CHECKING:
    from PIL import Image


# How answers are sampled that vote, as StAR's are.
_SAMPLED = {"do_sample": True, "temperature": 1.0, "top_p": 0.9}


@dataclass(frozen=True)
class Settings:
    """What decides the result besides the image; a finished image is skipped only if all of it is the same."""

    model: str
    revision: str | None
    text: str | None
    phrases: list[str]
    max_new_tokens: int | None
    mask_threshold: float
    reject_threshold: float | None
    dtype: str
    votes: int | None = None
    seed: int | None = None

    def request(self) -> dict[str, Any]:
        """All of it as JSON types; of votes only where there are some."""
        unused = {"votes", "seed"} if self.votes is None else set()
        return {name: value for name, value in vars(self).items() if name not in unused}


def segment(
    out_name: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Folder for masks, overlays and results.jsonl; of a data set for parquet files, or the repository "
            "hf://datasets/ORG/NAME for them.",
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE... [TEXT]",
            help="Files, folders or patterns, then the question in quotes.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=f"Folder or Hub name of a converted checkpoint; {EMBEDDED_HELP}. Needed without --server.",
            show_default=False,
        ),
    ] = None,
    server: Server = None,
    api_key: ApiKey = None,
    text: Annotated[str | None, typer.Option("--text", "-t", help="The question, if not the last argument.")] = None,
    phrase: Annotated[
        list[str] | None,
        typer.Option("--phrase", "-p", help="Segment this phrase without generating text; repeat for several."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 1,
    max_new_tokens: LongestAnswer = None,
    mask_threshold: Annotated[float, typer.Option(help="Pixels with a larger mask logit belong to the mask.")] = 0.0,
    reject_threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Reject a slot below this [SEG] probability.  [default: the model's own decision]"
        ),
    ] = None,
    votes: Annotated[
        int | None,
        typer.Option(min=2, help="Sample so many answers to the question and have them vote, as StAR does (32)."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Of these answers.  [default: 0]")] = None,
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
    answers: Annotated[
        bool, typer.Option("--answers", help="Also write each answer in the colours of its masks, as PNG and HTML.")
    ] = False,
    formats: Formats = None,
    shard: ShardOption = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Label the rows of a data set instead: a folder (parquet, images, save_to_disk ...) or "
            "ORG/NAME[@REVISION] on the Hub, which is streamed.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Its split; needed where there are several.")] = None,
    config: Annotated[str | None, typer.Option(help="Its configuration, where it has several.")] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Its column of images.  [default: the only one]", show_default=False)
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Its column with a question for each row.")] = None,
    phrases_column: Annotated[
        str | None, typer.Option(help="Its column with a phrase, or a list of them, for each row.")
    ] = None,
    drop_column: Annotated[
        list[str] | None, typer.Option(help="Do not copy this column to the output; repeat for several.")
    ] = None,
    rows_per_shard: Annotated[
        int, typer.Option(min=1, help="Most rows of a parquet file; a stopped run resumes after whole files.")
    ] = 1000,
    private: Annotated[bool, typer.Option("--private", help="Make the repository of --out private.")] = False,
):
    """Answer a question about each IMAGE with text and masks.

    Writes to --out: one PNG per mask (255 = object), one overlay per image and one line per image in results.jsonl. A
    run that was stopped resumes where it stopped; images that are done are skipped, and so are hidden files and what
    earlier runs have written. With `torchrun` or `accelerate launch` (`-m reasonseg segment ...`) the images are
    shared among processes; with --shard K/N machines that know nothing of each other do a part each. With --format all
    results of --out are then written for annotation tools, too, as `reasonseg export` does. Ends with 0 if every image
    succeeded.

    With --dataset, whole rows of a data set are copied to --out with their masks in a new column; see the README.
    """
    check_formats(formats or ())
    options = DataSetOptions(
        dataset, split, config, image_column, text_column, phrases_column, tuple(drop_column or ()), rows_per_shard
    )
    if dataset is None:
        options.check_unused()
        if private:
            raise CommandError("--private is for --dataset with a repository on the Hub as --out.")
    elif answers or formats:
        raise CommandError(
            f"{'--answers' if answers else '--format'} is for images; rows of a data set are written as parquet files"
            f"{'' if answers else ', of which `reasonseg export` makes other formats'}."
        )
    if votes is None and seed is not None:
        raise CommandError("--seed is for answers that are sampled, which --votes asks for.")
    if votes is not None and (phrase or phrases_column or server is not None):
        raise CommandError("--votes is for answers to a question by a model that runs here: no phrases, no --server.")
    if formats and shard is not None:
        raise CommandError("--format needs all images. Merge the shards first, then run `reasonseg export`.")
    needed = ANSWER_FIELDS if answers else ()
    precision = precision_of(dtype, segmenter_dtype, quantization, compiled)
    part, out = read_shard(shard), Path(out_name)
    with launched_processes() as processes:
        if dataset is None:
            arguments, text = split_text(arguments or [], text, phrase or [])
        else:
            text = options.question(arguments or [], text, phrase or [])
        remote = None
        if server is not None:
            model_options = {"--device": device, "--revision": revision, "--trust-remote-code": trust_remote_code}
            model_options |= {"--dtype": dtype, "--segmenter-dtype": segmenter_dtype, "--quantization": quantization}
            remote = connect(server, model, api_key, {**model_options, "--compile": compiled})
            model = remote.model
        elif model is None:
            raise typer.BadParameter(
                "Missing option '--model' / '-m', or '--server' with the address of one that runs."
            )
        drawing = max_new_tokens, mask_threshold, reject_threshold, dtype.value
        sampling = (votes, seed or 0) if votes is not None else ()
        settings = Settings(model, revision, text, phrase or [], *drawing, *sampling)
        console = stderr_console(processes.is_first)

        def make_segmenter() -> Segmenter | RemoteSegmenter:
            by_phrases = phrases_column is not None
            if remote is not None:
                return RemoteSegmenter(remote, settings, by_phrases)
            with console.status(f"Loading {escape(model)} ..."):
                loaded = load_checkpoint(model, revision, precision, device, trust_remote_code, "segment")
            if votes is not None and not hasattr(loaded[1], "vote"):
                raise CommandError(f"--votes is for models that write coordinates; {model!r} is none. Leave it out.")
            return Segmenter(settings, *loaded, by_phrases)

        if dataset is not None:
            from .segment_dataset import label_data_set

            request = settings.request() | precision.settings()
            label_data_set(
                options,
                out_name,
                request,
                make_segmenter,
                shard=part,
                processes=processes,
                batch_size=batch_size,
                workers=workers,
                overwrite=overwrite,
                private=private,
                as_json=json_lines,
            )
            return
        found = find_images(arguments, leave_out=out) if processes.is_first else FoundImages()
        if part.index:  # the first one tells of them
            found.problems, found.left_out = {}, Counter()
        everything = list(found)
        images = part.of_batches(everything, batch_size)
        total = len(images) + len(found.problems)
        with ResultFolder(out, settings.request() | precision.settings(), overwrite) as results:

            def plan() -> list[tuple[str, str, bool]]:
                pending, names = results.pending(images, needed), results.output_names(everything)
                found.report(console)
                results.tidy()
                if len(pending) < len(images):
                    console.print(f"{len(images) - len(pending)} of {len(images)} images are done already.")
                pending = set(pending)
                return [(str(image), names[image], image in pending) for image in images]

            planned = [(Path(image), name, is_pending) for image, name, is_pending in processes.agree(plan)]
            pending = [image for image, _, is_pending in planned if is_pending]
            failed: list[int] = []
            if pending:
                work = Segmenting(make_segmenter(), results, {image: name for image, name, _ in planned}, needed)

                def show(image: Path, record: dict[str, Any]) -> None:
                    _report(record, out, json_lines)

                among = [image for image, *_ in planned]
                failed = save_all(work, pending, show, batch_size, "Segmenting", workers, processes, among)
            if processes.is_first:
                results.arrange([path_text(image) for image in everything])
                results.end_shard(part, list(map(path_text, images)), list(map(path_text, everything)))
                if formats and results.records:
                    sources = {path_text(image): image for image in images}
                    export_results(out, formats, out / EXPORT_FOLDER, sources=sources, overwrite=overwrite)
    if processes.is_first:
        end_with_failures(len(failed) + len(found.problems), total, out)


class Segmenter:
    """A loaded checkpoint that answers one request about any image."""

    def __init__(self, settings: Settings, model: Any, processor: Any, by_phrases: bool = False):
        self.settings, self.model, self.processor = settings, model, processor
        self.by_phrases = by_phrases or bool(settings.phrases)

    @property
    def revision(self) -> str | None:
        """The commit of the Hub that the weights are of; what was asked for where they tell none."""
        return getattr(self.model.config, "_commit_hash", None) or self.settings.revision

    def load(self, image: Path | str | bytes) -> "Image.Image":
        from ..processing.image_loading import MAX_IMAGE_PIXELS, load_rgb_image

        return load_rgb_image(image, getattr(self.processor, "max_image_pixels", MAX_IMAGE_PIXELS))

    def prepare(self, images: list["Image.Image"], questions: list[Any] | None = None) -> Any:
        """Return the model's inputs for a batch of images; `questions` are a text or a list of phrases for each, where
        not all are asked the same. For votes, those of each image by itself: what is sampled depends on no other."""
        settings = self.settings
        if questions is None:
            questions = [settings.phrases if self.by_phrases else settings.text] * len(images)
        if settings.votes is not None:
            pairs = zip(images, questions, strict=True)
            return [self.processor(images=image, text=text, return_tensors="pt") for image, text in pairs]
        asked = {"phrases" if self.by_phrases else "text": questions}
        return self.processor(images=images, return_tensors="pt", **asked)

    def compute(self, inputs: Any) -> list[Any]:
        """Return one `SegmentationResult` per image."""
        return self._answers(inputs) if self.settings.votes is None else list(map(self._vote, inputs))

    def _vote(self, inputs: Any) -> Any:
        """The result of many answers about one image."""
        import torch

        torch.manual_seed(self.settings.seed)
        return self.processor.vote(self._answers(inputs, **_SAMPLED, num_return_sequences=self.settings.votes))

    def _answers(self, inputs: Any, **sampling: Any) -> list[Any]:
        import torch

        from ..modeling.outputs import answer_length

        settings, inputs = self.settings, inputs.to(self.model.device)
        options = {} if settings.reject_threshold is None else {"reject_threshold": settings.reject_threshold}
        with torch.inference_mode():
            if self.by_phrases and not inputs.awaits_answers:
                output = self.model(**inputs, **options)
            else:
                options["max_new_tokens"] = answer_length(self.model, settings.max_new_tokens)
                output = self.model.generate_with_masks(**inputs, **options, **sampling)
        return self.processor.post_process_segmentation(output, inputs, mask_threshold=settings.mask_threshold)


class Segmenting:
    """Segments images into a folder: what `save_all` runs.

    Args:
        segmenter: the model.
        results: the folder.
        names: how the files of each image begin, unless another process has taken that by now.
        needed: the fields of a line that not every run writes.
    """

    def __init__(
        self,
        segmenter: Segmenter | RemoteSegmenter,
        results: ResultFolder,
        names: Mapping[Path, str],
        needed: tuple[str, ...] = (),
    ):
        self.load, self.prepare, self.compute = segmenter.load, segmenter.prepare, segmenter.compute
        self.results, self.names, self.needed = results, names, needed

    def draw(self, image: Path, pixels: "Image.Image", result: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Return the image's line without its files, and the content of these by the ending of their names."""
        files, segments = {}, []
        for index, found in enumerate(result.segments):
            if found.mask is not None:
                files[f"mask_{index}.png"] = encode_mask_png(found.mask)
            segments.append(
                {
                    "label": found.label,
                    "span": list(found.span) if found.span is not None else None,
                    "score": found.score,
                    "slot_prob": found.slot_prob,
                    "rejected": found.rejected,
                    "box_xyxy": list(found.box_xyxy) if found.box_xyxy is not None else None,
                    "area": found.area,
                    "mask": None,
                    **found.remarks,
                }
            )
        files["overlay.png"] = encode_rgb_png(result.overlay(pixels))
        record = {
            "image": path_text(image),
            "sha256": file_sha256(image),
            "name": self.names[image],
            "height": pixels.height,
            "width": pixels.width,
            "text": result.text,
            "segments": segments,
            "overlay": None,
            "request": self.results.request,
            **result.remarks,
        }
        if self.needed:
            from ..processing.answer_rendering import draw_answer, to_html

            files["answer.png"] = encode_rgb_png(draw_answer(result, pixels))
            files["answer.html"] = to_html(result, pixels).encode("utf-8")
        return record, files

    def write(self, image: Path, drawn: tuple[dict[str, Any], dict[str, bytes]]) -> dict[str, Any]:
        """Write the files of one image, then its line, unless another process has done so by now."""
        record, files = drawn
        with self.results.writing():
            if self.results.is_done(image, needed=self.needed):
                return self.results.records[record["image"]]
            if not self.results.is_free(record["name"], record["image"]):
                record["name"] = hashed_stem(image.stem, os.path.realpath(image))
            saved = {
                ending: self.results.save_file(f"{record['name']}_{ending}", partial(_write, content))
                for ending, content in files.items()
            }
            for index, segment in enumerate(record["segments"]):
                segment["mask"] = saved.get(f"mask_{index}.png")
            record["overlay"] = saved["overlay.png"]
            record |= {field: saved[field.replace("_", ".")] for field in self.needed}
            self.results.add(record)
        return record


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _report(record: dict[str, Any], out: Path, json_lines: bool) -> None:
    if json_lines:
        write_out(printable_json(record) + "\n")
        return
    from ..processing.segments import segment_name

    parts = []
    for index, found in enumerate(record["segments"]):
        what = "rejected" if found["rejected"] else f"{found['area']} pixels, score {found['score']:.2f}"
        file = f" -> {printable_name(out / found['mask'])}" if found["mask"] else ""
        parts.append(f"  {segment_name(found['label'], index)}: {what}{file}")
    headline = ": ".join(filter(None, (printable_name(record["image"]), record["text"])))  # IVM writes no text
    write_out("\n".join([headline, *(parts or ["  no mask"])]) + "\n")
