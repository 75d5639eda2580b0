"""What the card of a trained model takes from its base, and what the recipe adds."""

import shutil

import pytest
from huggingface_hub import ModelCard

from reasonseg.conversion.card import card_trainings, card_values, pin_card, render_card
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.publish import check_licence
from reasonseg.model_names import EMBEDDED_MODEL
from reasonseg.trained_card import read_start, write_trained_card
from reasonseg.training.recipe import load_recipe


def recipe(model, **settings):
    settings = {"model": model, "data.path": "/home/me/photographs", **settings}
    return load_recipe("lisa_image_folder", [f"{name}={value}" for name, value in settings.items()])


@pytest.fixture
def base(lisa_repo, tmp_path):
    """A converted repository whose card can be changed."""
    return shutil.copytree(lisa_repo, tmp_path / "base")


@pytest.fixture
def trained(lisa_repo, tmp_path):
    """Where the weights came from does not matter to a card."""
    return shutil.copytree(lisa_repo, tmp_path / "trained")


def written(trained, followed, card=None):
    write_trained_card(trained, followed, read_start(followed, card))
    return (trained / "README.md").read_text(encoding="utf-8")


def test_the_licence_follows_from_the_base(base, trained):
    (base / "README.md").write_text(render_card("lisa", "lisa-7b-v1"))
    text = written(trained, recipe(base))
    assert card_values(text) == "lisa-7b-v1"
    assert "LLaMA 1 licence, non-commercial" in text
    assert "| data | photographs | not stated; that of whoever owns it |" in text
    assert "/home/me" not in text
    assert [run["base"] for run in card_trainings(text)] == ["base"]
    check_licence(trained, None, private=True)
    with pytest.raises(ConversionError, match="lisa-7b-v1 may not be published with its full weights: LLaMA 1"):
        check_licence(trained, None, private=False)
    (base / "README.md").write_text(render_card("lisa", "lisa-13b-llama2-v1"))
    assert ModelCard(written(trained, recipe(base))).data.license == "llama2"
    check_licence(trained, None, private=False)


def test_a_published_base_is_called_by_its_name_on_the_hub(base, trained):
    (base / "README.md").write_text(pin_card(render_card("lisa", "lisa-7b-v1"), "org/lisa", "0" * 40))
    assert "Trained with reasonseg from org/lisa" in written(trained, recipe(base))


def test_an_unknown_base_stays_unknown_until_somebody_says_it(base, trained, tmp_path):
    start = read_start(recipe(base))
    assert not start.is_licence_known
    written(trained, recipe(base))
    with pytest.raises(ConversionError, match=r"unknown.*`system: lisa` and `base: llama-2`.*--card my-model\.yaml"):
        check_licence(trained, None, private=False)
    own = tmp_path / "mine.yaml"
    own.write_text("system: lisa\nbase: llama-2\ntitle: Mine\n")
    check_licence(trained, str(own), private=False)
    assert "# Mine\n" in written(trained, recipe(base), str(own))
    own.unlink()
    check_licence(trained, None, private=False)
    # and what is trained from that again knows it as well
    assert read_start(recipe(trained)).is_licence_known


def test_from_nothing_and_from_the_embedded_model():
    start = read_start(load_recipe("tabletop"))
    assert (start.system, start.base, start.is_licence_known) == ("gsva", None, True)
    start = read_start(recipe(EMBEDDED_MODEL))
    assert (start.values, start.base) == ("gsva-tabletop", "the model that comes with reasonseg")


def test_a_new_model_names_its_parts_and_their_licences():
    start = read_start(load_recipe("vip_llava_stage1"))
    parts = "vicuna-7b-v1.5 (language model) and clip-vit-large-patch14-336 (vision tower)"
    assert (start.system, start.base, start.is_licence_known) == ("vip_llava", f"new parts: {parts}", True)
    rows = {row["work"]: row["licence"] for row in start.values["chain"]}
    assert rows["vicuna-7b-v1.5"] == "LLaMA 2 Community Licence"
    assert rows["clip-vit-large-patch14-336"] == "MIT"
    other = load_recipe("vip_llava_stage1", ["parts.language_model=me/my-model"])
    start = read_start(other)
    assert not start.is_licence_known
    assert "not known" in next(row["licence"] for row in start.values["chain"] if row["work"] == "my-model")
    assert read_start(other, "vip-llava-7b").is_licence_known


@pytest.mark.parametrize(("card", "message"), [("lisa-99", "no card for 'lisa-99'"), ("gsva-7b-pt", "lisa-7b-v1")])
def test_a_wrong_card_is_refused_before_the_training(base, card, message):
    with pytest.raises(ConversionError, match=message):
        read_start(recipe(base), card)


def test_values_of_another_system_are_refused_before_the_training(base, tmp_path):
    (tmp_path / "own.yaml").write_text("system: gsva\n")
    with pytest.raises(ConversionError, match="`system: gsva`, this is lisa"):
        read_start(recipe(base), str(tmp_path / "own.yaml"))
