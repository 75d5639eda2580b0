"""An evaluation on images with several expressions: each image encoded once for all, against one at a time for each.

Both ask the same questions with the answer given, as under `--protocol paper`, and their masks are equal.

python -m benchmarks.shared_expressions [--images 2] [--expressions 5]
"""

import argparse

import torch

from benchmarks.midsize import SEG, midsize_model, one_image, question_ids, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--expressions", type=int, default=5)
    arguments = parser.parse_args()
    model, view = midsize_model(), one_image()
    rows = arguments.expressions
    # the questions of RefCOCO are short
    ids = torch.cat([question_ids(rows, text_tokens=40), torch.full((rows, 1), SEG)], dim=1)
    with torch.no_grad():
        model(ids[:1], **view)  # first calls allocate

    def together():
        return [model(ids, **view).pred_masks for _ in range(arguments.images)]

    def apart():
        return [
            [model(ids[row : row + 1], **view).pred_masks[0] for row in range(rows)] for _ in range(arguments.images)
        ]

    shared, masks = seconds(together)
    single, expected = seconds(apart)
    for one, other in zip(masks, expected, strict=True):
        torch.testing.assert_close(torch.cat(list(one)), torch.cat(other), atol=1e-4, rtol=1e-4)
    print(f"{arguments.images} images with {rows} expressions each")
    print(f"one expression at a time   {single:8.2f} s")
    print(f"each image encoded once    {shared:8.2f} s")
    print(f"ratio                      {single / shared:8.1f} x")


if __name__ == "__main__":
    main()
