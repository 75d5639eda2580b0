"""The folder that this package trains and evaluates on, read and written; see `request_folder`.

What is neither asked nor answered in words becomes a request: a question by its labels, and an answer with a slot for
each.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .annotation_formats import WritingOptions, Written
from .annotation_writing import UNNAMED, new_file, place_image
from .data_files import DataFileError
from .labelled_images import LabelledImage, LabelledObject
from .request_folder import METADATA_FILE, REJECTION


_SLOT = re.compile(r"\[SEG\]|\[REJ\]")


def write_reasonseg(images: Iterable[LabelledImage], folder: Path, options: WritingOptions) -> Written:
    """Write a folder that `train` and `evaluate` take; see the module and [`AnnotationFormat`].

    Images without an object and without a request are left out: there is nothing to ask about them.

    Raises:
        DataFileError: There is nothing to ask about any image.
    """
    written = Written()
    with new_file(folder, METADATA_FILE).open("w", encoding="utf-8") as file:
        for image in images:
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


def _requests(image: LabelledImage) -> Iterable[dict[str, Any]]:
    """What was asked, and for objects that nobody has asked for one question by their labels."""
    for number in range(max([len(image.requests), *(found.request + 1 for found in image.objects)], default=0)):
        objects = [found for found in image.objects if found.request == number]
        asked = image.requests[number] if number < len(image.requests) else None
        question, answer = (asked.question, asked.answer) if asked is not None else (None, None)
        slots = [REJECTION if found.mask is None else "[SEG]" for found in objects]
        if answer is None or not answer.strip() or _SLOT.findall(answer) != slots:
            answer = compose_answer(objects)
        if question is None or not question.strip():
            question = compose_question(objects)
        if question and answer:
            phrases = [{"text": found.label, "segmentation": found.mask} for found in objects]
            yield {"question": question, "answer": answer, "phrases": phrases}


def compose_question(objects: Sequence[LabelledObject]) -> str:
    """A question for what is called so; empty without objects."""
    labels = list(dict.fromkeys(found.label or UNNAMED for found in objects))
    return f"Please segment in this image: {', '.join(labels)}." if labels else ""


def compose_answer(objects: Sequence[LabelledObject]) -> str:
    """An answer with a slot for each object, in order; empty without objects."""
    slots = (f"{found.label or UNNAMED} {REJECTION if found.mask is None else '[SEG]'}" for found in objects)
    return f"{', '.join(slots)}." if objects else ""


__all__ = ["compose_answer", "compose_question", "write_reasonseg"]
