"""What a checkpoint is and which commands run it, read from its configuration before any weight."""

from dataclasses import dataclass

from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

from .conversion.systems import ATTEND_AND_SEGMENT, SYSTEMS, VIP_LLAVA, is_of_transformers
from .loading import load_pretrained


class WrongModelError(ValueError):
    """A model is of a kind that cannot do what was asked for. The message names the commands that run it."""


@dataclass(frozen=True)
class ModelKind:
    """
    Args:
        name (`str`): Name of its system, or `model_type` of a model that is not one of this package's.
        does (`str`): What such models do, after "such models".
        commands (`tuple[str, ...]`): Commands that run it, the one it is made for first.
    """

    name: str
    does: str
    commands: tuple[str, ...]


def model_kind(model: str, revision: str | None = None, trust_remote_code: bool = False) -> ModelKind | None:
    """Read the kind of a checkpoint, a folder or a name on the Hub, off its configuration; None where its kind is
    defined by code of its own."""
    config = load_pretrained(AutoConfig, model, revision=revision, trust_remote_code=trust_remote_code)
    for system in SYSTEMS.values():
        if system.model_type == config.model_type:
            return ModelKind(system.name, system.does, system.commands)
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        # Any vision-language model is run as this one is.
        return ModelKind(config.model_type, VIP_LLAVA.does, VIP_LLAVA.commands)
    if not is_of_transformers(type(config)):
        return None
    return ModelKind(config.model_type, "are none that this package runs", ())


def check_model_fits(
    command: str,
    model: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    asked: str | None = None,
) -> ModelKind | None:
    """
    Args:
        command (`str`): `segment`, `mask`, `ask` or `chat`: what to do with the model.
        model, revision, trust_remote_code: As `from_pretrained` takes them.
        asked (`str`, *optional*): What asks for it in the words of the user; `reasonseg` and the command by default.

    Returns:
        [`ModelKind`], *optional*: What the model is, where that is known.

    Raises:
        WrongModelError: Such models cannot do that.
    """
    kind = model_kind(model, revision, trust_remote_code)
    if kind is None or command in kind.commands or (command == "chat" and kind.commands):
        return kind
    fitting = " and ".join(f"`reasonseg {one} --model {model}`" for one in kind.commands)
    raise WrongModelError(
        f"{asked or f'reasonseg {command}'} cannot run {str(model)!r}: it is of the kind {kind.name}, and such models "
        f"{kind.does}. {f'Commands that fit it: {fitting}. ' if fitting else ''}{_where_from(command)}"
    )


def _where_from(command: str) -> str:
    """Where models that a command runs come from."""
    makers = [system for system in SYSTEMS.values() if system.conversion is not None and command in system.commands]
    titles = " or ".join(system.title for system in makers)
    names = ", ".join(system.command_name for system in makers)
    return {
        "segment": f"Models that draw masks come from `reasonseg convert`: {names}. Of these, "
        f"{ATTEND_AND_SEGMENT.command_name} makes one of any vision-language model.",
        "mask": f"Masking takes an {titles} checkpoint; `reasonseg convert {names} --help` shows how to make one.",
        "chat": "Any model of this package or of transformers' image-text-to-text kind can be talked with.",
        "ask": "Any model of transformers' image-text-to-text kind can be asked.",
    }[command]


__all__ = ["ModelKind", "WrongModelError", "check_model_fits", "model_kind"]
