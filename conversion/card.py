"""The model card: one template, the values of a system, of a checkpoint, and of the base it inherits terms from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig

from .errors import ConversionError


# In a checkout the folder lies beside this one; installed, it is the sub-package of the same name.
CARDS = Path(__file__).resolve().parents[1] / "model_cards"
REPO_PLACEHOLDER, REVISION_PLACEHOLDER = "path/or/name/of/this/repository", "main"
_TEMPLATE = "card.md.jinja"
_BASES = "bases"
_VALUES_FILE = (".yaml", ".yml")
# The card's own key in the metadata, by which a repository says which values it was made with.
_CARD_KEY = "reasonseg_card"
_PINNED_LINES = (
    re.compile(r'^(repo = ")[^"\n]*("\nrevision = ")([^"\n]*)(")$', re.MULTILINE),
    re.compile(r"^(hf download )\S+( --revision )(\S+)( .*)$", re.MULTILINE),
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Permission:
    """Whether the licence chain lets full weights be published.

    Args:
        allowed (`bool`): Whether it does.
        reason (`str`): Why not; empty where it does.
    """

    allowed: bool
    reason: str


def known_cards() -> list[str]:
    """Names of the checkpoints that have values of their own."""
    return sorted(file.stem for file in CARDS.glob("*-*.yaml"))


def check_card(system: str, name: str) -> None:
    """Refuse the name of a checkpoint that has no values of its own.

    The path of a values file (`.yaml`) passes; `read_card_values` reads it.

    Raises:
        ConversionError: Names the checkpoints that have.
    """
    if name.endswith(_VALUES_FILE):
        return
    known = [card for card in known_cards() if _belongs(card, system)]
    if name.lower() not in known:
        names = f"Known are {', '.join(known)}" if known else "None is known by name"
        raise ConversionError(
            f"There is no card for {name!r}.", next_step=f"{names}; a values file of your own ends in .yaml."
        )


def read_card_values(name: str, system: str | None = None) -> dict[str, Any]:
    """Merge the values of a base, a system and a checkpoint; the more special ones win, licence chains are joined.

    Args:
        name (`str`): Name of a checkpoint in any letter case, or path of a values file of one's own (`.yaml`).
        system (`str`, *optional*): What to describe when there is no such checkpoint, such as `"lisa"`.

    Raises:
        ConversionError: Neither is known, or the file is no values file.
    """
    own = _read_own(name, system)
    system = own.get("system", system)
    general = _read(CARDS / f"{system}.yaml")
    base_name = own.get("base", general["base"])
    bases = _read(CARDS / f"{_BASES}.yaml")
    if base_name not in bases:
        raise ConversionError(
            f"The values of {name!r} name the base {base_name!r}.", next_step=f"Known are {', '.join(bases)}."
        )
    base = bases[base_name]
    chain = [*general["chain"], *own.get("chain", [])]
    # The code first, then what the language model inherits, then the rest.
    chain = chain[:1] + base["chain"] + chain[1:]
    values = base | general | own | {"chain": chain, "base": base_name}
    return {"base_models": [], "results": [], "licence_note": ""} | values


def publishing_permission(values: dict[str, Any]) -> Permission:
    """Whether full weights may be published, by the licence chain of the values."""
    allowed = values.get("full_weights") == "allowed"
    return Permission(allowed, "" if allowed else values.get("reason", "its licence chain is unknown"))


def render_card(
    system: str,
    name: str,
    config: PreTrainedConfig | None = None,
    dtype: torch.dtype | None = None,
    form: str = "full",
) -> str:
    """Render README.md.

    Args:
        system (`str`): `"lisa"`, `"gsva"`, `"ivm"`, `"vip_llava"`, `"difflmm"` or `"attend_and_segment"`.
        name (`str`): Name of the checkpoint, in any letter case. For an unknown one the card says what is known about
            the system.
        config (`PreTrainedConfig`, *optional*): The model's config; where it is a composed one its sizes are shown.
        dtype (`torch.dtype`, *optional*): Type of the vision-language model.
        form (`str`, *optional*, defaults to `"full"`): `"full"`, or `"trained"` for a repository without the base.

    Returns:
        `str`: Metadata and text, the same for the same arguments.
    """
    values = read_card_values(name, system)
    known = name.lower() in known_cards() and _belongs(name.lower(), system)
    tags = [*values["tags"], *(["custom_code"] if values["custom_code"] and form == "full" else [])]
    data = ModelCardData(
        library_name=values["library_name"],
        pipeline_tag=values["pipeline_tag"],
        tags=tags,
        language="en",
        license=values["license"],
        license_name=values.get("license_name"),
        license_link=values.get("license_link"),
        base_model=values["base_models"] or None,
        datasets=values.get("datasets"),
        model_name=values["title"] if values["results"] else None,
        eval_results=_eval_results(values) or None,
        **({_CARD_KEY: name.lower()} if known else {}),
    )
    card = ModelCard.from_template(
        data,
        template_path=str(CARDS / _TEMPLATE),
        **values,
        form=form,
        # what it was converted from is named there, and is no part of the base
        parts=[repo for repo in values["base_models"] if repo not in values["source"]],
        sizes=_sizes(config, dtype),
        repo_placeholder=REPO_PLACEHOLDER,
        revision_placeholder=REVISION_PLACEHOLDER,
    )
    return str(card).rstrip() + "\n"


def card_name(readme: str) -> str | None:
    """The name of the values a README.md was made with; `None` if it does not say."""
    try:
        return ModelCard(readme, ignore_metadata_errors=True).data.get(_CARD_KEY)
    except (ValueError, yaml.YAMLError):
        return None


def pin_card(readme: str, repo_id: str, revision: str) -> str:
    """Fill in the repository and the commit that the usage snippet loads.

    Args:
        readme (`str`): A card, pinned or not; text without the snippet comes back unchanged.
        repo_id (`str`): `"organisation/name"`.
        revision (`str`): A full commit hash.
    """
    for line in _PINNED_LINES:
        readme = line.sub(lambda match: f"{match[1]}{repo_id}{match[2]}{revision}{match[4]}", readme)
    return readme


def pinned_revision(readme: str) -> str | None:
    """The commit that a card's usage snippet loads; `None` where it is not pinned."""
    for line in _PINNED_LINES:
        if (match := line.search(readme)) and _COMMIT.fullmatch(match[3]):
            return match[3]
    return None


