"""A model of the tabletop world that trains in milliseconds, with its data and its recipe."""

from pathlib import Path

import torch
import yaml
from transformers import LlamaConfig, LlavaConfig
from transformers.models.clip import CLIPVisionConfig

from reasonseg.modeling.configuration_gsva import GsvaConfig
from reasonseg.modeling.modeling_gsva import GsvaForReasoningSegmentation
from reasonseg.tabletop.processor import build_processor, token_ids
from tests.support import tiny
from tests.support.tabletop_folder import write_dataset


SIDE = 28


def tiny_processor():
    return build_processor(vlm_side=SIDE, vlm_patch=14, segmenter_side=tiny.SAM_SIDE)


def tiny_model(processor) -> GsvaForReasoningSegmentation:
    ids = token_ids(processor)
    text = {**tiny.TEXT, "vocab_size": ids["vocab_size"], "pad_token_id": ids["<pad>"]}
    vlm = LlavaConfig(
        text_config=LlamaConfig(**text),
        vision_config=CLIPVisionConfig(**tiny.CLIP),
        image_token_index=ids["<image>"],
        image_seq_length=4,
    )
    config = GsvaConfig(
        vlm_config=vlm,
        segmenter_config=tiny.sam_config(),
        seg_token_id=ids["[SEG]"],
        rej_token_id=ids["[REJ]"],
        count_rejected_masks=False,
    )
    return tiny.randomize(GsvaForReasoningSegmentation(config), std=0.1)


def write_tiny_recipe(folder: Path, **arguments) -> Path:
    """A repository, a data set and a recipe that trains the one on the other; returns the recipe's file."""
    torch.manual_seed(0)
    processor = tiny_processor()
    tiny_model(processor).save_pretrained(folder / "repo")
    processor.save_pretrained(folder / "repo")
    write_dataset(folder / "data", "train", 4, size=64, requests_per_scene=1)
    recipe = {
        "model": str(folder / "repo"),
        "data": {"kind": "image_folder", "path": str(folder / "data" / "train")},
        "mask_size": 16,
        "arguments": {
            "per_device_train_batch_size": 1,
            "max_steps": 1000,
            "save_steps": 1,
            "logging_steps": 1000,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "use_cpu": True,
            "disable_tqdm": True,
            **arguments,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
