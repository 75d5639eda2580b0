"""Data sets of pictures with conversations and masks, as the collator takes them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch.utils.data import Dataset

from .collator import Example
from .tabletop_requests import Request
from .tabletop_scenes import TabletopScene
from .tabletop_stream import TabletopDataset


METADATA_FILE = "metadata.jsonl"


class SharedEpoch:
    """The number of the epoch in shared memory: workers that were started before `set` must see the new number."""

    def __init__(self):
        self._number = torch.zeros((), dtype=torch.int64).share_memory_()

    def set(self, epoch: int) -> None:
        self._number.fill_(epoch)

    def __int__(self) -> int:
        return int(self._number)


class TabletopExamples(Dataset):
    """Drawn tabletops with requests; see `TabletopDataset` for the arguments."""

    def __init__(self, *args, **kwargs):
        self.scenes = TabletopDataset(*args, **kwargs)

    def __len__(self) -> int:
        return len(self.scenes)

    def set_epoch(self, epoch: int) -> None:
        self.scenes.set_epoch(epoch)

    def __getitem__(self, index: int) -> Example:
        item = self.scenes[index]
        return requests_to_example(item["scene"], item["requests"])


@dataclass
class TabletopExample(Example):
    """
    Args:
        scene ([`TabletopScene`]): What the picture shows.
        landmarks (`list[list[np.ndarray | None]]`): Like `masks`, what has to be found before.
    """

    scene: TabletopScene
    landmarks: list[list[np.ndarray | None]]


def requests_to_example(scene: TabletopScene, requests: list[Request]) -> TabletopExample:
    return TabletopExample(
        image=scene.image,
        questions=[request.question for request in requests],
        answers=[request.answer for request in requests],
        masks=[request.masks for request in requests],
        scene=scene,
        landmarks=[
            [scene.mask(*positions) if positions else None for positions in request.landmarks] for request in requests
        ],
    )


class ImageFolderExamples(Dataset):
    """
    Any data set written as an image folder: pictures beside a `metadata.jsonl` with one line per picture.

    A line has `file_name` and `requests`; a request has `question`, `answer` and `phrases`, one per `[SEG]` or `[REJ]`
    of the answer in order, each with `segmentation` (COCO run-length encoding, `null` for `[REJ]`).

    Args:
        folder (`str` or `Path`): Folder of one split.

    Raises:
        FileNotFoundError: If there is no `metadata.jsonl`.
        ValueError: If a line has not as many phrases as its answer has slots.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        metadata = self.folder / METADATA_FILE
        if not metadata.is_file():
            raise FileNotFoundError(
                f"{self.folder} has no {METADATA_FILE}; name the folder of one split of an image folder data set."
            )
        self.rows = [json.loads(line) for line in metadata.read_text(encoding="utf-8").splitlines() if line.strip()]
        for number, row in enumerate(self.rows, start=1):
            for request in row["requests"]:
                slots = request["answer"].count("[SEG]") + request["answer"].count("[REJ]")
                if slots != len(request["phrases"]):
                    raise ValueError(
                        f"{metadata}, line {number}: the answer {request['answer']!r} has {slots} slots but there are "
                        f"{len(request['phrases'])} phrases; give one per slot, in order."
                    )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = self.rows[index]  # also what ends an iteration, by its IndexError
        requests = row["requests"]
        return Example(
            image=str(self.folder / row["file_name"]),
            questions=[request["question"] for request in requests],
            answers=[request["answer"] for request in requests],
            masks=[[_decode(phrase["segmentation"]) for phrase in request["phrases"]] for request in requests],
        )


def _decode(rle: dict | None) -> np.ndarray | None:
    if rle is None:
        return None
    return coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")}).astype(bool)


__all__ = ["ImageFolderExamples", "SharedEpoch", "TabletopExamples", "requests_to_example"]
