"""Label maps with class names, in the trees that LISA and GSVA read: ADE20K, COCO-Stuff and Mapillary Vistas v2.

    ROOT/ade20k/images/training/*.jpg            ROOT/ade20k/annotations/training/*.png
    ROOT/coco/train2017/*.jpg                    ROOT/cocostuff/train2017/*.png
    ROOT/mapillary/training/images/*.jpg         ROOT/mapillary/training/v2.0/labels/*.png
    ROOT/mapillary/config_v2.0.json

A class in the map of an image is one target. Images come in the order of their names; the originals leave the order
of COCO-Stuff to the file system.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np

from ..processing.image_loading import open_image
from .data_files import DataFileError, read_json
from .mask_targets import Target, TargetImage, files_ending_in, text_field


# Pixels of a label map that belong to no class.
IGNORED_LABEL = 255
_MODES = ("L", "P")


def class_names(data_set: str) -> list[str]:
    """The names of `"ade20k"` (150) or `"cocostuff"` (182), by the index that label maps hold after reading."""
    return read_json(Path(__file__).with_name("class_names.json"))[data_set]["names"]


class LabelMaps:
    """
    A data set of label maps, one per image.

    Args:
        root (`str` or `Path`): The data root.
        image_folder (`str`), label_folder (`str`): Where images and label maps lie, below the root.
        names (`list[str]`): Names of the classes by their index.
        listed_by (`str`): `"image"` or `"label"`: which of the two folders says what the data set holds.

    Raises:
        DataFileError: If a folder is missing or empty.
    """

    name: ClassVar[str]

    def __init__(self, root: str | Path, image_folder: str, label_folder: str, names: list[str], listed_by: str):
        self.images, self.labels = Path(root) / image_folder, Path(root) / label_folder
        self.names = names
        self._index_of_value = np.arange(256, dtype=np.uint8)
        for folder in (self.images, self.labels):
            if not folder.is_dir():
                raise DataFileError(f"{self.name}: the folder {folder} does not exist.")
        folder, ending = (self.images, ".jpg") if listed_by == "image" else (self.labels, ".png")
        self._stems = [name.removesuffix(ending) for name in files_ending_in(folder, ending, self.name)]

    def __len__(self) -> int:
        return len(self._stems)

    def __getitem__(self, index: int) -> TargetImage:
        """Image `index` with one target per class of its map, by rising index.

        Raises:
            DataFileError: If its label map is missing, cannot be read, or has an index without a name.
        """
        label_map, labels = self._read(index)
        return TargetImage(self.image_path(index), [self._target(label_map, label) for label in labels])

    def image_path(self, index: int) -> Path:
        return self.images / f"{self._stems[index]}.jpg"

    def label_path(self, index: int) -> Path:
        return self.labels / f"{self._stems[index]}.png"

    def label_map(self, index: int) -> np.ndarray:
        """Indices of classes, uint8 of shape `(height, width)`; 255 belongs to none.

        Raises:
            DataFileError: If the file is missing, cannot be read, or has an index without a name.
        """
        return self._read(index)[0]

    def _read(self, index: int) -> tuple[np.ndarray, list[int]]:
        """A map and the classes in it, by rising index."""
        path = self.label_path(index)
        try:
            with open_image(path) as image:
                if image.mode not in _MODES:
                    raise ValueError(f"it has the mode {image.mode}; label maps have 8 bits, grey or with a palette")
                # of a palette the indices count, not the colours
                values, stored = np.flatnonzero(image.histogram()), np.asarray(image)
        except Exception as error:  # decoders raise errors of many kinds on damaged files
            reason = str(error).rstrip(".")
            raise DataFileError(f"{self.name}: the label map {path} cannot be used: {reason}.") from None
        labels = self._index_of_value[values]
        unknown = values[(labels >= len(self.names)) & (labels != IGNORED_LABEL)]
        if len(unknown):
            rows, columns = np.nonzero(stored == unknown[0])
            raise DataFileError(
                f"{self.name}: the label map {path} has the class {unknown[0]} at row {rows[0]}, column {columns[0]}; "
                f"{len(self.names)} classes are known."
            )
        return self._index_of_value[stored], sorted(set(labels.tolist()) - {IGNORED_LABEL})

    def _target(self, label_map: np.ndarray, label: int) -> Target:
        return Target((self.names[label],), lambda: label_map == label)


class Ade20k(LabelMaps):
    """ADE20K's training images (SceneParsing); the value 0 of a map, other objects, belongs to no class."""

    name = "ade20k"

    def __init__(self, root: str | Path):
        super().__init__(
            root, "ade20k/images/training", "ade20k/annotations/training", class_names("ade20k"), listed_by="image"
        )
        # 255 means no class, too
        self._index_of_value = np.array([IGNORED_LABEL, *range(254), IGNORED_LABEL], dtype=np.uint8)


class CocoStuff(LabelMaps):
    """COCO-Stuff's stuffthingmaps. Classes whose name has a dash, such as `wall-other`, are neither asked for nor
    targets: their names are made for a tree of classes, not for people."""

    name = "cocostuff"

    def __init__(self, root: str | Path):
        super().__init__(root, "coco/train2017", "cocostuff/train2017", class_names("cocostuff"), listed_by="label")
        self._index_of_value[[index for index, name in enumerate(self.names) if "-" in name]] = IGNORED_LABEL


class MapillaryVistas(LabelMaps):
    """
    Mapillary Vistas v2.0. Every class is asked for, `unlabeled`, `car mount` and `ego vehicle` among them.

    Args:
        root (`str` or `Path`): The data root.
        fixed (`bool`): The originals look the index of a class up by its name again. Of names that are equal in lower
            case the mask is always that of the first, which may be empty. `True` gives each its own.

    Raises:
        DataFileError: If a folder or the list of classes is missing.
    """

    name = "mapillary"

    def __init__(self, root: str | Path, fixed: bool = False):
        path = Path(root) / "mapillary" / "config_v2.0.json"
        if not path.is_file():
            raise DataFileError(f"{self.name}: the list of classes {path} does not exist.")
        config = read_json(path)
        labels = config.get("labels") if isinstance(config, dict) else None
        if not isinstance(labels, list) or not labels:
            raise DataFileError(f"{path} must be an object whose `labels` are a list.")
        names = [
            text_field(label, "readable", f"{path}, label {number}").lower() for number, label in enumerate(labels)
        ]
        super().__init__(root, "mapillary/training/images", "mapillary/training/v2.0/labels", names, listed_by="label")
        self._masked_as = range(len(names)) if fixed else [names.index(name) for name in names]

    def _target(self, label_map: np.ndarray, label: int) -> Target:
        shown = self._masked_as[label]
        return Target((self.names[label],), lambda: label_map == shown)


__all__ = ["IGNORED_LABEL", "Ade20k", "CocoStuff", "LabelMaps", "MapillaryVistas", "class_names"]
