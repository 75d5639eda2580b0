"""The folder that this package trains and evaluates on, read and written; see `request_folder`.

What is neither asked nor answered in words becomes a request: a question by its labels, and an answer with a slot for
each.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..processing.image_loading import MAX_IMAGE_PIXELS
from .annotation_formats import ReadingOptions, WritingOptions, Written
from .annotation_reading import read_each, read_head
from .annotation_writing import new_file, place_image
from .data_files import DataFileError
from .label_requests import AskingOptions, with_requests
from .labelled_images import LabelledImage, LabelledObject, LabelledRequest
from .request_folder import METADATA_FILE, RequestImage, read_request_folder


def is_reasonseg(path: Path) -> bool:
    """Whether a path is a folder with `metadata.jsonl`."""
    return (path / METADATA_FILE).is_file()


def read_reasonseg(source: str | Path, options: ReadingOptions) -> Iterator[LabelledImage]:
    """
    Read a folder that `train` and `evaluate` take.

    Args:
        source (`str` or `Path`): The folder.
        options ([`ReadingOptions`]): As chosen.

    Raises:
        FileNotFoundError: If there is no `metadata.jsonl`.
        DataFileError: If it cannot be used; see [`read_request_folder`].
    """
    folder, limit = Path(source), options.max_image_pixels or MAX_IMAGE_PIXELS

    def read(image: RequestImage) -> LabelledImage:
        objects = [
            LabelledObject(
                phrase.text,
                phrase.mask,
                rejected=phrase.mask is None,
                request=number,
                attributes={} if phrase.type is None else {"type": phrase.type},
            )
            for number, request in enumerate(image.requests)
            for phrase in request.phrases
        ]
        return LabelledImage(
            file_name=image.source.relative_to(folder).as_posix(),
            size=read_head(image.source, limit).upright,
            source=image.source,
            objects=tuple(objects),
            requests=tuple(LabelledRequest(request.question, request.answer) for request in image.requests),
        )

    return read_each(read_request_folder(folder, limit), read, folder / METADATA_FILE)


# ---- writing --------------------------------------------------------------------------------------------------------


def write_reasonseg(images: Iterable[LabelledImage], folder: Path, options: WritingOptions) -> Written:
    """Write a folder that `train` and `evaluate` take; see the module and [`AnnotationFormat`].

    Images without an object and without a request are left out: there is nothing to ask about them.

    Raises:
        DataFileError: There is nothing to ask about any image.
    """
    written = Written()
    with new_file(folder, METADATA_FILE).open("w", encoding="utf-8") as file:
        for image in with_requests(images, AskingOptions(slot="object")):
            requests = list(_requests(image))
            if not requests:
                written.left_out["images about which nothing is asked"] += 1
                continue
            place_image(image, folder, options)
            height, width = image.size
            line = {"file_name": image.file_name, "height": height, "width": width, "mask_frame": "upright"}
            file.write(json.dumps({**line, "requests": requests}, ensure_ascii=False) + "\n")
            written.images += 1
            written.masks += sum(1 for _ in image.drawn)
            written.rejected += sum(1 for _ in image.rejected)
    if not written.images:
        raise DataFileError("There is no image with an object or a question, so that nothing could be learned.")
    return written


def _requests(image: LabelledImage) -> Iterator[dict[str, Any]]:
    """What was asked, and for objects that nobody has asked for one question by their labels."""
    for number, asked in enumerate(image.requests):
        phrases = [
            {"text": found.label, **_type(found), "segmentation": found.mask}
            for found in image.objects
            if found.request == number
        ]
        if asked.question and asked.answer:
            yield {"question": asked.question, "answer": asked.answer, "phrases": phrases}


def _type(found: LabelledObject) -> dict[str, str]:
    """The group that a phrase is scored in, where it has one."""
    return {"type": found.attributes["type"]} if "type" in found.attributes else {}


__all__ = ["is_reasonseg", "read_reasonseg", "write_reasonseg"]
