"""Compiled against eager, in one process: a decoding step, and the segmenter's image encoder.

    python -m benchmarks.compiled [--tokens 32] [--repeats 3]

The step writes `--tokens` tokens about one image with a cache that grows, with one of fixed size, and compiled.
Answers and encoded images are compared; what compiling takes once is a row of its own.
"""

import argparse
from collections.abc import Iterator

import torch

from benchmarks.measurement import Measurement, positive_count, print_table
from benchmarks.midsize import midsize_model, one_image, question_ids, seconds
from reasonseg.modeling.segmenters import segmenter_adapter
from reasonseg.precision import compile_model


SMALL = {"tokens": 16, "repeats": 1, "side": 512, "layers": 3}


def measurements(
    tokens: int = 32, repeats: int = 3, model=None, image=None, ids=None, side: int = 1024, layers: int = 12
) -> Iterator[Measurement]:
    """Of the mid-size model with so many layers and a view of `side` pixels, or of another one with its image and
    prompt. Compiling takes as long as there are layers."""
    model, image = model or midsize_model(side, layers), image or one_image(side)
    ids = question_ids(1) if ids is None else ids
    cache, adapter = model.encode_image(**image), segmenter_adapter(model.segmenter)

    def best(work) -> tuple[float, torch.Tensor]:
        timed = [seconds(work) for _ in range(repeats)]
        return min(time for time, _ in timed), timed[0][1]

    def write(count: int, **options) -> torch.Tensor:
        fixed = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        return model.generate(ids, image_cache=cache, share_prefixes=False, **fixed, **options)

    def step(**options) -> tuple[float, torch.Tensor]:
        """Milliseconds of a token after the first, and all tokens."""
        first, _ = best(lambda: write(1, **options))
        whole, sequences = best(lambda: write(tokens + 1, **options))
        return 1e3 * (whole - first) / tokens, sequences

    def encode() -> torch.Tensor:
        return adapter.encode(image["sam_pixel_values"])["image_embeddings"]

    with torch.no_grad():
        write(2)  # first calls allocate
        dynamic, expected = step()
        eager, expected_image = best(encode)
        static, same = step(cache_implementation="static")
        assert torch.equal(same, expected)
        compile_model(model)
        once, _ = seconds(lambda: write(tokens + 1))  # with the longest cache, so that no length comes anew
        compiled, same = step()
        assert torch.equal(same, expected)
        encoder_once, _ = seconds(encode)
        compiled_encoder, same_image = best(encode)
        torch.testing.assert_close(same_image, expected_image, atol=1e-3, rtol=1e-3)
    yield Measurement("decoding step, static cache, against a growing one", static, dynamic, "ms")
    yield Measurement("decoding step, compiled, against eager", compiled, dynamic, "ms")
    yield Measurement("SAM's image encoder, compiled, against eager", 1e3 * compiled_encoder, 1e3 * eager, "ms")
    yield Measurement("compiling both, once", once + encoder_once, unit="s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=positive_count, default=32)
    parser.add_argument("--repeats", type=positive_count, default=3)
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
