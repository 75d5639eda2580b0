"""An evaluation on images with several expressions: each image encoded once for all, against one at a time for each.

Both ask the same questions with the answer given, as under `--protocol paper`, and their masks are equal.

python -m benchmarks.shared_expressions [--images 2] [--expressions 5]
"""

import argparse
from collections.abc import Iterator

import torch

from benchmarks.measurement import Measurement, positive_count, print_table
from benchmarks.midsize import SEG, midsize_model, one_image, question_ids, seconds


SMALL = {"images": 1, "side": 512, "layers": 4}


def measurements(images: int = 2, expressions: int = 5, side: int = 1024, layers: int = 12) -> Iterator[Measurement]:
    model, view, rows = midsize_model(side, layers), one_image(side), expressions
    # the questions of RefCOCO are short
    ids = torch.cat([question_ids(rows, text_tokens=40), torch.full((rows, 1), SEG)], dim=1)
    with torch.no_grad():
        model(ids[:1], **view)  # first calls allocate

    def together():
        return [model(ids, **view).pred_masks for _ in range(images)]

    def apart():
        return [[model(ids[row : row + 1], **view).pred_masks[0] for row in range(rows)] for _ in range(images)]

    shared, masks = seconds(together)
    single, expected = seconds(apart)
    for one, other in zip(masks, expected, strict=True):
        torch.testing.assert_close(torch.cat(list(one)), torch.cat(other), atol=1e-4, rtol=1e-4)
    yield Measurement(f"masks of {rows} expressions in each of {images} images, against one at a time", shared, single)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive_count, default=2)
    parser.add_argument("--expressions", type=positive_count, default=5)
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
