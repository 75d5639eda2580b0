"""The tabletop world as a torch data set for training: scenes drawn on the fly, other requests in every epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..data.example import Example
from ..data.shared_epoch import SharedEpoch
from .requests import SceneRequest, make_requests
from .scenes import DEFAULT_SIZE, TabletopScene, draw_scene, scene_random


# Streams below this number belong to the scene itself and to the requests of each epoch.
_FLIP_STREAM = 1 << 32


@dataclass
class TabletopExample(Example):
    """
    Args:
        scene ([`TabletopScene`]): What the image shows, mirrored like it.
        requests (`list[SceneRequest]`): What the conversations are made of.
    """

    scene: TabletopScene
    requests: list[SceneRequest]

    @classmethod
    def of(cls, scene: TabletopScene, requests: list[SceneRequest]) -> "TabletopExample":
        """The example of a scene and requests about it."""
        return cls(
            image=scene.image,
            questions=[request.question for request in requests],
            answers=[request.answer for request in requests],
            masks=[request.masks for request in requests],
            scene=scene,
            requests=requests,
        )

    @property
    def landmarks(self) -> list[list[np.ndarray | None]]:
        """Like `masks`, what has to be found before."""
        return [
            [self.scene.mask(*positions) if positions else None for positions in request.landmarks]
            for request in self.requests
        ]


class TabletopDataset(Dataset):
    """Scenes with requests; every epoch asks something else. An item is a [`TabletopExample`].

    Args:
        split: One of `SPLITS`.
        length: Number of scenes in an epoch.
        seed: Seed of the data set.
        size: Side of the images in pixels.
        requests_per_scene: Number of requests per item.
        flip: Mirror half of the images, another half in each epoch.
        fresh_requests: Draw other requests in each epoch. Switch it off for evaluation.
        fresh_scenes: Draw other scenes in each epoch, too.
        curriculum: Arguments of `make_requests` for the first epochs, one dict each, over `request_options`; so that
            training can begin with simple phrases.
        **request_options: Passed on to `make_requests`.

    Raises:
        ValueError: If `length` is less than 1.
    """

    def __init__(
        self,
        split: str = "train",
        length: int = 16_000,
        *,
        seed: int = 0,
        size: int = DEFAULT_SIZE,
        requests_per_scene: int = 4,
        flip: bool = False,
        fresh_requests: bool = True,
        fresh_scenes: bool = False,
        curriculum: Sequence[dict[str, Any]] = (),
        **request_options: Any,
    ):
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}.")
        self.split, self.length, self.seed, self.size = split, length, seed, size
        self.requests_per_scene = requests_per_scene
        self.flip = flip
        self.fresh_requests = fresh_requests
        self.fresh_scenes = fresh_scenes
        self.curriculum = tuple(curriculum)
        self.request_options = request_options
        self._epoch = SharedEpoch()

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Choose scenes, requests and mirrors of an epoch; `accelerate` calls this at the start of each."""
        self._epoch.set(epoch)

    def __getitem__(self, position: int) -> TabletopExample:
        if not -self.length <= position < self.length:
            raise IndexError(f"There are {self.length} scenes, got position {position}.")
        scene = self.get_scene(position % self.length)
        epoch = int(self._epoch)
        if self.flip and scene_random(scene.split, scene.index, scene.seed, _FLIP_STREAM + epoch).chance(0.5):
            scene = scene.flipped()
        options = self.request_options | (self.curriculum[epoch] if epoch < len(self.curriculum) else {})
        draw = epoch if self.fresh_requests else 0
        requests = make_requests(scene, self.requests_per_scene, draw=draw, **options)
        return TabletopExample.of(scene, requests)

    def get_scene(self, position: int) -> TabletopScene:
        """The scene at a position of this epoch, not mirrored."""
        index = position + (int(self._epoch) * self.length if self.fresh_scenes else 0)
        return draw_scene(self.split, index, self.seed, self.size)
