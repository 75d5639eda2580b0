"""Training described by a YAML file: data, what learns, losses, optimizer and the Trainer's own arguments."""

import logging
import re
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from ..data.request_folder import METADATA_FILE
from ..loading import import_object
from .data_kinds import DATA_KINDS, FIRST_STAGES, DataKind, FirstStage
from .trained_parameters import LORA_TARGETS


logger = logging.getLogger(__name__)

RECIPES = Path(__file__).parent / "recipes"


class _RecipeLoader(yaml.SafeLoader):
    """YAML whose numbers may be written as `3e-3`, which PyYAML, by YAML 1.1, reads as text."""


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class RecipeError(ValueError):
    """A recipe that cannot be followed; the message says what is wrong and what is allowed."""


@dataclass
class DataRecipe:
    """
    Args:
        kind (`str`): `tabletop` (drawn on the fly), `image_folder`, `lisa_mixture` (what LISA and GSVA learnt from),
            `ivm_mix` (for IVM), `regions` (for ViP-LLaVA and DiffLMM), or another of `data_kinds.DATA_KINDS`.
        path (`str`, *optional*): Folder of one split, or with `options` a file, for `image_folder`; the data root, for
            `lisa_mixture`; the JSON file, for `regions`.
        split (`str`): Split of `tabletop`.
        length (`int`): Scenes of `tabletop` in an epoch; every epoch draws new ones.
        requests_per_scene (`int`): Conversations about each scene.
        curriculum (`list[dict]`): Arguments of `make_requests` for the first epochs, one entry each.
        options (`dict`): Arguments of `make_requests` for all epochs; for `lisa_mixture` of `LisaMixture`, for
            `ivm_mix` of `IvmMixDataset`, for `regions` of `RegionDialogues`, for `image_folder` of
            `read_labelled_requests`, such as `format: coco`.
        collator (`dict`): For `lisa_mixture` arguments of `InstructionCollator`, for `regions` of `DialogueCollator`.
        group_by_modality_length (`bool`): For `regions`, batches of rows of about one length, with images or without,
            as [`ModalityLengthSampler`] orders them.
        sources (`list[dict]`): The parts of `ivm_mix`, each with the fields of `IvmMixSource`.
    """

    kind: str = "image_folder"
    path: str | None = None
    split: str = "train"
    length: int = 20_000
    requests_per_scene: int = 2
    curriculum: list[dict[str, Any]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)
    collator: dict[str, Any] = field(default_factory=dict)
    group_by_modality_length: bool = False


@dataclass
class LoraRecipe:
    """LoRA in the language model; see `peft.LoraConfig`. `targets` matches the names of modules that get adapters."""

    r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.05
    targets: str = LORA_TARGETS


@dataclass
class OptimizerRecipe:
    """Muon for hidden matrices beside AdamW; without it the Trainer's `optim` is used."""

    learning_rate: float = 1e-3
    muon_learning_rate: float = 3e-3
    weight_decay: float = 0.01


@dataclass
class GuidanceRecipe:
    """
    Where the language model should look; see [`AttentionGuidance`].

    Args:
        layer, heads, weight: Of the guidance to what slots name.
        landmark_layer (`int`, *optional*): Layer that is guided to what has to be found before; for `tabletop` only.
        word_weight (`float`): Weight of [`PatchGuidance`]; for `tabletop` only.
    """

    layer: int
    heads: int = 2
    weight: float = 1.0
    landmark_layer: int | None = None
    word_weight: float = 0.0

    @property
    def needs_scenes(self) -> bool:
        return self.landmark_layer is not None or self.word_weight > 0


