"""Attention maps of answers on disk, one compressed file per picture, so that segmenting can be repeated without the
vision-language model."""

import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..processing.token_spans import token_spans


@dataclass(frozen=True, eq=False)
class AttendedAnswer:
    """
    An answer and what each of its tokens looked at.

    Args:
        text (`str`): The answer.
        token_ids (`np.ndarray` of shape `(tokens,)`): Its tokens.
        token_spans (`np.ndarray` of shape `(tokens, 2)`): Their character ranges in `text`.
        maps (`np.ndarray` of shape `(tokens, rows, columns)`): Raw attention of each token to the grid of the picture.
        grid_box (`np.ndarray` of shape `(4,)`): What the grid covers, (x1, y1, x2, y2) in pixels of the picture.
        image_size (`np.ndarray` of shape `(2,)`): (height, width) of the picture.
    """

    text: str
    token_ids: np.ndarray
    token_spans: np.ndarray
    maps: np.ndarray
    grid_box: np.ndarray
    image_size: np.ndarray

    def to_bytes(self) -> bytes:
        """The content of a compressed `.npz` file; nothing is rounded."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{field.name: np.asarray(getattr(self, field.name)) for field in fields(self)})
        return buffer.getvalue()

    @classmethod
    def read(cls, path: str | Path):
        """
        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If it is not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                values = {field.name: arrays[field.name] for field in fields(cls)}
        except FileNotFoundError:
            raise FileNotFoundError(f"There are no attention maps {path}.") from None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} holds no attention maps ({error}). Delete it; it is then made anew.") from None
        values["text"] = str(values["text"])
        answer = cls(**values)
        if answer.maps.ndim != 3 or len(answer.maps) != len(answer.token_spans):
            raise ValueError(
                f"{path} has maps of shape {answer.maps.shape} for {len(answer.token_spans)} tokens. Delete it; it is "
                "then made anew."
            )
        return answer


def read_original_maps(
    path: str | Path, decode: Callable[[list[int]], str], image_size: tuple[int, int], offset: int = 1
) -> AttendedAnswer:
    """
    Read what `aas/infer_attn.py` stored for one picture, which its model saw padded to a square.

    Args:
        path (`str` or `Path`): Its `.pth` file.
        decode (`Callable`): Turns ids into text, without special tokens.
        image_size (`tuple[int, int]`): (height, width) of the picture.
        offset (`int`): Leading tokens without a map: the one BOS that transformers before 4.38 returned.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not such a file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There are no attention maps {path}.")
    try:
        stored: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, pickle.UnpicklingError) as error:
        # torch's own words advise to load it unsafely.
        raise ValueError(
            f"{path} holds no attention maps: it is cut off, or no file of tensors. Make it anew with "
            "aas/infer_attn.py."
        ) from error
    if not isinstance(stored, dict) or not all(
        torch.is_tensor(stored.get(key)) for key in ("sequences", "attentions")
    ):
        raise ValueError(f"{path} lacks `sequences` or `attentions`; it is no file of aas/infer_attn.py.")
    ids, maps = stored["sequences"][offset:].tolist(), stored["attentions"]
    if maps.ndim != 3 or len(ids) != len(maps):
        raise ValueError(f"{path} has maps {tuple(maps.shape)} for {len(ids)} tokens after the first {offset}.")
    text, spans = token_spans(decode, ids)
    height, width = image_size
    side = max(height, width)
    left, top = -((side - width) // 2), -((side - height) // 2)
    return AttendedAnswer(
        text=text,
        token_ids=np.array(ids, dtype=np.int64),
        token_spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
        maps=maps.float().numpy(),
        grid_box=np.array([left, top, left + side, top + side], dtype=np.float64),
        image_size=np.array(image_size),
    )


__all__ = ["AttendedAnswer", "read_original_maps"]
