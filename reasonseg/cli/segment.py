"""`reasonseg segment`: images and a question in, masks out."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..model_names import EMBEDDED_HELP
from ..precision import Precision
from .failures import path_text, stderr_console
from .inputs import find_images, split_text
from .printing import printable_json, printable_name, write_out
from .remote import ApiKey, RemoteSegmenter, Server, connect
from .result_lines import ANSWER_FIELDS
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


@dataclass(frozen=True)
class Settings:
    """What decides the result besides the image; a finished image is skipped only if all of it is the same."""

    model: str
    revision: str | None
    text: str | None
    phrases: list[str]
    max_new_tokens: int
    mask_threshold: float
    reject_threshold: float | None
    dtype: str


def segment(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... [TEXT]",
            help="Files, folders or patterns, then the question in quotes.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for masks, overlays and results.jsonl.")],
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
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    mask_threshold: Annotated[float, typer.Option(help="Pixels with a larger mask logit belong to the mask.")] = 0.0,
    reject_threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Reject a slot below this [SEG] probability.  [default: the model's own decision]"
        ),
    ] = None,
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
):
    """Answer a question about each IMAGE with text and masks.

    Writes to --out: one PNG per mask (255 = object), one overlay per image and one line per image in results.jsonl. A
    run that was stopped resumes where it stopped; images that are done are skipped, and so are hidden files and what
    earlier runs have written. Ends with 0 if every image succeeded.
    """
    arguments, text = split_text(arguments, text, phrase or [])
    found = find_images(arguments, leave_out=out)
    precision = precision_of(dtype, segmenter_dtype, quantization, compiled)
    remote = None
    if server is not None:
        model_options = {"--device": device, "--revision": revision, "--trust-remote-code": trust_remote_code}
        model_options |= {"--dtype": dtype, "--segmenter-dtype": segmenter_dtype, "--quantization": quantization}
        remote = connect(server, model, api_key, {**model_options, "--compile": compiled})
        model = remote.model
    elif model is None:
        raise typer.BadParameter("Missing option '--model' / '-m', or '--server' with the address of one that runs.")
    settings = Settings(
        model, revision, text, phrase or [], max_new_tokens, mask_threshold, reject_threshold, dtype.value
    )
    needed = ANSWER_FIELDS if answers else ()
    images, total, console = list(found), len(found) + len(found.problems), stderr_console()
    with ResultFolder(out, vars(settings) | precision.settings(), overwrite) as results:
        pending, names = results.pending(images, needed), results.output_names(images)
        found.report(console)
        results.tidy()
        done = len(images) - len(pending)
        if done:
            console.print(f"{done} of {len(images)} images are done already.")
        if pending:
            if remote is not None:
                segmenter = RemoteSegmenter(remote, settings)
            else:
                with console.status(f"Loading {escape(model)} ..."):
                    segmenter = _Segmenter(settings, precision, device, trust_remote_code)

            def save(image: Path, pixels: "Image.Image", result: Any) -> dict[str, Any]:
                return _save(results, image, names[image], pixels, result, needed)

            for _, record in save_all(segmenter, pending, save, batch_size, "Segmenting"):
                done += 1
                _report(record, out, json_lines)
    end_with_failures(total - done, total, out)


class _Segmenter:
    """A loaded checkpoint that answers one request about any image."""

    def __init__(self, settings: Settings, precision: Precision, device: str, trust_remote_code: bool):
        self.settings = settings
        self.model, self.processor = load_checkpoint(
            settings.model, settings.revision, precision, device, trust_remote_code, "segment"
        )

    def load(self, image: Path) -> "Image.Image":
        from ..processing.image_loading import MAX_IMAGE_PIXELS, load_rgb_image

        return load_rgb_image(image, getattr(self.processor, "max_image_pixels", MAX_IMAGE_PIXELS))

    def __call__(self, images: list["Image.Image"]) -> list[Any]:
        """Return one `SegmentationResult` per image."""
        import torch

        settings = self.settings
        if settings.phrases:
            question = {"phrases": [settings.phrases] * len(images)}
        else:
            question = {"text": [settings.text] * len(images)}
        inputs = self.processor(images=images, return_tensors="pt", **question).to(self.model.device)
        options = {} if settings.reject_threshold is None else {"reject_threshold": settings.reject_threshold}
        with torch.inference_mode():
            if settings.phrases:
                output = self.model(**inputs, **options)
            else:
                output = self.model.generate_with_masks(**inputs, max_new_tokens=settings.max_new_tokens, **options)
        return self.processor.post_process_segmentation(output, inputs, mask_threshold=settings.mask_threshold)


def _save(
    results: ResultFolder, image: Path, name: str, pixels: "Image.Image", result: Any, needed: tuple[str, ...]
) -> dict[str, Any]:
    """Write the files of one image, then its line, unless another process has done so by now."""
    with results.writing():
        if results.is_done(image, needed=needed):
            return results.records[path_text(image)]
        if not results.is_free(name, path_text(image)):
            name = hashed_stem(image.stem, os.path.realpath(image))
        record = {
            "image": path_text(image),
            "sha256": file_sha256(image),
            "name": name,
            "height": pixels.height,
            "width": pixels.width,
            "text": result.text,
            "segments": _save_masks(results, name, result),
            "overlay": results.save_file(f"{name}_overlay.png", result.overlay(pixels).save),
            "request": results.request,
        }
        if extractor := getattr(result, "phrase_extractor", None):
            record["phrase_extractor"] = extractor
        if needed:
            from ..processing.answer_rendering import draw_answer, to_html

            page = to_html(result, pixels)
            record["answer_png"] = results.save_file(f"{name}_answer.png", draw_answer(result, pixels).save)
            record["answer_html"] = results.save_file(
                f"{name}_answer.html", lambda path: path.write_text(page, encoding="utf-8")
            )
        results.add(record)
    return record


def _save_masks(results: ResultFolder, name: str, result: Any) -> list[dict[str, Any]]:
    """Write the masks of one image and return what its line says about the segments."""
    from PIL import Image

    segments = []
    for index, found in enumerate(result.segments):
        mask_name = None
        if found.mask is not None:
            mask = Image.fromarray(found.mask).convert("L")
            mask_name = results.save_file(f"{name}_mask_{index}.png", mask.save)
        segments.append(
            {
                "label": found.label,
                "span": list(found.span) if found.span is not None else None,
                "score": found.score,
                "slot_prob": found.slot_prob,
                "rejected": found.rejected,
                "box_xyxy": list(found.box_xyxy) if found.box_xyxy is not None else None,
                "area": found.area,
                "mask": mask_name,
            }
        )
    return segments


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
