"""Twenty questions to one image: in one call that encodes it once, against one call each.

python -m benchmarks.shared_image [--questions 20]
"""

import argparse

import torch

from benchmarks.midsize import SEG, midsize_model, one_image, question_ids, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=20)
    count = parser.parse_args().questions
    model, image = midsize_model(), one_image()
    ids = torch.cat([question_ids(count, text_tokens=40), torch.full((count, 1), SEG)], dim=1)
    with torch.no_grad():
        model(ids[:1], **image)  # first calls allocate

    shared, together = seconds(lambda: model(ids, **image))
    apart, single = seconds(lambda: [model(ids[row : row + 1], **image) for row in range(count)])
    for row in range(count):
        torch.testing.assert_close(together.pred_masks[row], single[row].pred_masks[0], atol=1e-4, rtol=1e-4)
    print(f"one call each        {apart:8.2f} s")
    print(f"one call, one image  {shared:8.2f} s")
    print(f"ratio                {apart / shared:8.1f} x")


if __name__ == "__main__":
    main()
