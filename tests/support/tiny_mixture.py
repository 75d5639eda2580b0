"""A LISA and a GSVA with the recorded tokenizers that train in seconds, and recipes for the small data root."""

from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import LlamaConfig, LlavaConfig
from transformers.models.clip import CLIPVisionConfig

from reasonseg.modeling.configuration_gsva import GsvaConfig
from reasonseg.modeling.configuration_lisa import LisaConfig
from reasonseg.modeling.modeling_gsva import GsvaForReasoningSegmentation
from reasonseg.modeling.modeling_lisa import LisaForReasoningSegmentation
from tests.support import recorded_processors, tiny
from tests.support.recorded_data_sets import DATA_ROOT


MODELS = {"lisa": (LisaConfig, LisaForReasoningSegmentation), "gsva": (GsvaConfig, GsvaForReasoningSegmentation)}
LEARNS = [r"vlm\..*lm_head\.", r"vlm\..*embed_tokens\.", r"segmenter\.mask_decoder\.", r"seg_projector\."]


def tiny_system(system: str) -> tuple[torch.nn.Module, Any]:
    """Model and processor; an image has four tokens."""
    processor = recorded_processors.small_processor(system)
    tokenizer = processor.tokenizer
    config_class, model_class = MODELS[system]
    slots = {"seg_token_id": tokenizer.convert_tokens_to_ids("[SEG]")}
    if processor.rej_token is not None:
        slots["rej_token_id"] = tokenizer.convert_tokens_to_ids("[REJ]")
    text = {**tiny.TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 1024}
    vlm = LlavaConfig(
        text_config=LlamaConfig(**text),
        vision_config=CLIPVisionConfig(**tiny.CLIP),
        image_token_index=processor.image_token_id,
        image_seq_length=4,
    )
    torch.manual_seed(0)
    model = model_class(config_class(vlm_config=vlm, segmenter_config=tiny.sam_config(), **slots))
    return tiny.randomize(model, std=0.05), processor


def write_tiny_repo(system: str, folder: Path) -> Path:
    model, processor = tiny_system(system)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_mixture_recipe(repo: Path, path: Path, options: dict[str, Any] | None = None, **sections: Any) -> Path:
    """A recipe file that trains a repository as the originals do, a few small steps."""
    arguments = {
        "per_device_train_batch_size": 2,
        "max_steps": 20,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        **({} if "validation" in sections else {"save_strategy": "no"}),
        "use_cpu": True,
        "disable_tqdm": True,
    }
    recipe = {
        "model": str(repo),
        "data": {
            "kind": "lisa_mixture",
            "path": str(DATA_ROOT),
            "options": {"samples_per_epoch": 8, **(options or {})},
            "collator": {"max_length": 512, "image_length": 256},
        },
        "trained": LEARNS,
        "lora": {"r": 4},
        "mask_size": 32,
        **sections,
        "arguments": {**arguments, **sections.get("arguments", {})},
    }
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
