"""A LoRA adapter that a conversion keeps beside the weights, in the files that PEFT and transformers read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .inventory import Inventory, Piece
from .plan import PlannedTensor
from .progress import no_progress
from .rules import LORA_A, LORA_B, WEIGHT
from .shards import write_shards
from .tensor_operations import common_rank, lora_rank


# In a folder of their own: beside config.json, transformers would look for the model in what the adapter's config
# names, which on the Hub is not known before it is uploaded. The model itself looks here.
ADAPTER_FOLDER = "adapter"
ADAPTER_WEIGHTS = f"{ADAPTER_FOLDER}/adapter_model.safetensors"
_CONFIG, _WRITTEN = "adapter_config.json", "model.safetensors"
_PREFIX = "base_model.model."
_NAME = re.compile(re.escape(_PREFIX) + r"(?P<module>.+)\.lora_[AB]\.weight")


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter of the language model.

    Args:
        tensors (`list[PlannedTensor]`): Its matrices, in the type they are stored in.
        rank (`int`), alpha (`float`), dropout (`float`): As in its training.
        modules (`list[str]`): Names of the adapted modules.
    """

    tensors: list[PlannedTensor]
    rank: int
    alpha: float
    dropout: float
    modules: list[str]

    def write(self, folder: Path) -> None:
        """Write `adapter/adapter_config.json` and `adapter/adapter_model.safetensors`."""
        own = folder / ADAPTER_FOLDER
        own.mkdir()
        total = sum(tensor.num_bytes for tensor in self.tensors)
        write_shards(own, self.tensors, 2 * total, no_progress, lambda: None)
        (own / _WRITTEN).rename(folder / ADAPTER_WEIGHTS)
        config = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": None,
            "inference_mode": True,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "bias": "none",
            "target_modules": self.modules,
        }
        (own / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def take_adapter(inventory: Inventory, alpha_of_rank: Callable[[int], float], dropout: float) -> PeftAdapter | None:
    """Take the adapters out of the inventory, so that the weights below them stay as they are.

    Args:
        inventory (`Inventory`): The sources' parameters; it loses its adapters.
        alpha_of_rank (`Callable[[int], float]`): LoRA's alpha for the rank found.
        dropout (`float`): LoRA's dropout in training, for those who train on.

    Returns:
        `PeftAdapter`, or `None` where the sources hold no adapter.

    Raises:
        ConversionError: An adapter is incomplete or does not fit its weight.
    """
    adapted = inventory.adapted()
    if not adapted:
        return None
    shapes = {
        target: [parts[part].info.shape for part in (WEIGHT, LORA_A, LORA_B)] for target, parts in adapted.items()
    }
    rank = common_rank([lora_rank(*own, target) for target, own in shapes.items()])
    tensors = [
        _planned(f"{_PREFIX}{target.removesuffix('.weight')}.{part}.weight", parts.pop(part))
        for target, parts in adapted.items()
        for part in (LORA_A, LORA_B)
    ]
    modules = [target.removesuffix(".weight") for target in adapted]
    return PeftAdapter(tensors, rank, float(alpha_of_rank(rank)), dropout, modules)


def _planned(name: str, piece: Piece) -> PlannedTensor:
    info = piece.info
    return PlannedTensor(
        name, info.shape, info.dtype, piece.origin, lambda: piece.load().contiguous(), pieces={WEIGHT: piece}
    )


def split_adapter_names(names: Sequence[str], expected: Mapping[str, tuple[int, ...]]) -> tuple[list[str], list[str]]:
    """
    Returns:
        `tuple[list[str], list[str]]`: The names of matrices of adapters on modules of the model, and all others.
    """
    found = [name for name in names if (match := _NAME.fullmatch(name)) and f"{match['module']}.weight" in expected]
    return found, [name for name in names if name not in set(found)]
