"""Eight images with a question each about Sa2VA's sizes: in one batch, against one by one as its own code takes them.

    python -m benchmarks.sa2va_batch [--images 8] [--tokens 16] [--segments 2]

A Qwen3-VL and a SAM 2 with random weights at about a tenth of the published sizes. Every answer holds `--segments`
`[SEG]`; the original encodes an image once for each of them, both ways here once.
"""

import argparse
from collections.abc import Iterator

import torch
from transformers import Qwen3VLConfig, Sam2Config

from benchmarks.measurement import Measurement, positive_count, print_table
from benchmarks.midsize import seconds
from reasonseg.modeling.configuration_sa2va import Sa2VaConfig
from reasonseg.modeling.modeling_sa2va import Sa2VaForReasoningSegmentation


SMALL = {"images": 2, "tokens": 4, "segments": 1, "side": 256, "columns": 8}
VOCAB_SIZE, SEG, IMAGE, PATCH, ROWS = 32_000, 31_990, 31_991, 16, 32


def sa2va_model(side: int) -> Sa2VaForReasoningSegmentation:
    """Qwen3-VL of 12 layers x 768 behind a tower of 12 x 512, SAM 2 with the smallest published Hiera, float32."""
    torch.manual_seed(0)
    vlm = Qwen3VLConfig(
        text_config={
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [12, 10, 10],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 12,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_heads": 8,
            "out_hidden_size": 768,
            "deepstack_visual_indexes": [3, 6, 9],
        },
        image_token_id=IMAGE,
        video_token_id=IMAGE + 1,
        vision_start_token_id=IMAGE + 2,
        vision_end_token_id=IMAGE + 3,
    )
    grid = side // 16
    segmenter = Sam2Config(
        vision_config={
            "backbone_config": {"model_type": "sam2_hiera_det_model", "image_size": [side, side]},
            "backbone_feature_sizes": [[4 * grid, 4 * grid], [2 * grid, 2 * grid], [grid, grid]],
        },
        prompt_encoder_config={"image_size": side},
    )
    config = Sa2VaConfig(vlm_config=vlm, segmenter_config=segmenter, seg_token_id=SEG)
    return Sa2VaForReasoningSegmentation(config).eval()


def inputs(images: int, side: int, columns: int) -> dict[str, torch.Tensor]:
    """Questions of different lengths, padded on the left, and for each an image of 32 x `columns` patches."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for row in range(images):
        words = torch.randint(3, 31_000, (16 + 3 * row,), generator=generator)
        rows.append(torch.cat([words[:4], torch.full((ROWS * columns // 4,), IMAGE), words[4:]]))
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    patches = images * ROWS * columns
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.randn(patches, 3 * 2 * PATCH**2, generator=generator),
        "image_grid_thw": torch.tensor([[1, ROWS, columns]] * images),
        "sam_pixel_values": torch.randn(images, 3, side, side, generator=generator),
        "original_sizes": torch.tensor([[480, 640]] * images),
        "reshaped_input_sizes": torch.tensor([[side, side]] * images),
    }


def row_of(batch: dict[str, torch.Tensor], row: int, images: int) -> dict[str, torch.Tensor]:
    """One question without its padding, with its image."""
    kept = batch["attention_mask"][row].bool()
    alone = {}
    for name, value in batch.items():
        size = len(value) // images
        alone[name] = value[row : row + 1, kept] if value.shape == batch["input_ids"].shape else value[
            row * size : (row + 1) * size
        ]  # fmt: skip
    return alone


def measurements(
    images: int = 8, tokens: int = 16, segments: int = 2, side: int = 1024, columns: int = 44
) -> Iterator[Measurement]:
    model, batch = sa2va_model(side), inputs(images, side, columns)
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": 0, "eos_token_id": None}

    def forced(start: int):
        # The last tokens but one of every answer ask for masks.
        def processor(ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
            left = tokens - (ids.shape[1] - start)
            scores[:, SEG] = torch.inf if 1 < left <= 1 + segments else -torch.inf
            return scores

        return [processor]

    def answer(given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        start = given["input_ids"].shape[1]
        return model.generate_with_masks(**given, **options, logits_processor=forced(start)).pred_masks

    apart = [row_of(batch, row, images) for row in range(images)]
    answer(apart[0])  # first calls allocate
    together, masks = seconds(lambda: answer(batch))
    single, expected = seconds(lambda: [answer(given)[0] for given in apart])
    assert all(len(found) == segments for found in masks)
    torch.testing.assert_close(torch.cat(masks), torch.cat(expected), atol=1e-3, rtol=1e-3)
    yield Measurement(
        f"Sa2VA: {images} images in one batch, {segments} masks each, against one by one", together, single
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive_count, default=8)
    parser.add_argument("--tokens", type=positive_count, default=16)
    parser.add_argument("--segments", type=positive_count, default=2)
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
