"""Every card renders with metadata, sizes and a licence chain."""

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from reasonseg.conversion.card import CARDS, check_card, known_cards, render_card
from reasonseg.conversion.errors import ConversionError
from reasonseg.modeling.configuration_lisa import LisaConfig


CONFIG = LisaConfig(seg_token_id=5)


@pytest.mark.parametrize("name", [*known_cards(), "lisa-unheard-of", "gsva-unheard-of"])
def test_cards_render(name):
    system = name.split("-")[0]
    text = render_card(system, name.upper(), CONFIG, torch.bfloat16)
    card = ModelCard(text, ignore_metadata_errors=False)
    assert card.data.library_name == "transformers"
    assert {"reasoning-segmentation", system} <= set(card.data.tags)
    assert card.data.license == ("llama2" if "llama2" in name else "other")
    for part in ("| SAM | Apache-2.0 |", "| CLIP | MIT |", "32 layers of 4096", "256 image tokens", "bfloat16"):
        assert part in text
    assert "{{" not in text
    assert "\n\n\n" not in text
    assert text == render_card(system, name.upper(), CONFIG, torch.bfloat16)


def test_every_values_file_is_complete():
    bases = yaml.safe_load((CARDS / "bases.yaml").read_text())
    for name in known_cards():
        values = yaml.safe_load((CARDS / f"{name}.yaml").read_text())
        assert values["title"].lower() == name
        assert ("llama-2" if "llama2" in name else "llama-1") == values["base"]
        assert values["base"] in bases
    assert len(known_cards()) == 15


def test_names_are_checked():
    with pytest.raises(ConversionError, match=r"no card for 'lisa-8b'.*lisa-7b-v1"):
        check_card("lisa", "lisa-8b")
    with pytest.raises(ConversionError, match="no card for 'gsva-7b-pt'"):
        check_card("lisa", "gsva-7b-pt")