def _belongs(card: str, system: str) -> bool:
    return card.startswith(f"{system.replace('_', '-')}-")


def _read_own(name: str, system: str | None) -> dict[str, Any]:
    """The values of one checkpoint, with its system; empty for an unknown checkpoint of a known system."""
    if name.endswith(_VALUES_FILE):
        own = _read(Path(name))
        if own.get("system", system) not in _systems():
            raise ConversionError(
                f"The values need `system:`, one of {', '.join(_systems())}.", path=name, next_step="Add it."
            )
        return own
    systems = [known for known in _systems() if _belongs(name.lower(), known)]
    if name.lower() in known_cards() and (system is None or system in systems):
        return _read(CARDS / f"{name.lower()}.yaml") | {"system": systems[0]}
    if system not in _systems():
        raise ConversionError(f"There is no card for {name!r}.", next_step=f"Known are {', '.join(known_cards())}.")
    return {}


def _systems() -> list[str]:
    return sorted(file.stem for file in CARDS.glob("*.yaml") if "-" not in file.stem and file.stem != _BASES)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConversionError(
            f"The card's values cannot be read ({error}).", path=path, next_step="Check the file."
        ) from error
    if not isinstance(values, dict):
        raise ConversionError("The card's values are no mapping.", path=path, next_step="Check the file.")
    return values


def _eval_results(values: dict[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=values["pipeline_tag"],
            dataset_type=result["dataset"].lower(),
            dataset_name=result["dataset"],
            dataset_split=result.get("split"),
            metric_type=result["metric"].lower(),
            metric_name=result["metric"],
            metric_value=result["value"],
            metric_args={"measured_on": "the original weights, by their authors"},
            source_name=values["results_source"]["name"],
            source_url=values["results_source"]["url"],
        )
        for result in values["results"]
    ]


def _sizes(config: PreTrainedConfig | None, dtype: torch.dtype | None) -> dict[str, str]:
    """The table of a composed model's parts; empty for other models."""
    if not hasattr(config, "vlm_config") or not hasattr(config, "segmenter_config"):
        return {}
    vlm, text, segmenter = config.vlm_config, config.get_text_config(), config.segmenter_config
    stored = f", {str(dtype).removeprefix('torch.')}" if dtype is not None else ""
    sizes = {
        "language model": f"{text.num_hidden_layers} layers of {text.hidden_size}, {text.vocab_size} tokens{stored}"
    }
    side, tokens = getattr(vlm.vision_config, "image_size", None), getattr(vlm, "image_seq_length", None)
    if vlm.vision_config.model_type == "clip_vision_model" and side and tokens:
        sizes["vision tower"] = f"CLIP at {side} px, {tokens} image tokens"
    else:
        sizes["vision tower"] = f"that of {vlm.model_type}"
    if segmenter.model_type == "sam":
        encoder = segmenter.vision_config
        layers = f"{encoder.num_hidden_layers} layers of {encoder.hidden_size}"
        sizes["segmenter"] = f"SAM, {layers} at {encoder.image_size} px, float32"
    else:
        side = segmenter.prompt_encoder_config.image_size
        sizes["segmenter"] = f"{segmenter.model_type} at {side} px, float32"
    return sizes
