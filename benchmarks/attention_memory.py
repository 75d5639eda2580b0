"""Attention of a 512-token answer to 24 x 24 image tokens: one small map per token, against keeping all of it.

    python -m benchmarks.attention_memory [--tokens 512] [--layers 8] [--heads 8]

The baseline is what the released attend-and-segment code does (`output_attentions=True`, all kept until the end).
LLaVA-1.5-7B has 32 layers of 32 heads, 16 times the default here.
"""

import argparse
from collections.abc import Iterator

import torch
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

from benchmarks.measurement import Measurement, positive_count, print_table
from benchmarks.midsize import seconds
from reasonseg.modeling.attention_maps import AttentionMapCollector, ImageColumns, reduce_attentions


CELLS, IMAGE = 576, 99
SMALL = {"tokens": 48, "layers": 4}


def small_llava(layers: int, heads: int):
    """LLaVA-1.5's number of image tokens on a narrow language model with eager attention."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=100,
        hidden_size=8 * heads,
        intermediate_size=16 * heads,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=4096,
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=336, patch_size=14
    )
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE, image_seq_length=CELLS)
    config.text_config._attn_implementation = "eager"  # the only one that returns its weights
    return AutoModelForImageTextToText.from_config(config).eval()


def measurements(tokens: int = 512, layers: int = 8, heads: int = 8) -> Iterator[Measurement]:
    model = small_llava(layers, heads)
    ids = torch.cat([torch.arange(3, 33), torch.full((CELLS,), IMAGE), torch.arange(3, 33)])[None]
    inputs = {
        "input_ids": ids,
        "pixel_values": torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(1)),
    }
    # every answer has the full length, and never the placeholder
    options = {
        "max_new_tokens": tokens,
        "do_sample": False,
        "eos_token_id": None,
        "suppress_tokens": [IMAGE],
    }

    columns = ImageColumns.find(ids, IMAGE, [torch.arange(CELLS)])
    collector = AttentionMapCollector(model, columns, "paper", None)

    def reduced():
        with reduce_attentions(collector):
            return model.generate(**inputs, **options, logits_processor=[collector])

    map_time, sequences = seconds(reduced)
    all_time, kept = seconds(
        lambda: model.generate(**inputs, **options, output_attentions=True, return_dict_in_generate=True)
    )
    assert torch.equal(sequences, kept.sequences)
    maps = collector.maps_of(torch.zeros(tokens, dtype=torch.long), ids.shape[1], 0)
    image = slice(30, 30 + CELLS)
    for step in (0, tokens - 1):
        expected = torch.stack([layer[0, -2, -1, image] for layer in kept.attentions[step]]).mean(0)
        torch.testing.assert_close(maps[step], expected, atol=1e-6, rtol=1e-4)
    kept_bytes = sum(layer.nbytes for step in kept.attentions for layer in step)
    what = f"attention of {tokens} tokens"
    yield Measurement(f"{what}, against keeping all of it", collector.num_bytes / 1e6, kept_bytes / 1e6, "MB")
    yield Measurement(f"{what}: the answer", map_time, all_time)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=positive_count, default=512)
    parser.add_argument("--layers", type=positive_count, default=8)
    parser.add_argument("--heads", type=positive_count, default=8)
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
