"""`reasonseg reasonseg-masks`: the masks that annotations of ReasonSeg mean, as images."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .batches import save_all
from .failures import path_text, stderr_console
from .printing import write_out
from .results import ResultFolder, file_sha256
from .running import MaxImagePixels, end_with_failures


_JPEG_QUALITY = 95


def reasonseg_masks(
    annotations: Annotated[
        Path, typer.Argument(help="Folder with X.json and X.jpg for each image, or one of these files.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the masks.")],
    max_image_pixels: MaxImagePixels = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do again what is already done.")] = False,
):
    """Paint the annotations of ReasonSeg as LISA's utils/data_processing.py does.

    For each X.json: X_labeled.png (0: background, 1: target, 255: ignored in an evaluation), X_target.png and
    X_ignore.png (white on black), and, if the image X.jpg is there, X_overlay.jpg: the image, and beside it targets
    in green and ignored regions in red. Masks have the size of the upright image. A run that was stopped resumes
    where it stopped. Ends with 0 if every annotation succeeded.
    """
    from ..data.reason_seg_masks import find_annotations

    found, console = find_annotations(annotations), stderr_console()
    with ResultFolder(out, {"masks": "ReasonSeg"}, overwrite, command="reasonseg-masks") as results:
        pending = [path for path in found if not _is_done(results, path)]
        results.tidy()
        if len(pending) < len(found):
            console.print(f"{len(found) - len(pending)} of {len(found)} annotations are done already.")
        painting = _Painting(results, results.output_names(found))
        failed = save_all(painting, pending, _report, batch_size=1, step="Painting")
    end_with_failures(len(failed), len(found), out)


def _report(_: Path, record: dict[str, Any]) -> None:
    write_out(f"{record['image']}: {record['target']:.1%} target, {record['ignored']:.1%} ignored\n")


class _Painting:
    """What `save_all` runs: an annotation is read and painted at once."""

    def __init__(self, results: ResultFolder, names: dict[Path, str]):
        self.results, self.names = results, names

    def load(self, path: Path) -> Any:
        from ..data.reason_seg_masks import read_masks

        return read_masks(path)

    def prepare(self, loaded: list[Any]) -> list[Any]:
        return loaded

    def compute(self, loaded: list[Any]) -> list[Any]:
        return loaded

    def draw(self, path: Path, loaded: Any, masks: Any) -> Any:
        return masks

    def write(self, path: Path, masks: Any) -> dict[str, Any]:
        return _save(self.results, path, self.names[path], masks)


def _is_done(results: ResultFolder, path: Path) -> bool:
    """Whether the files of an annotation are there, and it and its image are still what they were."""
    return results.is_done(path) and results.records[path_text(path)]["image_sha256"] == _image_sha256(path)


def _image_sha256(path: Path) -> str | None:
    from ..data.reason_seg_masks import find_image

    image = find_image(path)
    return None if image is None else file_sha256(image)


def _save(results: ResultFolder, path: Path, name: str, masks: Any) -> dict[str, Any]:
    from PIL import Image

    images = {
        f"{name}_labeled.png": Image.fromarray(masks.labeled),
        f"{name}_target.png": Image.fromarray(masks.target).convert("L"),
        f"{name}_ignore.png": Image.fromarray(masks.ignored).convert("L"),
    }
    if masks.image is not None:
        images[f"{name}_overlay.jpg"] = masks.overlay()
    for file_name, image in images.items():
        # quality is for JPEG alone
        results.save_file(file_name, partial(image.save, quality=_JPEG_QUALITY))
    record = {
        "image": path_text(path),
        "name": name,
        "files": list(images),
        "size": list(masks.labeled.shape),
        "target": float(masks.target.mean()),
        "ignored": float(masks.ignored.mean()),
        "sha256": file_sha256(path),
        "image_sha256": _image_sha256(path),
        "request": results.request,
    }
    results.add(record)
    return record


__all__ = ["reasonseg_masks"]
