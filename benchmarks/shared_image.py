"""Twenty questions to one image: in one call, which reads what they begin with once, against one call each.

    python -m benchmarks.shared_image [--questions 20] [--tokens 8]

The prompts are as long as LISA's: 30 tokens before the image, 256 for it and 25 after it, of which the last 22 differ.
The answer is given, so that one pass draws the mask; then written, `--tokens` long.
"""

import argparse

import torch

from benchmarks.midsize import SEG, midsize_model, one_image, question_ids, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=8)
    arguments = parser.parse_args()
    count = arguments.questions
    model, image = midsize_model(), one_image()
    questions = question_ids(count, text_tokens=55, shared_tokens=33)
    forced = torch.cat([questions, torch.full((count, 1), SEG)], dim=1)
    options = {"max_new_tokens": arguments.tokens, "eos_token_id": None, "pad_token_id": 0}

    def draw(ids, **more):
        return [masks.clone() for masks in model(ids, **image, **more).pred_masks]

    def write(ids, **more):
        return list(model.generate_with_masks(ids, **image, **options, **more).sequences)

    for title, ids, answer in (("answers given", forced, draw), ("answers written", questions, write)):
        with torch.no_grad():
            answer(ids[:1])  # first calls allocate
        shared, together = seconds(lambda answer=answer, ids=ids: answer(ids))
        whole, _ = seconds(lambda answer=answer, ids=ids: answer(ids, share_prefixes=False))
        apart, single = seconds(lambda answer=answer, ids=ids: [answer(ids[row : row + 1])[0] for row in range(count)])
        for ours, theirs in zip(together, single, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        print(title)
        print(f"  one call each                 {apart:8.2f} s")
        print(f"  one call, prompts read whole  {whole:8.2f} s  ratio {apart / whole:5.1f} x")
        print(f"  one call, prefix read once    {shared:8.2f} s  ratio {apart / shared:5.1f} x")


if __name__ == "__main__":
    main()
