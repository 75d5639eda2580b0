"""A 64-token answer: with the KV cache and the image encoded once, against a full pass per token.

    python -m benchmarks.cached_generation [--tokens 64]

The baseline is what the original LISA does (`use_cache=False`): every token runs CLIP and the whole sequence again.
"""

import argparse
from collections.abc import Iterator

import torch

from benchmarks.measurement import Measurement, positive_count, print_table
from benchmarks.midsize import midsize_model, one_image, question_ids, seconds


SMALL = {"tokens": 8, "layers": 4}


def answer_as_the_original(model, ids: torch.LongTensor, pixel_values: torch.Tensor, tokens: int) -> torch.LongTensor:
    for _ in range(tokens):
        logits = model.vlm(input_ids=ids, pixel_values=pixel_values, use_cache=False).logits[:, -1]
        logits[:, model.config.image_token_id] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids


def measurements(tokens: int = 64, layers: int = 12) -> Iterator[Measurement]:
    model, ids, image = midsize_model(layers=layers), question_ids(1), one_image()
    model.generate_with_masks(ids, **image, max_new_tokens=2)  # first calls allocate

    cached, output = seconds(
        lambda: model.generate_with_masks(
            ids, **image, max_new_tokens=tokens, min_new_tokens=tokens, eos_token_id=None, pad_token_id=0
        )
    )
    uncached, expected = seconds(lambda: answer_as_the_original(model, ids, image["pixel_values"], tokens))
    assert torch.equal(output.sequences, expected), "both must write the same answer"
    yield Measurement(f"answer of {tokens} tokens, against a full pass per token", cached, uncached)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=positive_count, default=64)
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
