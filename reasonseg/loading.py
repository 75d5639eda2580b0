"""Load other people's checkpoints: their code runs only if the user asks for it, and their sizes are checked.

Everything in this package that reads a checkpoint through transformers goes through here. So do the tables that name
classes and functions as `module:name`, to import them when they are first used.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any


# What leads from a config to Python code.
CODE_FIELDS = ("auto_map", "custom_pipelines")
_MAX_CONFIG_BYTES = 8_000_000
_MOST_LAYERS = 1000
# Lists with a number of layers for every stage, not of layers by their number.
_COUNTS = re.compile(r"(?:depths?|blocks?|(?:blocks|layers)_per_\w+)$")
# Far above every published model, and low enough that no machine is kept busy. The first rule that fits a name counts;
# counts of layers may be negative where a config counts from the last one.
_BOUNDS = tuple(
    (re.compile(pattern), low, high)
    for pattern, low, high in (
        (r"(?:^|_)(?:model_max_length|max_length|token_ids?|seed)$", None, None),
        (r"vocab_size", 0, 1 << 26),
        (r"(?:pixels|edge|max_position_embeddings)$", 0, 1 << 28),
        (r"(?:^|_)(?:hidden|patch)_size$", 1, 1 << 20),
        (r"(?:size|dims?|channels|width|height|features|rank)(?:_\w+)?$", -1, 1 << 22),
        (r"_heads?(?:_per_\w+)?$", 1, 1 << 12),
        (r"(?:^|_)(?:layers?|depths?|blocks?)(?:_per_\w+)?$", -_MOST_LAYERS, _MOST_LAYERS),
        (r"experts$", 0, 1 << 16),
        (r"labels$", 0, 100_000),
        (r"", -(1 << 31), 1 << 31),
    )
)


def import_object(reference: str) -> Any:
    """Import what `module:name` names.

    Args:
        reference (`str`): Such as `"reasonseg.training.image_folder:ImageFolder"`.
    """
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def load_pretrained(
    kind: Any, source: str | os.PathLike | None, *, trust_remote_code: bool = False, **options: Any
) -> Any:
    """`kind.from_pretrained(source)`, with the repository's own code only where the caller says so.

    Args:
        kind: A class with `from_pretrained`.
        source (`str` or `os.PathLike`, *optional*): A folder, or a name on the Hub; `None` where the options hold
            everything.
        trust_remote_code (`bool`): Whether the user wants the repository's code to run.
        options: Further arguments of `from_pretrained`.

    Raises:
        ValueError: The folder's `config.json` states a size that no model has.
    """
    trusted = trust_remote_code is True
    if source is not None and not trusted:
        _check_folder(Path(source))
    with code_stays_off():
        return kind.from_pretrained(source, trust_remote_code=trusted, **options)


def load_pipeline(task: str, *, model: str, trust_remote_code: bool = False, **options: Any) -> Any:
    """`transformers.pipeline`, with the repository's own code only where the caller says so; see `load_pretrained`."""
    from transformers import pipeline

    trusted = trust_remote_code is True
    if not trusted:
        _check_folder(Path(model))
    with code_stays_off():
        return pipeline(task, model=model, trust_remote_code=trusted, **options)


def without_weights(kind: Any, config: Any, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """A model of `kind`, an Auto class, as `config` describes it, on the meta device; see `load_pretrained`."""
    import torch

    with code_stays_off(), torch.device("meta"):
        return kind.from_config(config, trust_remote_code=trust_remote_code is True)


@contextmanager
def code_stays_off() -> Iterator[None]:
    """Within, transformers raises an error where it would ask at the terminal whether to run a repository's code.

    It asks wherever `trust_remote_code` was left out, also deep inside: for the parts that a model is built of, each
    of which may name code in its own part of `config.json`.
    """
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def find_absurd_number(config: Mapping[str, Any]) -> str | None:
    """Name the first number of a config, or of one inside it, that no model has.

    A model of a thousand million layers keeps the machine busy before a weight is read, even without memory.

    Args:
        config (`Mapping[str, Any]`): What a JSON file holds.

    Returns:
        `str`, *optional*: The name, the value, and what is allowed.
    """
    open_ones: list[tuple[str, Any]] = [("", config)]
    while open_ones:
        name, value = open_ones.pop()
        if isinstance(value, Mapping):
            open_ones += [(f"{name}.{field}".lstrip("."), inner) for field, inner in value.items()]
            continue
        numbers = value if isinstance(value, list) else [value]
        whole = [number for number in numbers if isinstance(number, int) and not isinstance(number, bool)]
        if isinstance(value, list):
            open_ones += [(name, inner) for inner in value if isinstance(inner, list | Mapping)]
        low, high = _bounds(name.rpartition(".")[2])
        if low is None:
            continue
        if odd := [number for number in whole if not low <= number <= high]:
            return f"{name}={_shown(odd[0])}; a whole number from {low} to {high} is expected"
        if _COUNTS.search(name) and sum(whole) > _MOST_LAYERS:
            return f"{sum(whole)} layers as {name}; at most {_MOST_LAYERS} are expected"
    return None


def _bounds(name: str) -> tuple[int | None, int | None]:
    return next((low, high) for pattern, low, high in _BOUNDS if pattern.search(name))


def _shown(number: int) -> str:
    return str(number) if abs(number) < 10**18 else "a number of more than 18 digits"


def _check_folder(folder: Path) -> None:
    """Look at a folder's `config.json`; what is not a folder, or cannot be read, is left to transformers."""
    path = folder / "config.json"
    try:
        if not path.is_file() or path.stat().st_size > _MAX_CONFIG_BYTES:
            return
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(config, Mapping) and (cause := find_absurd_number(config)) is not None:
        raise ValueError(f"{path} states {cause}. Download it again, or get the model from its original publisher.")


__all__ = [
    "CODE_FIELDS",
    "code_stays_off",
    "find_absurd_number",
    "import_object",
    "load_pipeline",
    "load_pretrained",
    "without_weights",
]