@dataclass
class ValidationRecipe:
    """
    A benchmark that measures the model while it learns. The checkpoint of the best one is kept whatever
    `save_total_limit` says, and the finished repository has its weights.

    Args:
        dataset (`str`): Name of a benchmark of `reasonseg evaluate`, or the folder of one split.
        every (`int` or `str`): Steps between two measurements, or `epoch`. Checkpoints are written then.
        metric (`str`): Which of the benchmark's numbers decides, such as `giou`.
        greater_is_better (`bool`): Whether a larger number is a better one.
        data, images, annotations (`str`, *optional*): Where the benchmark's files are.
        split, protocol, scenes, limit, batch_size, max_new_tokens, rule: As of `reasonseg evaluate`.
        settings (`dict`, *optional*): The benchmark's own settings, those of `--set`.
    """

    dataset: str
    every: int | str = "epoch"
    metric: str = "giou"
    greater_is_better: bool = True
    data: str | None = None
    images: str | None = None
    annotations: str | None = None
    split: str | None = None
    protocol: str | None = None
    scenes: int | None = None
    limit: int | None = None
    batch_size: int | None = None
    max_new_tokens: int | None = None
    rule: str | None = None
    settings: dict[str, Any] | None = None

    def check(self, arguments: dict[str, Any]) -> None:
        """
        Raises:
            RecipeError: If `every` is neither steps nor `epoch`, or the Trainer's `arguments` say it otherwise.
        """
        is_steps = isinstance(self.every, int) and not isinstance(self.every, bool) and self.every > 0
        if not is_steps and self.every != "epoch":
            raise RecipeError(f"validation.every is {self.every!r}; it must be a number of steps, or epoch.")
        if said := sorted(_OF_VALIDATION & set(arguments)):
            raise RecipeError(
                f"arguments.{said[0]} does not go with `validation`, which sets it: checkpoints are written where the "
                "model is measured (validation.every), and the best one is kept."
            )


# Arguments of the Trainer that follow from `validation`.
_OF_VALIDATION = {
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "metric_for_best_model",
    "greater_is_better",
    "load_best_model_at_end",
    "save_only_model",
}


@dataclass
class Recipe:
    """
    Args:
        model (`str`, *optional*): A repo (folder or Hub id) to start from, or `tabletop` for the embedded model from
            scratch. A recipe that leaves it open, and names no `parts`, cannot be followed; see [`require_model`].
        data ([`DataRecipe`]): What to learn from.
        trained (`list[str]`, *optional*): Patterns of parameter names that learn in full; all if not given.
        lora ([`LoraRecipe`], *optional*): Adapters.
        first_stages (`dict[str, FirstStage]`): What is trained before, by the section that asks for it. In a file
            these sections stand beside the others: `towers` for `tabletop`, `dwsl` for `ivm_mix`.
        optimizer ([`OptimizerRecipe`], *optional*): Muon and AdamW.
        parts (`dict`, *optional*): Instead of `model`, a new one of these: the `system`, and the options of
            `reasonseg compose` by name, with underscores.
        validation ([`ValidationRecipe`], *optional*): What measures the model while it learns.
        learning_rates (`dict[str, float]`): Learning rates of parameters whose names match a pattern, where they
            differ from `arguments.learning_rate`.
        dtype (`str`): Number format the weights are trained in; `auto` is that of the repo.
        guidance ([`GuidanceRecipe`], *optional*): Additional loss on the language model's attention.
        score_steps (`int`): Steps of a last stage in which only the segmenter's IoU head learns.
        decision_loss_weight (`float`): Weight of the additional loss on `[SEG]` against `[REJ]`.
        mask_size (`int`, *optional*): Side in pixels of the mask targets; the size of the image if not given.
        attn_implementation (`str`, *optional*): As for `from_pretrained`.
        matmul_precision (`str`): As for `torch.set_float32_matmul_precision`.
        storage_dtype (`str`, *optional*): Number format of the finished weights; they load as they were trained.
        seed (`int`): Seed of everything that is random.
        arguments (`dict`): Fields of `transformers.TrainingArguments`.
    """

    data: DataRecipe
    model: str | None = None
    trained: list[str] | None = None
    lora: LoraRecipe | None = None
    first_stages: dict[str, FirstStage] = field(default_factory=dict)
    optimizer: OptimizerRecipe | None = None
    parts: dict[str, Any] | None = None
    validation: ValidationRecipe | None = None
    learning_rates: dict[str, float] = field(default_factory=dict)
    dtype: str = "auto"
    guidance: GuidanceRecipe | None = None
    score_steps: int = 0
    decision_loss_weight: float = 0.0
    mask_size: int | None = None
    attn_implementation: str | None = None
    matmul_precision: str = "highest"
    storage_dtype: str | None = None
    seed: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.data.kind not in DATA_KINDS:
            raise RecipeError(f"data.kind is {self.data.kind!r}; it must be one of {', '.join(DATA_KINDS)}.")
        self.kind.check(self)
        if not 0 <= self.seed < 2**32:
            raise RecipeError(f"seed is {self.seed}; it must be from 0 to {2**32 - 1}.")
        if self.parts is not None:
            _check_parts(self)
        for pattern, rate in self.learning_rates.items():
            if isinstance(rate, bool) or not isinstance(rate, (int, float)):
                raise RecipeError(f"learning_rates.{pattern} is {rate!r}; it must be a number.")
        if self.learning_rates and self.optimizer is not None:
            raise RecipeError("learning_rates are for the Trainer's own optimizer; leave out `optimizer`.")
        if self.data.group_by_modality_length and not self.kind.knows_lengths:
            raise RecipeError(f"data.group_by_modality_length is for rows of text; {self.data.kind} knows no lengths.")
        for stage in self.first_stages.values():
            stage.check(self)
        if self.validation is not None:
            self.validation.check(self.arguments)
        knows_scenes = self.kind.knows_scenes and self.model == self.data.kind
        if self.guidance is not None and self.guidance.needs_scenes and not knows_scenes:
            raise RecipeError(
                "guidance.landmark_layer and guidance.word_weight need to know what every patch shows; only "
                "`model: tabletop` with `data.kind: tabletop` does."
            )
        if self.lora is not None and self.trained is None:
            raise RecipeError("With lora, name in `trained` what learns in full ([] for nothing but the adapters).")

    @property
    def kind(self) -> DataKind:
        """How to learn from `data`."""
        return import_object(DATA_KINDS[self.data.kind])()


