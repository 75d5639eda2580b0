"""Data sets of pictures with conversations and masks, as the collator takes them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from ..data.data_files import DataFileError
from ..data.example import Example
from ..data.request_folder import METADATA_FILE, first_rejection, read_request_folder
from .tabletop_requests import Request
from .tabletop_scenes import TabletopScene
from .tabletop_stream import TabletopDataset


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
    The folder of one split with `metadata.jsonl`; see `reasonseg.data.request_folder` for its format.

    Args:
        folder (`str` or `Path`): Folder of one split. All of it is checked.

    Raises:
        FileNotFoundError: If there is no `metadata.jsonl`.
        DataFileError: If it cannot be used; with the lines, what was found there and what is allowed.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.images = read_request_folder(self.folder)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return self.images[index].example()  # also what ends an iteration, by its IndexError

    def check_slots(self, processor, model: str) -> None:
        """
        Check that a model knows the slots of the answers.

        Args:
            processor: Its processor.
            model (`str`): Its name, for the message.

        Raises:
            DataFileError: If it has no `[SEG]`, or no `[REJ]` and an answer has.
        """
        if not getattr(processor, "seg_token", None):
            raise DataFileError(
                f"{self.folder} holds answers with [SEG], and {model} does not draw by [SEG]. Train LISA, GSVA or "
                "another model with `seg_token_id` on it."
            )
        rejected = first_rejection(self.images)
        if rejected is not None and getattr(processor, "rej_token", None) is None:
            raise DataFileError(
                f"{self.folder / METADATA_FILE}, line {rejected.line}: an answer holds [REJ], which {model} does not "
                "know. Train a model with [REJ], such as GSVA, or leave such requests out."
            )


__all__ = ["ImageFolderExamples", "TabletopExamples", "requests_to_example"]
