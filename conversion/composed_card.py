"""What the card of a composed model says: its parts, their licences, and that it has learned nothing yet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml

from .card import CARDS, known_bases
from .locations import hub_repository, location_name
from .systems import PublishedSystem


_PARTS = "parts.yaml"
# What a licence implies for whatever holds the part, beside its row in the table of licences.
_TERMS = {
    "license": "other",
    "license_name": None,
    "license_link": None,
    "full_weights": "forbidden",
    "reason": "",
    "licence_note": "",
}
_UNKNOWN = {
    "reason": "it is not known under which licences all of its parts are",
    "licence_note": "Find out under which licences all parts are before passing it on.",
}
_NOT_STATED = "not known to reasonseg; that of whoever published it"
_NOTHING = (
    "It has learned nothing yet: what connects these parts began with random numbers, and what the model draws or "
    "says of an image means nothing before it was trained."
)
_OWN_CODE = {"part": "code of this repository", "work": "reasonseg", "licence": "Apache-2.0"}


def composed_values(system: PublishedSystem, options: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a card for a model made of parts.

    Args:
        system (`PublishedSystem`): Which model it is.
        options (`Mapping[str, Any]`): What it is made of: the options of its composition by name.

    Returns:
        `dict[str, Any]`: As `read_card_values` takes it. Where the licence of a part is not known, the card says so,
        and the repository is not published without values that say more.
    """
    composition = system.composition
    parts = {role: options[name] for name, role in composition.parts.items() if options.get(name) is not None}
    names = {role: location_name(location) for role, location in parts.items()}
    known = {role: _find(name) for role, name in names.items()}
    language = next(iter(known.values()))
    base = language.get("base", "unknown") if all(known.values()) else "unknown"
    terms = _TERMS | known_bases()[base] | language.get("terms", {})
    works = [
        {"part": role, "work": name, "licence": known[role].get("licence", _NOT_STATED)}
        for role, name in names.items()
    ]
    made_of = name_parts(system, options)
    learned = f" {_NOTHING}" if composition.needs_training else ""
    return {
        "system": system.name,
        "source": f"Put together with reasonseg of {made_of}.{learned}",
        "converted": False,
        "untrained": composition.needs_training,
        "training": f"What {made_of} learned before is for those to say who published them.",
        "evaluation": "Nobody has stated a score.",
        "base": base,
        "system_chain": False,
        **{name: terms[name] for name in _TERMS},
        **(_UNKNOWN if base == "unknown" else {}),
        "base_models": [repo for location in parts.values() if (repo := hub_repository(location)) is not None],
        "datasets": [],
        "weights_licence": "",
        "chain": [_OWN_CODE, *works],
    }


def name_parts(system: PublishedSystem, options: Mapping[str, Any]) -> str:
    """The parts in words, such as "vicuna-7b-v1.5 (language model) and clip-vit-large-patch14-336 (vision tower)"."""
    roles = system.composition.parts.items()
    named = [f"{location_name(options[name])} ({role})" for name, role in roles if options.get(name) is not None]
    return " and ".join(filter(None, [", ".join(named[:-1]), *named[-1:]]))


def _find(name: str) -> dict[str, Any]:
    """What is known of a part that is called so."""
    return next((entry for entry in _known_parts() if re.search(entry["name"], name, re.IGNORECASE)), {})


@cache
def _known_parts() -> list[dict[str, Any]]:
    return yaml.safe_load((CARDS / _PARTS).read_text(encoding="utf-8"))


__all__ = ["composed_values", "name_parts"]
