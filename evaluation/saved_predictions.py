"""Masks that anybody has predicted, one file per mask: `NAME.npy`, `NAME.png`, or `NAME.json` with COCO's run lengths.

What a file means is never guessed: numbers that may be a mask, probabilities or logits are refused until it is said
which they are.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..processing.image_loading import MAX_IMAGE_PIXELS
from ..processing.mask_reading import read_mask
from ..processing.regions import check_mask_size


ENDINGS = (".npy", ".png", ".json")
VALUES = ("mask", "probabilities", "logits")
_NAMED = 5  # missing files in a message
_MOST_JSON_BYTES = 64 * 1024 * 1024


class PredictionError(ValueError):
    """A saved prediction that is missing or cannot be used."""


@dataclass(frozen=True)
class Prediction:
    """
    Args:
        mask (`np.ndarray`): `(height, width)` bool.
        rejected (`bool`): Whether it says that there is nothing: as it states (`"rejected": true` in JSON), else
            whether the mask is empty.
    """

    mask: np.ndarray
    rejected: bool


class SavedPredictions:
    """
    A folder with one file per mask.

    Args:
        folder (`str` or `Path`): Where they lie.
        values (`str`, *optional*): What arrays of numbers other than 0 and 1 (or 0 and 255) are, one of `VALUES`:
            probabilities in [0, 1], foreground above 0.5; or logits, foreground above 0. By default arrays with a
            negative value are logits, and all that could be either is refused.
        missing_is_empty (`bool`): Take a missing file for an empty mask instead of refusing the folder.
        zero_is_foreground (`bool`): A logit of exactly 0 belongs to the mask, as in GSVA's evaluation on gRefCOCO.

    Raises:
        PredictionError: If there is no such folder.
    """

    def __init__(
        self,
        folder: str | Path,
        values: str | None = None,
        missing_is_empty: bool = False,
        zero_is_foreground: bool = False,
    ):
        self.folder, self.values, self.missing_is_empty = Path(folder), values, missing_is_empty
        self.zero_is_foreground = zero_is_foreground
        if not self.folder.is_dir():
            raise PredictionError(f"The folder of predictions {self.folder} does not exist.")

    def check(self, names: Sequence[str]) -> list[str]:
        """
        Check that there is one file for each name.

        Returns:
            `list[str]`: Names without a file, where these are taken for empty masks.

        Raises:
            PredictionError: If files are missing, or there are several of one name.
        """
        missing = [name for name in names if self._find(name) is None]
        if len(missing) == len(names):
            raise PredictionError(
                f"{self.folder} holds no prediction of this data set: the first would be {missing[0]}"
                f"{', '.join(ENDINGS)}."
            )
        if missing and not self.missing_is_empty:
            listed = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
            raise PredictionError(
                f"{self.folder} lacks {len(missing)} of {len(names)} predictions: {listed}. Each is a file with "
                f"an ending of {', '.join(ENDINGS)}. Add them, or count them as empty with --set missing=empty."
            )
        return missing

    def read(self, name: str, size: tuple[int, int]) -> Prediction:
        """
        Args:
            name (`str`): Of the file, without its ending.
            size (`tuple[int, int]`): (height, width) of the upright image, which the mask must have.

        Raises:
            PredictionError: If it is missing, has another size, or its values may mean several things.
        """
        path = self._find(name)
        if path is None:
            if not self.missing_is_empty:
                raise PredictionError(f"{self.folder / name} has no file with an ending of {', '.join(ENDINGS)}.")
            return Prediction(np.zeros(size, dtype=bool), True)
        try:
            if path.suffix == ".json":
                return self._read_json(path, size)
            mask = self._read_array(path, size) if path.suffix == ".npy" else read_mask(path, size, f"{path}")
        except PredictionError:
            raise
        except (ValueError, OSError) as error:
            raise PredictionError(str(error)) from None
        return Prediction(mask, not mask.any())

    def _find(self, name: str) -> Path | None:
        found = [path for ending in ENDINGS if (path := self.folder / f"{name}{ending}").is_file()]
        if len(found) > 1:
            raise PredictionError(f"{name} has several predictions: {', '.join(map(str, found))}. Leave one.")
        return found[0] if found else None

    def _read_array(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise PredictionError(f"{path} is not an array of numpy: {error}.") from None
        if not isinstance(stored, np.ndarray):
            raise PredictionError(f"{path} holds several arrays. Save one per file, with numpy.save.")
        shape = stored.shape[stored.ndim - 2 :]
        if stored.ndim < 2 or math.prod(stored.shape[:-2]) != 1:
            raise PredictionError(
                f"{path} has the shape {stored.shape}; (height, width) is needed, one mask per file."
            )
        if math.prod(shape) > max(MAX_IMAGE_PIXELS, math.prod(size)):
            raise PredictionError(f"{path} has the shape {stored.shape}, more than an image may have.")
        check_mask_size(shape, size, f"{path}")
        return self._binary(np.array(stored).reshape(shape), path)

    def _binary(self, array: np.ndarray, path: Path) -> np.ndarray:
        if array.dtype.kind not in "buif":
            raise PredictionError(f"{path} holds {array.dtype} values; numbers or bool are needed.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise PredictionError(f"{path} holds values that are not finite.")
        low, high = array.min(), array.max()
        if self.values == "logits":
            return array >= 0 if self.zero_is_foreground else array > 0
        if self.values == "probabilities":
            if low < 0 or high > 1:
                raise PredictionError(f"{path} holds values from {low} to {high}; probabilities lie in 0 to 1.")
            return array > 0.5
        if array.dtype.kind == "b" or np.isin(array, (0, 1)).all() or np.isin(array, (0, 255)).all():
            return read_mask(array, None, f"{path}")
        if self.values == "mask":
            raise PredictionError(f"{path} holds values from {low} to {high}; a mask has 0 and 1, or 0 and 255.")
        if low < 0:  # neither a mask nor probabilities
            return array >= 0 if self.zero_is_foreground else array > 0
        raise PredictionError(
            f"{path} holds {array.dtype} values from {low} to {high}, which may be probabilities, logits or something "
            "else. Say which with --set values=probabilities (foreground above 0.5) or --set values=logits (above 0), "
            "or save masks of 0 and 1, or 0 and 255."
        )

    def _read_json(self, path: Path, size: tuple[int, int]) -> Prediction:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise PredictionError(f"{path} is larger than {_MOST_JSON_BYTES >> 20} MiB; run lengths are small.")
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise PredictionError(f"{path} is not a JSON file: {error}.") from None
        if isinstance(content, list) and len(content) == 1:
            content = content[0]
        if not isinstance(content, Mapping):
            raise PredictionError(f'{path} must hold COCO\'s run lengths, {{"size": [height, width], "counts": ...}}.')
        inner = content.get("segmentation", content)
        if not isinstance(inner, Mapping):
            raise PredictionError(f"{path}: its `segmentation` must be run lengths, with `size` and `counts`.")
        mask = read_mask({name: inner.get(name) for name in ("size", "counts")}, size, f"{path}")
        rejected = content.get("rejected", not mask.any())
        if not isinstance(rejected, (bool, np.bool_)):
            raise PredictionError(f"{path}: its `rejected` is {rejected!r}; it must be true or false.")
        return Prediction(mask, bool(rejected))


__all__ = ["ENDINGS", "VALUES", "Prediction", "PredictionError", "SavedPredictions"]
