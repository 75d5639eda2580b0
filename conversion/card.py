"""The model card: one template, the values of a system, of a checkpoint, and of the base it inherits terms from."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig

from .errors import ConversionError
from .repository_code import published_code


# In a checkout the folder lies beside this one; installed, it is the sub-package of the same name.
CARDS = Path(__file__).resolve().parents[1] / "model_cards"
REPO_PLACEHOLDER, REVISION_PLACEHOLDER = "path/or/name/of/this/repository", "main"
_TEMPLATE = "card.md.jinja"
_BASES, _PARTS = "bases", "parts"
_VALUES_FILE = (".yaml", ".yml")
# The card's own keys in the metadata, by which a repository says which values it was made with (the name of known
# ones, or what stood in a file), and how it was trained since.
_CARD_KEY, _VALUES_KEY, _TRAININGS_KEY = "reasonseg_card", "reasonseg_values", "reasonseg_trainings"
# What a values file may say. `base` is a key of bases.yaml, `full_weights` as explained there. `system_chain: false`
# leaves out what the system's own values say of the originals' parts. `untrained: true`: nothing was learned before
# the trainings of the card.
_FIELDS = {
    *(
        "system",
        "title",
        "source",
        "converted",
        "untrained",
        "summary",
        "training",
        "evaluation",
        "limits",
        "citation",
        "example",
    ),
    *("base", "base_models", "chain", "system_chain", "full_weights", "reason", "weights_licence", "licence_note"),
    *("license", "license_name", "license_link", "library_name", "pipeline_tag", "auto_class", "custom_code"),
    *("tags", "datasets", "results", "results_source"),
}
_CHAIN_ROW = {"part", "work", "licence"}
_PERMISSIONS = ("allowed", "forbidden")
_NOT_SCORED = "No score was measured on these weights, and none of what they were trained from holds for them."
_PINNED_LINES = (
    re.compile(r'^(repo = ")[^"\n]*("\nrevision = ")([^"\n]*)(")$', re.MULTILINE),
    re.compile(r"^(hf download )\S+( --revision )(\S+)( .*)$", re.MULTILINE),
)


@dataclass(frozen=True)
class Permission:
    """Whether the licence chain lets full weights be published.

    Args:
        allowed (`bool`): Whether it does.
        reason (`str`): Why not; empty where it does.
    """

    allowed: bool
    reason: str


Values = str | Mapping[str, Any]
"""What says what a card holds: the name of a known checkpoint, the path of a values file, or what stands in one."""


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


def read_card_values(name: Values, system: str | None = None) -> dict[str, Any]:
    """Merge the values of a base, a system and a checkpoint; the more special ones win, licence chains are joined, of
    which a checkpoint's rows take the place of the system's for the same part, but for data.

    Args:
        name (`str` or `Mapping[str, Any]`): Name of a checkpoint in any letter case, path of a values file of one's
            own (`.yaml`), or what stands in one.
        system (`str`, *optional*): What to describe when there is no such checkpoint, such as `"lisa"`.

    Raises:
        ConversionError: Neither is known, or the file is not a values file.
    """
    own = _read_own(name, system)
    system = own.get("system", system)
    general = _read(CARDS / f"{system}.yaml")
    base_name = own.get("base", general["base"])
    base = _read(CARDS / f"{_BASES}.yaml")[base_name]
    with_system = base.get("system_chain", True) and own.get("system_chain", True)
    own_parts = {row["part"] for row in own.get("chain", [])} - {"data"}
    of_system = [row for row in general["chain"] if row["part"] not in own_parts] if with_system else []
    chain = [*of_system, *own.get("chain", [])]
    # The code first, then what the language model inherits, then the rest.
    chain = chain[:1] + base["chain"] + chain[1:]
    values = base | general | own | {"system": system, "chain": chain, "base": base_name}
    return {"base_models": [], "results": [], "licence_note": "", "converted": True} | values


def known_bases() -> dict[str, dict[str, Any]]:
    """What `base:` of a values file may be, and what each implies."""
    return _read(CARDS / f"{_BASES}.yaml")


def publishing_permission(values: dict[str, Any]) -> Permission:
    """Whether full weights may be published, by the licence chain of the values."""
    allowed = values.get("full_weights") == "allowed"
    return Permission(allowed, "" if allowed else values.get("reason", "its licence chain is unknown"))


def render_card(
    system: str,
    name: Values,
    config: PreTrainedConfig | None = None,
    dtype: torch.dtype | None = None,
    form: str = "full",
    trainings: Sequence[Mapping[str, Any]] = (),
    repo: Path | None = None,
    measured: Sequence[EvalResult] = (),
) -> str:
    """Render README.md.

    Args:
        system (`str`): A name in `SYSTEMS`, such as `"lisa"` or `"attend_and_segment"`.
        name (`str` or `Mapping[str, Any]`): See `read_card_values`. For the name of an unknown checkpoint the card
            says what is known about the system.
        config (`PreTrainedConfig`, *optional*): The model's config; where it is a composed one its sizes are shown.
        dtype (`torch.dtype`, *optional*): Type of the vision-language model.
        form (`str`, *optional*, defaults to `"full"`): `"full"`, or `"trained"` for a repository without the base.
        trainings (`Sequence[Mapping[str, Any]]`, *optional*): How it was trained since it was what `name` describes,
            in this order, each with `"base"` (`None` for random weights), `"data"`, `"data_licence"` and the
            `"recipe"`.
        repo (`Path`, *optional*): The repository, where its code lies already: the card says what each file does.
        measured (`Sequence[EvalResult]`, *optional*): What `reasonseg evaluate` measured on these very weights.

    Returns:
        `str`: Metadata and text, the same for the same arguments.
    """
    values = read_card_values(name, system)
    if trainings:
        chain = list(values["chain"])
        for run in trainings:
            row = {"part": "data", "work": run["data"], "licence": run["data_licence"]}
            chain += [row] if row not in chain else []
        values |= {"results": [], "evaluation": _NOT_SCORED, "chain": chain}
    elif values.get("untrained"):
        values["title"] += " (untrained)"
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
        datasets=values.get("datasets") or None,
        model_name=values["title"] if values["results"] or measured else None,
        eval_results=[*_eval_results(values), *measured] or None,
        **_origin(name, system),
        **({_TRAININGS_KEY: [dict(run) for run in trainings]} if trainings else {}),
    )
    card = ModelCard.from_template(
        data,
        template_path=str(CARDS / _TEMPLATE),
        **values,
        form=form,
        # what it was converted from is named there, and is not a part of the base
        parts=[repo for repo in values["base_models"] if repo not in values["source"]],
        sizes=_sizes(config, dtype),
        code={} if repo is None else published_code(repo),
        trainings=[run | {"recipe": _as_yaml(run["recipe"])} for run in trainings],
        repo_placeholder=REPO_PLACEHOLDER,
        revision_placeholder=REVISION_PLACEHOLDER,
    )
    return str(card).rstrip() + "\n"


def card_name(readme: str) -> str | None:
    """The name of the values a README.md was made with; `None` if it does not say."""
    name = _metadata(readme).get(_CARD_KEY)
    return name if isinstance(name, str) else None


def card_values(readme: str) -> Values | None:
    """What a README.md was made with, as `read_card_values` takes it: a name or own values; `None` if it does not say.

    Never a path: what a card says must not make anything else be read.
    """
    own, name = _metadata(readme).get(_VALUES_KEY), card_name(readme)
    if isinstance(own, dict):
        return own
    return None if name is None or name.endswith(_VALUES_FILE) else name


def card_trainings(readme: str) -> list[dict[str, Any]]:
    """How the model of a README.md was trained with this package, as `render_card` takes it."""
    runs = _metadata(readme).get(_TRAININGS_KEY)
    known = {"base", "data", "data_licence", "recipe"}
    return [run for run in runs if isinstance(run, dict) and set(run) == known] if isinstance(runs, list) else []


def card_results_of(readme: str) -> list[EvalResult]:
    """What a README.md says was measured by `reasonseg evaluate`, as `render_card` takes it."""
    if not readme.lstrip().startswith("---"):
        return []
    try:
        results = ModelCard(readme, ignore_metadata_errors=True).data.eval_results
    except (ValueError, yaml.YAMLError):
        return []
    return [result for result in results or [] if "protocol" in (result.metric_args or {})]


def read_card(folder: Path) -> str:
    """README.md of a repository; empty where there is none.

    Raises:
        ConversionError: It cannot be read.
    """
    path = folder / "README.md"
    if not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"The card cannot be read ({error}).", path=path, next_step="Write it again.") from error


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


def pinned_repository(readme: str) -> str | None:
    """The repository that a card's usage snippet loads; `None` where the card was never published."""
    snippet = re.search(r'^repo = "([^"\n]+)"$', readme, re.MULTILINE)
    return None if snippet is None or snippet[1] == REPO_PLACEHOLDER else snippet[1]


