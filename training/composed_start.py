"""The new model of parts that a recipe starts from: made once, in the folder of the run."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..atomic_files import write_whole
from .recipe import Recipe, RecipeError
from .trainer import training_arguments


logger = logging.getLogger(__name__)

COMPOSED, COMPOSED_OF = "composed", "composed.json"
Compose = Callable[[Mapping[str, Any], Path], Any]
"""Makes a complete repository of the `parts` of a recipe in a folder."""


def composed_start(recipe: Recipe, out: Path, compose: Compose | None) -> Path:
    """
    The model of `recipe.parts`: `out/composed`, which the first of all processes makes while the others wait. What is
    there is taken again if it was made of the same parts; `out/composed.json` says of which.

    Args:
        recipe ([`Recipe`]): Has `parts`. Their `seed` is the recipe's, if they name none.
        out (`Path`): Folder of the run.
        compose (`Callable`, *optional*): Makes it, whole or not at all.

    Returns:
        `Path`: A repository.

    Raises:
        RecipeError: There is nothing that could make it, or one of other parts is there.
    """
    if compose is None:
        raise RecipeError("`parts` need a function that makes a model of them; pass `compose`, as the command does.")
    parts = {"seed": recipe.seed, **{name: value for name, value in recipe.parts.items() if value is not None}}
    arguments = training_arguments(recipe, out)
    with arguments.main_process_first(local=arguments.save_on_each_node, desc="composing the model"):
        _compose_once(parts, out, compose)
    return out / COMPOSED


def _compose_once(parts: Mapping[str, Any], out: Path, compose: Compose) -> None:
    repo, record = out / COMPOSED, out / COMPOSED_OF
    if repo.exists():
        made_of = _read(record)
        if made_of != parts:
            raise RecipeError(
                f"{repo} was made of {_in_words(made_of)}; the recipe names {_in_words(parts)}. Choose another "
                "folder, or remove this one to begin again."
            )
        logger.info("Starting from %s, which was made of the same parts.", repo)
        return
    out.mkdir(parents=True, exist_ok=True)
    # First, so that nothing stands there that does not say of what it is.
    write_whole(record, json.dumps(parts, indent=1) + "\n")
    compose(parts, repo)


def _read(record: Path) -> Any:
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _in_words(parts: Any) -> str:
    if not isinstance(parts, dict):
        return "parts that nobody has written down"
    return ", ".join(f"{name} {value}" for name, value in sorted(parts.items()))


__all__ = ["COMPOSED", "COMPOSED_OF", "composed_start"]
