"""Overlaps of all masks of an image: on run lengths, against decoding every mask as the original evaluation does.

python -m benchmarks.grounded_scores [--images 5]
"""

import argparse
from collections.abc import Iterator

import numpy as np
from pycocotools import mask as coco_mask

from benchmarks.measurement import Measurement, positive_count, print_table
from benchmarks.midsize import seconds
from reasonseg.data.coco import run_lengths
from reasonseg.evaluation.coco_scores import iou_matrix
from reasonseg.processing.segments import mask_to_rle


SIZE = (1500, 2250)  # of GranD-f's images
MASKS = 8
SMALL = {"images": 2}


def measurements(images: int = 5) -> Iterator[Measurement]:
    pairs = [(ellipses(2 * seed), ellipses(2 * seed + 1)) for seed in range(images)]
    fast, ours = seconds(lambda: [iou_matrix(*pair) for pair in pairs])
    slow, theirs = seconds(lambda: [decoded_ious(*pair) for pair in pairs])
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
    what = f"overlaps of {MASKS} x {MASKS} run lengths, against decoding them"
    yield Measurement(what, 1000 * fast / images, 1000 * slow / images, "ms")


def ellipses(seed: int) -> list[dict]:
    """Run lengths of random ellipses."""
    generator = np.random.default_rng(seed)
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    masks = []
    for _ in range(MASKS):
        y, x, height, width = generator.uniform((0, 0, 50, 50), (*SIZE, 700, 700))
        mask = ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1
        masks.append(run_lengths(mask_to_rle(mask), SIZE))
    return masks


def decoded_ious(targets: list[dict], predictions: list[dict]) -> np.ndarray:
    """The same pixel by pixel."""
    target_masks = [coco_mask.decode(rle) for rle in targets]
    predicted = [coco_mask.decode(rle) for rle in predictions]
    ious = np.zeros((len(targets), len(predictions)))
    for row, target in enumerate(target_masks):
        for column, mask in enumerate(predicted):
            union = np.logical_or(target, mask).sum()
            ious[row, column] = np.logical_and(target, mask).sum() / union if union else 0.0
    return ious


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive_count, default=5)
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
