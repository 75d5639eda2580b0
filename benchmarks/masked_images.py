"""Masking a large image by its heat-map: this package's dilation and blur, against the same filters of scipy.

Both give the same image; the original's OpenCV is not needed for either.

python -m benchmarks.masked_images [--height 3000] [--width 4000]
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.measurement import Measurement, positive_count, print_table
from reasonseg.processing.masked_images import DEFAULT_SPREAD, gaussian_weights, mask_image


SMALL = {"height": 1500, "width": 2000}


def scipy_pixels(image: np.ndarray, heatmap: np.ndarray, threshold: float) -> np.ndarray:
    """The masked image in float32, by scipy's maximum filter and correlations."""
    from scipy.ndimage import correlate1d, maximum_filter

    radius = int(len(heatmap) * DEFAULT_SPREAD)
    weights = maximum_filter((heatmap > threshold).astype(np.uint8), 2 * radius + 1, mode="constant")
    weights = weights.astype(np.float32)
    for axis in (1, 0):
        weights = correlate1d(weights, gaussian_weights(radius), axis=axis, mode="mirror")
    return image * weights[..., None] + 255 * (1 - weights[..., None])


def best_of(run, times: int = 3) -> tuple[float, object]:
    """Least CPU seconds of several runs, and the last result."""
    durations = []
    for _ in range(times):
        start = time.process_time()
        result = run()
        durations.append(time.process_time() - start)
    return min(durations), result


def measurements(height: int = 3000, width: int = 4000) -> Iterator[Measurement]:
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    # an ellipse over a quarter of each side
    distance = ((rows - height / 2) / (height / 8)) ** 2 + ((columns - width / 3) / (width / 8)) ** 2
    heatmap = np.exp(-distance).astype(np.float32)

    ours, masked = best_of(lambda: mask_image(image, heatmap, 0.3))
    theirs, expected = best_of(lambda: scipy_pixels(image, heatmap, 0.3))
    difference = np.abs(masked.pixels - expected).max()
    assert difference < 1e-2, difference
    yield Measurement(f"image of {width} x {height} masked, against scipy's filters", ours, theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=positive_count, default=3000)
    parser.add_argument("--width", type=positive_count, default=4000)
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
