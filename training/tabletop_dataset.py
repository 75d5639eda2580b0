"""The tabletop world as a data set on disk: an image folder with one JSON line per picture, masks as COCO RLE.

    OUT/README.md                      data card; names the splits for `datasets.load_dataset(OUT)`
    OUT/test/000000.png ...            pictures
    OUT/test/metadata.jsonl            one line per picture: what is on the table, requests, answers, masks

`datasets` reads it without any code of this project, and so does everything that reads JSON and COCO RLE.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reasonseg.processing.mask_reading import read_mask
from reasonseg.processing.segments import mask_to_rle

from ..data.data_files import read_json_lines
from ..data.request_folder import METADATA_FILE
from ..processing.image_loading import open_image
from ..whole_files import remove_drafts, write_whole, written_whole
from .tabletop_requests import Request, build_answer, make_requests
from .tabletop_scenes import DEFAULT_SIZE, SPLITS, TabletopObject, TabletopScene, draw_scene


SETTINGS_FILE = ".settings.json"
FORMAT_VERSION = 1

_PARTIAL = ".partial"
_CARD = """---
pretty_name: Drawn tabletops with referring requests
task_categories:
- image-segmentation
language:
- en
configs:
- config_name: default
  data_files:
{splits}
---

# Drawn tabletops with referring requests

Procedural pictures of a table with two to seven things on it, and requests about them: "What is the red cup?",
"Where could I pour coffee?", "Show me all plates and the box left of the green bottle.". Every phrase has the exact
mask of what it names, or none when it names nothing in the picture. Written by `reasonseg`.

One row per picture: `image`, `width`, `height`, `index`, `seed`, `view`, `objects` (kind, colour, size, boxes in
pixels) and `requests`. A request has `type`, `question`, `answer` and `phrases`; a phrase has `text`, `type`,
`targets` (positions in `objects`), `landmarks` (positions of what has to be found before: the box in "the cup left of
the box", all cups for "the largest cup"; else the targets) and `segmentation` (COCO run-length encoding of the visible
pixels; null when absent). The things of a picture are numbered from far to near.

