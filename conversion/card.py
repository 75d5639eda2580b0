"""The model card: one template, the values of a system, of a checkpoint, and of the base it inherits terms from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedConfig

from .errors import ConversionError


# In a checkout the folder lies beside this one; installed, it is the sub-package of the same name.
CARDS = Path(__file__).resolve().parents[1] / "model_cards"
_TEMPLATE = "card.md.jinja"


def known_cards() -> list[str]:
    """Names of the checkpoints that have values of their own."""
    return sorted(file.stem for file in CARDS.glob("*-*.yaml"))


def check_card(system: str, name: str) -> None:
    """Refuse the name of a checkpoint that has no values of its own.

    Raises:
        ConversionError: Names the checkpoints that have.
    """
    known = [card for card in known_cards() if card.startswith(f"{system}-")]
    if name.lower() not in known:
        raise ConversionError(f"There is no card for {name!r}.", next_step=f"Known are {', '.join(known)}.")


def render_card(system: str, name: str, config: PreTrainedConfig, dtype: torch.dtype) -> str:
    """Render README.md.

    Args:
        system (`str`): `"lisa"` or `"gsva"`.
        name (`str`): Name of the checkpoint, in any letter case. For an unknown one the card says what is known about
            the system.
        config (`PreTrainedConfig`): The composed model's config; sizes are shown in the card.
        dtype (`torch.dtype`): Type of the vision-language model.

    Returns:
        `str`: Metadata and text, the same for the same arguments.
    """
    values = _read_values(system)
    name = name.lower()
    if name in known_cards() and name.startswith(f"{system}-"):
        values |= _read_values(name)
    values |= _read_values("bases")[values["base"]]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["reasoning-segmentation", system, "custom_code"],
        language="en",
        license=values["license"],
        license_name=values.get("license_name"),
    )
    card = ModelCard.from_template(
        data, template_path=str(CARDS / _TEMPLATE), config=config, dtype=str(dtype).removeprefix("torch."), **values
    )
    return str(card).rstrip() + "\n"


def _read_values(name: str) -> dict[str, Any]:
    return yaml.safe_load((CARDS / f"{name}.yaml").read_text(encoding="utf-8"))