def _belongs(card: str, system: str) -> bool:
    return card.startswith(f"{system.replace('_', '-')}-")


def _metadata(readme: str) -> dict[str, Any]:
    if not readme.lstrip().startswith("---"):
        return {}  # of which ModelCard would warn
    try:
        return ModelCard(readme, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError):
        return {}


def _origin(name: Values, system: str) -> dict[str, Any]:
    """The metadata by which `card_values` finds the values again; nothing for an unknown checkpoint."""
    if not isinstance(name, str):
        return {_VALUES_KEY: dict(name)}
    if name.endswith(_VALUES_FILE):
        return {_VALUES_KEY: {"system": system, **_read_own(name, system)}}
    known = name.lower() in known_cards() and _belongs(name.lower(), system)
    return {_CARD_KEY: name.lower()} if known else {}


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).rstrip()


def _read_own(name: Values, system: str | None) -> dict[str, Any]:
    """The values of one checkpoint, with its system; empty for an unknown checkpoint of a known system."""
    if not isinstance(name, str):
        return _check_own(dict(name), system, None)
    if name.endswith(_VALUES_FILE):
        return _check_own(_read(Path(name)), system, name)
    systems = [known for known in _systems() if _belongs(name.lower(), known)]
    if name.lower() in known_cards() and (system is None or system in systems):
        return _read(CARDS / f"{name.lower()}.yaml") | {"system": systems[0]}
    if system not in _systems():
        raise ConversionError(f"There is no card for {name!r}.", next_step=f"Known are {', '.join(known_cards())}.")
    return {}


