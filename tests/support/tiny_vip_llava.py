"""A tiny ViP-LLaVA with the recorded LLaMA tokenizer: its parts as their repositories look, and the whole."""

import shutil
from pathlib import Path

import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from reasonseg.conversion.compose import compose
from reasonseg.registration import register
from tests.support import tiny
from tests.support.parity_data import PARITY


SIDE, IMAGE_TOKENS = 28, 4
_TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")


def write_parts(folder: Path) -> dict[str, str]:
    """Write a language model to `folder/llm` and a CLIP tower to `folder/clip`; returns them as recipes name them."""
    register()
    torch.manual_seed(0)
    text = {**tiny.TEXT, "vocab_size": 620, "max_position_embeddings": 512}
    tiny.randomize(LlamaForCausalLM(LlamaConfig(**text)), 0.1).save_pretrained(folder / "llm")
    for name in _TOKENIZER_FILES:
        shutil.copy(PARITY / "gsva" / "base_llava" / name, folder / "llm")
    # Eleven layers: the features are taken from as far back.
    vision = CLIPVisionConfig(**{**tiny.CLIP, "num_hidden_layers": 11, "image_size": SIDE})
    tiny.randomize(CLIPVisionModel(vision), 0.1).save_pretrained(folder / "clip")
    side = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=side).save_pretrained(folder / "clip")
    return {"system": "vip_llava", "language_model": str(folder / "llm"), "vision_tower": str(folder / "clip")}


def write_repo(folder: Path) -> Path:
    """Write a whole model with its processor to `folder/repo`."""
    return compose(write_parts(folder), folder / "repo").out