def _check_parts(recipe: Recipe) -> None:
    if not isinstance(recipe.parts, dict):
        raise RecipeError(f"parts must hold named fields, got {recipe.parts!r}.")
    if recipe.model:
        raise RecipeError(
            f"The recipe names a model ({recipe.model}) and `parts` of a new one; give one of them (--set parts=null "
            "to start from the model)."
        )
    if "system" not in recipe.parts:
        raise RecipeError("parts.system is missing: it says what is made of the parts, such as lisa.")


_SECTIONS = {
    "data": DataRecipe,
    "lora": LoraRecipe,
    "optimizer": OptimizerRecipe,
    "guidance": GuidanceRecipe,
    "validation": ValidationRecipe,
}


def _read_recipe(values: Any, name: str) -> Recipe:
    """A recipe of what its file holds: the sections of first stages stand beside its own."""
    if not isinstance(values, dict):
        raise RecipeError(f"{name} must hold named fields, got {values!r}.")
    known = sorted({*(own.name for own in fields(Recipe)), *FIRST_STAGES} - {"first_stages"})
    if unknown := sorted(set(values) - set(known)):
        raise RecipeError(f"{name} has unknown fields {unknown}; there are {known}.")
    if not {"model", "parts"} & set(values):
        raise RecipeError(f"{name} is incomplete: it names neither a model nor parts; `model: null` leaves it open.")
    stages = {
        stage: _read_section(import_object(entry), values[stage], f"{name}.{stage}")
        for stage, entry in FIRST_STAGES.items()
        if values.get(stage) is not None
    }
    own = {field_name: value for field_name, value in values.items() if field_name not in FIRST_STAGES}
    return _read_section(Recipe, {**own, "first_stages": stages}, name)


def _read_section(section_class: type, values: Any, name: str) -> Any:
    if not isinstance(values, dict):
        raise RecipeError(f"{name} must hold named fields, got {values!r}.")
    known = {own.name for own in fields(section_class)}
    if unknown := sorted(set(values) - known):
        raise RecipeError(f"{name} has unknown fields {unknown}; there are {sorted(known)}.")
    for own in fields(section_class):
        if own.type in (int, float) and isinstance(value := values.get(own.name), str):
            raise RecipeError(f"{name}.{own.name} is {value!r}; it must be a number.")
    values = {
        field_name: _read_section(_SECTIONS[field_name], value, f"{name}.{field_name}")
        if field_name in _SECTIONS and value is not None and section_class is not ValidationRecipe
        else value
        for field_name, value in values.items()
    }
    try:
        return section_class(**values)
    except TypeError as error:
        raise RecipeError(f"{name} is incomplete: {error}.") from error