def _check_own(own: dict[str, Any], system: str | None, path: str | None) -> dict[str, Any]:
    """Refuse own values that no card can be made of.

    Raises:
        ConversionError: Says which field, and what it may be.
    """

    def refuse(cause: str, next_step: str) -> ConversionError:
        return ConversionError(cause if path else f"The card's own values: {cause}", path=path, next_step=next_step)

    if own.get("system", system) not in _systems():
        raise refuse(f"The values need `system:`, one of {', '.join(_systems())}.", "Add it.")
    if system is not None and own.get("system", system) != system:
        raise refuse(f"The values are for `system: {own['system']}`, this is {system}.", "Pass values of its system.")
    if unknown := sorted(str(field) for field in own.keys() - _FIELDS):
        raise refuse(f"Unknown fields {', '.join(unknown)}.", f"Known are {', '.join(sorted(_FIELDS))}.")
    if own.get("base", "unknown") not in known_bases():
        raise refuse(f"The values name the base {own['base']!r}.", f"Known are {', '.join(known_bases())}.")
    if own.get("full_weights", _PERMISSIONS[0]) not in _PERMISSIONS:
        raise refuse(f"`full_weights` is {own['full_weights']!r}.", f"Write one of {', '.join(_PERMISSIONS)}.")
    chain = own.get("chain", [])
    if not isinstance(chain, list) or not all(isinstance(row, dict) and set(row) == _CHAIN_ROW for row in chain):
        raise refuse(
            "`chain` is not a list of rows.", "Write each as `{part: data, work: my photographs, licence: mine}`."
        )
    return own


def _systems() -> list[str]:
    return sorted(
        file.stem for file in CARDS.glob("*.yaml") if "-" not in file.stem and file.stem not in (_BASES, _PARTS)
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = copy.deepcopy(_parsed(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConversionError(
            f"The card's values cannot be read ({error}).", path=path, next_step="Check the file."
        ) from error
    if not isinstance(values, dict):
        raise ConversionError("The card's values are not a mapping.", path=path, next_step="Check the file.")
    return values


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """What YAML says; one card asks for the same files again and again, and parsing them takes most of its time."""
    return yaml.safe_load(text)


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
