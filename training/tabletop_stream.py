"""The tabletop world as a torch data set for training: scenes drawn on the fly or kept in array files on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .tabletop_requests import make_requests
from .tabletop_scenes import DEFAULT_SIZE, TabletopObject, TabletopScene, draw_scene, scene_random


IMAGES_FILE, ID_MAPS_FILE, OBJECTS_FILE = "images.npy", "id_maps.npy", "objects.json"
CACHE_VERSION = 1

# Streams below this number belong to the scene itself and to the requests of each epoch.
_FLIP_STREAM = 1 << 32


class TabletopDataset(Dataset):
    """Scenes with requests; every epoch asks something else about the same pictures.

    An item is a dict with `image` (`(size, size, 3)` uint8 array), `requests` (list of `Request`) and `scene`
    (`TabletopScene`, mirrored like the image).

    Args:
        split: One of `SPLITS`; ignored when `cache` is given.
        length: Number of scenes; the first ones of the cache when `cache` is given.
        seed: Seed of the data set; ignored when `cache` is given.
        size: Side of the pictures in pixels; ignored when `cache` is given.
        requests_per_scene: Number of requests per item.
        flip: Mirror half of the pictures, another half in each epoch.
        fresh_requests: Draw other requests in each epoch. Switch it off for evaluation.
        cache: A folder written by `build_scene_cache`.
        **request_options: Passed on to `make_requests`.

    Raises:
        ValueError: If `length` is less than 1 or more than the cache holds.
        FileNotFoundError: If the cache is not there.
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
        cache: str | Path | None = None,
        **request_options: Any,
    ):
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}.")
        self.cache = None if cache is None else SceneCache(cache)
        if self.cache is not None and length > len(self.cache):
            raise ValueError(f"length is {length}, but {cache} holds {len(self.cache)} scenes; write a larger cache.")
        self.split, self.length, self.seed, self.size = split, length, seed, size
        self.requests_per_scene = requests_per_scene
        self.flip = flip
        self.fresh_requests = fresh_requests
        self.request_options = request_options
        # Shared memory: workers that were started before `set_epoch` must see the new number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Choose the requests and mirrors of an epoch; `accelerate` calls this at the start of each."""
        self._epoch.fill_(epoch)

    def __getitem__(self, position: int) -> dict[str, Any]:
        if not -self.length <= position < self.length:
            raise IndexError(f"There are {self.length} scenes, got position {position}.")
        scene = self.get_scene(position % self.length)
        epoch = int(self._epoch)
        if self.flip and scene_random(scene.split, scene.index, scene.seed, _FLIP_STREAM + epoch).chance(0.5):
            scene = scene.flipped()
        draw = epoch if self.fresh_requests else 0
        requests = make_requests(scene, self.requests_per_scene, draw=draw, **self.request_options)
        return {"image": scene.image, "requests": requests, "scene": scene}

    def get_scene(self, position: int) -> TabletopScene:
        """The scene at a position, not mirrored."""
        if self.cache is not None:
            return self.cache[position]
        return draw_scene(self.split, position, self.seed, self.size)


class SceneCache:
    """Scenes in array files, mapped into memory, so that several processes share one copy.

    Args:
        folder: A folder written by `build_scene_cache`.

    Raises:
        FileNotFoundError: If the folder is not there.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        if not (folder / OBJECTS_FILE).is_file():
            raise FileNotFoundError(f"There is no scene cache in {folder}; write one with `build_scene_cache`.")
        index = json.loads((folder / OBJECTS_FILE).read_text(encoding="utf-8"))
        self.split: str = index["split"]
        self.seed: int = index["seed"]
        self._scenes: list[dict[str, Any]] = index["scenes"]
        self._images = np.load(folder / IMAGES_FILE, mmap_mode="r", allow_pickle=False)
        self._id_maps = np.load(folder / ID_MAPS_FILE, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, position: int) -> TabletopScene:
        entry = self._scenes[position]
        return TabletopScene(
            image=np.array(self._images[position]),
            id_map=np.array(self._id_maps[position]),
            objects=tuple(TabletopObject.from_dict(values) for values in entry["objects"]),
            view=entry["view"],
            split=self.split,
            seed=self.seed,
            index=position,
        )


def build_scene_cache(
    folder: str | Path,
    split: str,
    count: int,
    *,
    seed: int = 0,
    size: int = DEFAULT_SIZE,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw the first scenes of a split into array files (4 bytes per pixel).

    Args:
        folder: Where the cache goes; it appears there only when it is complete.
        split: One of `SPLITS`.
        count: Number of scenes, at least 1.
        seed: Seed of the data set.
        size: Side of the pictures in pixels.
        progress: Called with the number of finished scenes and `count`.

    Returns:
        The folder.

    Raises:
        ValueError: If an argument is out of its range.
        FileExistsError: If the folder is there already with other contents.
    """
    folder = Path(folder)
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    wanted = {"version": CACHE_VERSION, "split": split, "count": count, "seed": seed, "size": size}
    if folder.exists():
        index = folder / OBJECTS_FILE
        found = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
        if {name: found.get(name) for name in wanted} != wanted:
            raise FileExistsError(f"{folder} is there already and does not hold {wanted}; use another folder.")
        return folder
    draft = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    shape = (count, size, size)
    images = np.lib.format.open_memmap(draft / IMAGES_FILE, "w+", dtype=np.uint8, shape=(*shape, 3))
    id_maps = np.lib.format.open_memmap(draft / ID_MAPS_FILE, "w+", dtype=np.uint8, shape=shape)
    scenes = []
    for position in range(count):
        scene = draw_scene(split, position, seed, size)
        images[position], id_maps[position] = scene.image, scene.id_map
        scenes.append({"view": scene.view, "objects": [thing.to_dict() for thing in scene.objects]})
        if progress is not None:
            progress(position + 1, count)
    images.flush()
    id_maps.flush()
    (draft / OBJECTS_FILE).write_text(json.dumps({**wanted, "scenes": scenes}), encoding="utf-8")
    draft.replace(folder)
    return folder
