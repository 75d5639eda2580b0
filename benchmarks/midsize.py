"""The model that the benchmarks run on: random weights at about a tenth of LISA-7B's size, inputs as it would get."""

import time
from collections.abc import Callable

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    SamConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from reasonseg.modeling.configuration_lisa import LisaConfig
from reasonseg.modeling.modeling_lisa import LisaForReasoningSegmentation


VOCAB_SIZE, SEG, IMAGE = 32_004, 32_000, 32_003
PATCHES = 256


def midsize_model(side: int = 1024, layers: int = 12) -> LisaForReasoningSegmentation:
    """LLaMA of `layers` x 768, as many of SAM ViT-B at `side` px, twice as many of CLIP ViT-L/14, in float32."""
    torch.manual_seed(0)
    vlm = LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=layers,
            num_attention_heads=12,
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=2 * layers,
            num_attention_heads=16,
            patch_size=14,
            image_size=224,
        ),
        image_token_index=IMAGE,
        image_seq_length=PATCHES,
        projector_hidden_act="linear",
    )
    # transformers' SAM starts from weights of 1e-10; these make masks that differ from one another.
    tower = SamVisionConfig(initializer_range=0.02, image_size=side, num_hidden_layers=layers)
    segmenter = SamConfig(
        vision_config=tower,
        prompt_encoder_config=SamPromptEncoderConfig(image_size=side),
        mask_decoder_config=SamMaskDecoderConfig(layer_norm_eps=1e-5),
    )
    return LisaForReasoningSegmentation(
        LisaConfig(vlm_config=vlm, segmenter_config=segmenter, seg_token_id=SEG)
    ).eval()


def question_ids(rows: int, text_tokens: int = 60, shared_tokens: int = 1) -> torch.LongTensor:
    """Prompts of `text_tokens` random words around one image; the first `shared_tokens` are those of all rows."""
    words = torch.randint(3, 31_000, (rows, text_tokens), generator=torch.Generator().manual_seed(1))
    words[:, 0] = 1
    words[1:, :shared_tokens] = words[0, :shared_tokens]
    image = torch.full((rows, PATCHES), IMAGE)
    return torch.cat([words[:, :30], image, words[:, 30:]], dim=1)


def one_image(side: int = 1024) -> dict[str, torch.Tensor]:
    """Both views of one random image, the segmenter's of `side` pixels."""
    generator = torch.Generator().manual_seed(2)
    return {
        "pixel_values": torch.randn(1, 3, 224, 224, generator=generator),
        "sam_pixel_values": torch.randn(1, 3, side, side, generator=generator),
        "original_sizes": torch.tensor([[side * 3 // 4, side]]),
        "reshaped_input_sizes": torch.tensor([[side * 3 // 4, side]]),
    }


def seconds(work: Callable[[], object]) -> tuple[float, object]:
    """Wall time of one call and what it returned."""
    start = time.perf_counter()
    with torch.no_grad():
        result = work()
    return time.perf_counter() - start, result
