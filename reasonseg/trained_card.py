"""The card of what `reasonseg train` writes: from the card of what it starts from, and its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HTTPError  # of whichever client this release of huggingface_hub is built on
from transformers import AutoConfig

from .atomic_files import write_whole
from .conversion.card import (
    Values,
    card_trainings,
    card_values,
    check_card,
    pinned_repository,
    read_card,
    read_card_values,
    render_card,
)
from .conversion.compose import check_parts
from .conversion.composed_card import composed_values, name_parts
from .conversion.systems import GSVA, SYSTEMS
from .loading import load_pretrained
from .model_names import EMBEDDED_MODEL
from .training.recipe import Recipe, RecipeError, describe_recipe, require_model


CARD = "README.md"
_TABLETOP_CARD = "gsva-tabletop"
_NOT_STATED = "not stated; that of whoever owns it"


@dataclass(frozen=True)
class Start:
    """What a training starts from, as far as its card is concerned.

    Args:
        system (`str`): Such as `"lisa"`.
        values (`str` or `Mapping[str, Any]`): What describes it, as `read_card_values` takes it.
        base (`str`, *optional*): Its name; `None` for random weights.
        trainings (`tuple[dict, ...]`): How it was trained with this package before.
    """

    system: str
    values: Values
    base: str | None
    trainings: tuple[dict[str, Any], ...] = ()

    @property
    def is_licence_known(self) -> bool:
        """`bool`: Whether its card says what may be done with the weights."""
        return read_card_values(self.values, self.system)["base"] != "unknown"


def read_start(recipe: Recipe, card: str | None = None) -> Start:
    """Find what describes the base of a recipe, before anything is trained.

    Args:
        recipe ([`Recipe`]): What will be done.
        card (`str`, *optional*): Name of a known checkpoint or path of a values file (`.yaml`), which go before what
            the base's own card says.

    Raises:
        ConversionError: `card` is neither, or describes another system.
        RecipeError: The recipe names no base, or one that cannot be found or is a model of another kind.
    """
    model = require_model(recipe)
    if model == "tabletop":
        start = Start(GSVA.name, card or _TABLETOP_CARD, None)
    elif recipe.parts is not None:
        system = check_parts(recipe.parts)
        values = card or composed_values(system, recipe.parts)
        start = Start(system.name, values, f"new parts: {name_parts(system, recipe.parts)}")
    else:
        system, readme = _system(model), _readme(model)
        values = card or card_values(readme) or system
        start = Start(system, values, _base_name(model, readme), tuple(card_trainings(readme)))
    if card is not None:
        check_card(start.system, card)
    read_card_values(start.values, start.system)
    return start


def write_trained_card(repo: Path, recipe: Recipe, start: Start) -> None:
    """Write README.md of what was trained.

    Args:
        repo (`Path`): The finished repository.
        recipe ([`Recipe`]): What was done.
        start ([`Start`]): What it was done to.
    """
    training = {
        "base": start.base,
        "data": recipe.kind.names(recipe.data),
        "data_licence": recipe.kind.licence or _NOT_STATED,
        "recipe": describe_recipe(recipe),
    }
    config = load_pretrained(AutoConfig, repo)
    trainings = [*start.trainings, training]
    text = render_card(start.system, start.values, config, config.dtype, trainings=trainings, repo=repo)
    write_whole(repo / CARD, text)


def _system(model: str) -> str:
    """The system of a folder or a repository on the Hub."""
    try:
        model_type = load_pretrained(AutoConfig, model).model_type
    except (OSError, ValueError) as error:
        where = "The folder" if Path(model).is_dir() else "There is no such folder here, and a repository on the Hub"
        raise RecipeError(
            f"model={model} cannot be used. {where} cannot be loaded: {error} Set another with --set model=..."
        ) from error
    known = {system.model_type: name for name, system in SYSTEMS.items()}
    if model_type not in known:
        raise RecipeError(
            f"{model} has the model_type {model_type!r}; {', '.join(sorted(known))} can be trained. Convert it first."
        )
    return known[model_type]


def _readme(model: str) -> str:
    if Path(model).is_dir():
        return read_card(Path(model))
    try:
        return read_card(Path(hf_hub_download(model, CARD)).parent)
    except (HTTPError, OSError):  # it has none, or none that can be read without a network
        return ""


def _base_name(model: str, readme: str) -> str:
    """What people know the base by: its name on the Hub where it has one, else that of its folder."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    if folder.resolve() == EMBEDDED_MODEL.resolve():
        return "the model that comes with reasonseg"
    return pinned_repository(readme) or folder.resolve().name


__all__ = ["Start", "read_start", "write_trained_card"]
