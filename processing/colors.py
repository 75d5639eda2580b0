"""Read a colour in any form people write one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import ImageColor


ColorSource = str | Sequence[float] | np.ndarray


def read_color(color: ColorSource, whole: bool = True) -> tuple[Any, Any, Any]:
    """
    Args:
        color (`str`, `Sequence` or `np.ndarray`): A name that CSS knows, "#rrggbb", or red, green and blue in 0..255.
        whole (`bool`, *optional*, defaults to `True`): Whether the three must be whole numbers, as where lines are
            drawn, or may have fractions, as where pixels are mixed.

    Returns:
        `tuple[int, int, int]` or, with fractions, `tuple[float, float, float]`: Red, green, blue.

    Raises:
        ValueError: It is none of these.

    Example:
        >>> read_color("#0a141e")
        (10, 20, 30)
    """
    problem = (
        f"The colour {color!r} was given. Give three {'whole ' if whole else ''}numbers in 0..255 (red, green, blue), "
        "a CSS name such as 'red', or '#rrggbb'."
    )
    if isinstance(color, str):
        try:
            return ImageColor.getrgb(color)[:3]
        except ValueError:
            raise ValueError(problem) from None
    values = np.asarray(color) if isinstance(color, (tuple, list, np.ndarray)) else None
    if values is None or values.shape != (3,) or not np.issubdtype(values.dtype, np.number):
        raise ValueError(problem)
    if not ((values >= 0) & (values <= 255)).all() or (whole and (values != np.floor(values)).any()):  # NaN fails too
        raise ValueError(problem)
    return tuple(values.astype(np.int64 if whole else np.float64).tolist())


__all__ = ["ColorSource", "read_color"]
