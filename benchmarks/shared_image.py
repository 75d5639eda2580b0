"""Twenty questions to one image: in one call, which reads what they begin with once, against one call each.

    python -m benchmarks.shared_image [--questions 20] [--tokens 8]

The prompts are as long as LISA's: 30 tokens before the image, 256 for it and 25 after it, of which the last 22 differ.
The answer is given, so that one pass draws the mask; then written, `--tokens` long with a `[SEG]` before its end,
which the weights, being random, would not write by themselves. Results are compared.
"""

import argparse
from collections.abc import Iterator
from functools import partial

import torch
from transformers import LogitsProcessor

from benchmarks.measurement import Measurement, positive_count, print_table
from benchmarks.midsize import SEG, midsize_model, one_image, question_ids, seconds


SMALL = {"questions": 4, "tokens": 4, "side": 512, "layers": 4}


class SlotAt(LogitsProcessor):
    """Writes `[SEG]` once the sequence has `length` tokens."""

    def __init__(self, length: int):
        self.length = length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if input_ids.shape[1] == self.length:
            scores = torch.full_like(scores, -torch.inf)
            scores[:, SEG] = 0
        return scores


def measurements(questions: int = 20, tokens: int = 8, side: int = 1024, layers: int = 12) -> Iterator[Measurement]:
    model, image = midsize_model(side, layers), one_image(side)
    asked = question_ids(questions, text_tokens=55, shared_tokens=33)
    forced = torch.cat([asked, torch.full((questions, 1), SEG)], dim=1)
    slot = SlotAt(asked.shape[1] + tokens - 2)
    options = {"max_new_tokens": tokens, "eos_token_id": None, "pad_token_id": 0, "logits_processor": [slot]}

    def draw(ids, **more):
        return [masks.clone() for masks in model(ids, **image, **more).pred_masks]

    def write(ids, **more):
        output = model.generate_with_masks(ids, **image, **options, **more)
        return list(zip(output.sequences, output.pred_masks, strict=True))

    for answers, ids, answer in (("answers given", forced, draw), ("answers written", asked, write)):
        with torch.no_grad():
            answer(ids[:1])  # first calls allocate
        shared, together = seconds(partial(answer, ids))
        whole, _ = seconds(partial(answer, ids, share_prefixes=False))
        apart, single = seconds(lambda answer=answer, ids=ids: [answer(row)[0] for row in ids.split(1)])
        for ours, theirs in zip(together, single, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        what = f"{questions} questions to one image, {answers}"
        yield Measurement(f"{what}: one call, against one each", shared, apart, "s")
        yield Measurement(f"{what}: prompts read whole, against one call each", whole, apart, "s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=positive_count, default=20)
    parser.add_argument("--tokens", type=positive_count, default=8)
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
