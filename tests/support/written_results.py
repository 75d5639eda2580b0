"""A folder of results as `reasonseg segment` writes it, without a model; and what a page of them shows."""

from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from reasonseg.cli.failures import path_text
from reasonseg.cli.results import ResultFolder, file_sha256
from reasonseg.processing.segments import Segment, SegmentationResult


REQUEST = {"model": "org/model", "revision": None, "text": "What is there?", "phrases": []}


def write_results(folder: Path, images: Sequence[Path], size: tuple[int, int] = (24, 36)) -> None:
    """For each image a mask whose size and score grow with its number, and a rejected phrase."""
    with ResultFolder(folder, REQUEST) as results:
        names = results.output_names(list(images))
        for number, image in enumerate(images):
            mask = np.zeros(size, dtype=bool)
            mask[2 : 6 + number % 12, 3 : 9 + number % 20] = True
            found = Segment("the <b>cup</b>", (0, 5), mask, score=number % 10 / 10)
            absent = Segment("a dog", (6, 11), None, score=0.25, slot_prob=0.125, rejected=True)
            overlay = SegmentationResult("", [found, absent], size).thumbnail()
            name = names[image]
            segments = [
                {
                    "label": segment.label,
                    "span": list(segment.span),
                    "score": segment.score,
                    "slot_prob": segment.slot_prob,
                    "rejected": segment.rejected,
                    "box_xyxy": segment.box_xyxy,
                    "area": segment.area,
                    "mask": None,
                }
                for segment in (found, absent)
            ]
            picture = Image.fromarray(mask).convert("L")
            segments[0]["mask"] = results.save_file(f"{name}_mask_0.png", picture.save)
            results.add(
                {
                    "image": path_text(image),
                    "sha256": file_sha256(image),
                    "name": name,
                    "height": size[0],
                    "width": size[1],
                    "text": "the <b>cup</b> [SEG], a dog [REJ].",
                    "segments": segments,
                    "overlay": results.save_file(f"{name}_overlay.png", overlay.save),
                    "request": REQUEST,
                }
            )


class Page(HTMLParser):
    """The images and links of a page, and its text."""

    def __init__(self, content: str):
        super().__init__()
        self.images: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        found = dict(attributes)
        self.images += [found["src"]] if tag == "img" else []
        self.links += [value for name, value in attributes if name in ("href", "src")]

    def handle_data(self, data):
        self.text += data