def load_recipe(name_or_path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """
    Args:
        name_or_path: A YAML file, or the name of a recipe of this package.
        overrides: `key=value` with dots for nested fields (`arguments.max_steps=100`), values in YAML. A `model`
            takes the place of the recipe's `parts`; a data set of one's own, a folder with `metadata.jsonl`, that of
            LISA's mixture, and the recipe's validation on the originals' data is then left out.

    Raises:
        RecipeError: If there is no such recipe or it cannot be followed.
    """
    path = Path(name_or_path)
    if not path.is_file():
        path = RECIPES / f"{name_or_path}.yaml"
    if not path.is_file():
        known = sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))
        raise RecipeError(f"There is no file and no recipe {str(name_or_path)!r}; recipes: {', '.join(known)}.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_RecipeLoader)
        for override in overrides:
            key, separator, value = override.partition("=")
            if not separator:
                raise RecipeError(f"{override!r} is not an override; write key=value.")
            *parents, leaf = key.split(".")
            target = values
            for parent in parents:
                target = target.setdefault(parent, {})
            target[leaf] = yaml.load(value, Loader=_RecipeLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {error}") from error
    if isinstance(values, dict):
        _follow_overrides(values, [override.partition("=")[0] for override in overrides])
    return _read_recipe(values, path.stem)


def _follow_overrides(values: dict[str, Any], given: list[str]) -> None:
    """Leave out what an override takes the place of."""
    if "model" in given and values.get("model") and not any(key.split(".")[0] == "parts" for key in given):
        values.pop("parts", None)
    data = values.get("data")
    if "data.path" not in given or "data.kind" in given or not isinstance(data, dict):
        return
    folder = data.get("path")
    if data.get("kind") == "lisa_mixture" and isinstance(folder, str) and (Path(folder) / METADATA_FILE).is_file():
        logger.info("%s holds %s: it is read as a data set of one's own, image_folder.", folder, METADATA_FILE)
        values["data"] = {"kind": "image_folder", "path": folder}
        if not any(key.split(".")[0] == "validation" for key in given):
            values.pop("validation", None)


def require_model(recipe: Recipe) -> str | None:
    """The model that a recipe starts from; `None` for a new one of `parts`.

    Raises:
        RecipeError: The recipe leaves it to its user.
    """
    if not recipe.model and recipe.parts is None:
        raise RecipeError(
            "The recipe does not name the model to start from. Set it with --set model=..., a folder or a name on the "
            "Hub: a repository that `reasonseg convert`, `reasonseg compose` or an earlier training has written."
        )
    return recipe.model or None


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """What a recipe sets, for people: fields that differ from their defaults, and of files and folders only the name.

    Returns:
        `dict`: Nested as in a recipe's YAML file.
    """
    return _described(recipe)


def _described(section: Any) -> dict[str, Any]:
    described = {}
    for own in fields(section):
        value = getattr(section, own.name)
        if own.name == "first_stages":
            described |= {name: _described(stage) for name, stage in value.items()}
        elif value != (own.default_factory() if callable(own.default_factory) else own.default):
            described[own.name] = _described(value) if is_dataclass(value) else _without_places(value)
    return described


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_places(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_places(inner) for inner in value]
    is_place = isinstance(value, str) and (Path(value).is_absolute() or ("/" in value and Path(value).exists()))
    return Path(value).name if is_place else value


__all__ = [
    "DataRecipe",
    "GuidanceRecipe",
    "LoraRecipe",
    "OptimizerRecipe",
    "Recipe",
    "RecipeError",
    "ValidationRecipe",
    "describe_recipe",
    "load_recipe",
    "require_model",
]