`test_unseen` shows pairs of colour and kind that no other split shows or names.
"""


@dataclass(frozen=True, eq=False)
class TabletopRecord:
    """One picture of the data set.

    Attributes:
        file_name: Name of the picture in the folder of its split.
        image: `(height, width, 3)` uint8 RGB.
        split: One of `SPLITS`.
        index: Number of the scene in its split.
        seed: Seed of the data set.
        view: Camera view, `angle` or `above`.
        objects: What is on the table, from far to near.
        requests: Requests with their masks.
    """

    file_name: str
    image: np.ndarray
    split: str
    index: int
    seed: int
    view: str
    objects: tuple[TabletopObject, ...]
    requests: list[Request]

    @classmethod
    def from_scene(cls, scene: TabletopScene, requests: list[Request]) -> TabletopRecord:
        """The record of a scene and requests about it."""
        name = f"{scene.index:06d}.png"
        return cls(name, scene.image, scene.split, scene.index, scene.seed, scene.view, scene.objects, requests)

    def to_row(self) -> dict[str, Any]:
        """The record without its pixels, as plain JSON values."""
        height, width = self.image.shape[:2]
        return {
            "file_name": self.file_name,
            "width": width,
            "height": height,
            "index": self.index,
            "seed": self.seed,
            "view": self.view,
            "objects": [thing.to_dict() for thing in self.objects],
            "requests": [_request_to_row(request) for request in self.requests],
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any], image: np.ndarray, split: str) -> TabletopRecord:
        """The inverse of `to_row`."""
        return cls(
            file_name=row["file_name"],
            image=image,
            split=split,
            index=row["index"],
            seed=row["seed"],
            view=row["view"],
            objects=tuple(TabletopObject.from_dict(values) for values in row["objects"]),
            requests=[_request_from_row(values) for values in row["requests"]],
        )


def rle_to_mask(rle: Mapping[str, Any]) -> np.ndarray:
    """Decode COCO run lengths, `{"size": [height, width], "counts": str}`, to a `(height, width)` bool mask."""
    return read_mask(rle)


def generate_records(
    split: str,
    count: int,
    *,
    seed: int = 0,
    size: int = DEFAULT_SIZE,
    requests_per_scene: int = 4,
    **request_options: Any,
) -> Iterator[TabletopRecord]:
    """Draw the records of a split one after the other, without writing anything.

    Args:
        split: One of `SPLITS`.
        count: Number of pictures.
        seed: Seed of the data set.
        size: Side of the square pictures in pixels.
        requests_per_scene: Number of requests per picture.
        **request_options: Passed on to `make_requests`.

    Raises:
        ValueError: If an argument is out of its range.
    """
    for index in range(count):
        yield _draw_record(split, index, seed, size, requests_per_scene, request_options)


def write_dataset(
    out_dir: str | Path,
    split: str,
    count: int,
    *,
    seed: int = 0,
    size: int = DEFAULT_SIZE,
    requests_per_scene: int = 4,
    progress: Callable[[int, int], None] | None = None,
    **request_options: Any,
) -> Path:
    """Write a split as an image folder; a second call finishes what an interrupted one began.

    Args:
        out_dir: Folder of the data set; the split goes into a folder of its own name.
        split: One of `SPLITS`.
        count: Number of pictures, at least 1.
        seed: Seed of the data set.
        size: Side of the square pictures in pixels.
        requests_per_scene: Number of requests per picture.
        progress: Called with the number of finished pictures and `count`.
        **request_options: Passed on to `make_requests`.

    Returns:
        The folder of the split. `metadata.jsonl` appears in it only when all pictures are there.

    Raises:
        ValueError: If an argument is out of its range.
        FileExistsError: If the folder holds a split that was written with other settings.
    """
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; choose one of {', '.join(SPLITS)}.")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    folder = Path(out_dir) / split
    folder.mkdir(parents=True, exist_ok=True)
    remove_drafts(folder)
    settings = {
        "format": FORMAT_VERSION,
        "split": split,
        "count": count,
        "seed": seed,
        "size": size,
        "requests_per_scene": requests_per_scene,
        "request_options": request_options,
    }
    _claim_folder(folder, settings)
    metadata, partial = folder / METADATA_FILE, folder / f".{METADATA_FILE}{_PARTIAL}"
    done = count if metadata.exists() else _keep_whole_lines(partial)
    if progress is not None:
        progress(done, count)
    if not metadata.exists():
        with partial.open("a", encoding="utf-8") as lines:
            for index in range(done, count):
                record = _draw_record(split, index, seed, size, requests_per_scene, request_options)
                with written_whole(folder / record.file_name) as draft:
                    Image.fromarray(record.image).save(draft, format="PNG")
                # The line follows its picture, so that every line that can be read has one.
                lines.write(json.dumps(record.to_row()) + "\n")
                lines.flush()
                if progress is not None:
                    progress(index + 1, count)
        partial.replace(metadata)
    _write_card(Path(out_dir))
    return folder


def read_dataset(out_dir: str | Path, split: str) -> Iterator[TabletopRecord]:
    """Read back what `write_dataset` wrote.

    Args:
        out_dir: Folder of the data set.
        split: Name of the split.

    Returns:
        An iterator over the records, equal to those of `generate_records` with the same settings.

    Raises:
        FileNotFoundError: If the split is not there or was not finished.
    """
    folder = Path(out_dir) / split
    metadata = folder / METADATA_FILE
    if not metadata.is_file():
        unfinished = (folder / f".{METADATA_FILE}{_PARTIAL}").exists()
        reason = "was not finished; write it again with the same settings" if unfinished else "is not there"
        raise FileNotFoundError(f"Split {split!r} of {out_dir} {reason} (no {metadata}).")
    return _read_records(metadata, split)


def _read_records(metadata: Path, split: str) -> Iterator[TabletopRecord]:
    for _, row in read_json_lines(metadata):
        with open_image(metadata.parent / row["file_name"]) as picture:
            image = np.array(picture.convert("RGB"))
        yield TabletopRecord.from_row(row, image, split)


def _draw_record(
    split: str, index: int, seed: int, size: int, requests_per_scene: int, request_options: Mapping[str, Any]
) -> TabletopRecord:
    scene = draw_scene(split, index, seed, size)
    return TabletopRecord.from_scene(scene, make_requests(scene, requests_per_scene, **request_options))


def _request_to_row(request: Request) -> dict[str, Any]:
    columns = zip(
        request.phrases, request.phrase_types, request.targets, request.landmarks, request.masks, strict=True
    )
    return {
        "type": request.type,
        "question": request.question,
        "answer": request.answer,
        "phrases": [
            {
                "text": text,
                "type": phrase_type,
                "targets": list(targets),
                "landmarks": list(landmarks),
                "segmentation": None if mask is None else mask_to_rle(mask),
            }
            for text, phrase_type, targets, landmarks, mask in columns
        ],
    }


def _request_from_row(row: Mapping[str, Any]) -> Request:
    phrases = row["phrases"]
    rles = [phrase["segmentation"] for phrase in phrases]
    texts = [phrase["text"] for phrase in phrases]
    return Request(
        phrases=texts,
        masks=[None if rle is None else rle_to_mask(rle) for rle in rles],
        targets=[tuple(phrase["targets"]) for phrase in phrases],
        landmarks=[tuple(phrase["landmarks"]) for phrase in phrases],
        phrase_types=[phrase["type"] for phrase in phrases],
        type=row["type"],
        question=row["question"],
        named=row["answer"] == build_answer(texts, [rle is not None for rle in rles]),
    )


def _claim_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note the settings of a new folder, or check that they are those of an earlier call."""
    path = folder / SETTINGS_FILE
    settings = json.loads(json.dumps(settings))
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if earlier != settings:
            names = sorted(name for name in settings if earlier.get(name) != settings[name])
            changes = ", ".join(f"{name} {earlier.get(name)!r} (now {settings[name]!r})" for name in names)
            raise FileExistsError(f"{folder} was written with {changes}; use the same settings or another folder.")
        return
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds files that are not from here; use an empty or a new folder.")
    write_whole(path, json.dumps(settings, indent=2) + "\n")


def _keep_whole_lines(partial: Path) -> int:
    """Cut off a line that an interruption left unfinished; returns the number of whole lines."""
    if not partial.exists():
        return 0
    content = partial.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) != len(content):
        write_whole(partial, whole)
    return whole.count(b"\n")


def _write_card(out_dir: Path) -> None:
    """Name the finished splits, because `datasets` would take the folder `test_unseen` for a part of `test`."""
    finished = [split for split in SPLITS if (out_dir / split / METADATA_FILE).is_file()]
    splits = "\n".join(f"  - split: {split}\n    path: {split}/*" for split in finished)
    write_whole(out_dir / "README.md", _CARD.format(splits=splits))
