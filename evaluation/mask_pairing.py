"""One-to-one pairs of described targets and answers, by overlap of masks and likeness of phrases.

The rules are those of GLaMM's evaluation of grounded conversations (arXiv 2311.03356, `eval/gcg/evaluate.py`), which
attend-and-segment took over (`aas/eval_gcg.py`).
"""

import numpy as np


PROTOCOLS = ("paper", "fixed")


def paired_ious(ious: np.ndarray) -> list[float]:
    """
    Pair masks greedily, the greatest IoU first, until nothing overlaps.

    Args:
        ious (`np.ndarray`): `(targets, predictions)`.

    Returns:
        `list[float]`: IoU of each pair, in order of pairing.
    """
    # Of equal IoUs the original takes the one of the first prediction.
    left = np.array(ious, dtype=np.float64).T
    paired = []
    while left.size and left.max() > 0:
        row, column = np.unravel_index(left.argmax(), left.shape)
        paired.append(float(left[row, column]))
        left = np.delete(np.delete(left, row, axis=0), column, axis=1)
    return paired


def match_phrases(
    ious: np.ndarray,
    similarities: np.ndarray,
    protocol: str = "paper",
    iou_threshold: float = 0.5,
    similarity_threshold: float = 0.5,
) -> list[tuple[int, int]]:
    """
    Pair targets with answers that overlap and mean the same.

    Args:
        ious (`np.ndarray`): `(target masks, predicted masks)`.
        similarities (`np.ndarray`): `(target phrases, predicted phrases)`, cosine.
        protocol (`str`):
            `paper`: always the pair with the greatest IoU next; the first one that misses a threshold ends the whole
            picture, though other pairs may be left that would count. Where masks and phrases are not of one number
            and such a pair is reached, the picture counts nothing (GLaMM's script catches the IndexError).
            `fixed`: a pair that misses a threshold is left out, and the others go on.
        iou_threshold (`float`): Above 0, to 1.
        similarity_threshold (`float`): -1 to 1.

    Returns:
        `list[tuple[int, int]]`: (target, prediction), the greatest IoU first.

    Raises:
        ValueError: If the protocol does not exist or `iou_threshold` is not above 0.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"There is no protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}.")
    if iou_threshold <= 0:
        raise ValueError(f"iou_threshold must be above 0, got {iou_threshold}: masks apart are never a pair.")
    left = np.array(ious, dtype=np.float64)
    pairs: list[tuple[int, int]] = []
    while left.size and left.max() >= iou_threshold:
        target, prediction = map(int, np.unravel_index(left.argmax(), left.shape))
        has_phrases = target < similarities.shape[0] and prediction < similarities.shape[1]
        if has_phrases and similarities[target, prediction] >= similarity_threshold:
            pairs.append((target, prediction))
            left[target, :] = 0
            left[:, prediction] = 0
        elif protocol == "fixed":
            left[target, prediction] = 0
        else:
            return pairs if has_phrases else []
    return pairs


__all__ = ["PROTOCOLS", "match_phrases", "paired_ious"]
