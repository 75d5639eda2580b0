"""What a model may be named by: a folder, a repository on the Hub, or `embedded`."""

import json
import os
import re
from pathlib import Path


EMBEDDED = "embedded"
EMBEDDED_MODEL = Path(__file__).parent / "embedded"
"""Folder of the model that runs where none is named."""
EMBEDDED_HELP = f"`{EMBEDDED}` is the model in this package"
_NEXT_STEP = (
    "Give a folder that `reasonseg convert` or `reasonseg train` has made, ORGANISATION/NAME on the Hub, or "
    f"{EMBEDDED} for the model in this package."
)


class UnknownModelError(ValueError):
    """The name of a model leads to none."""


def resolve_model(name: str, revision: str | None = None, option: str = "--model") -> str:
    """Turn the name of a model into what `from_pretrained` takes.

    Args:
        name: as it was given.
        revision: commit hash, tag or branch, of a repository on the Hub.
        option: where the name was given, for messages.

    Raises:
        UnknownModelError: it names no model: there is no such folder, it holds none, or the Hub does not have it.
    """
    if name == EMBEDDED:
        return str(EMBEDDED_MODEL)
    given, name = f"{option} {name!r}", os.path.expanduser(name)
    if os.path.isdir(name):
        _check_config(Path(name), Path(name) / "config.json", given)
    elif os.path.lexists(name):
        raise UnknownModelError(f"{given} is a file. {_NEXT_STEP}")
    elif not _may_be_on_the_hub(name):
        raise UnknownModelError(f"{given}: there is no such folder. {_NEXT_STEP}")
    else:
        _check_config(None, _config_on_the_hub(name, revision, given), given)
    return name


def _may_be_on_the_hub(name: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None


def _config_on_the_hub(name: str, revision: str | None, given: str) -> Path:
    """Fetch `config.json`, which loading needs anyway, and say what is wrong if that fails."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except LocalEntryNotFoundError:
        reason = "is not a folder here, and the Hub cannot be reached"
    except GatedRepoError:
        reason = "is a repository on the Hub whose terms you have to accept there first (then `hf auth login`)"
    except RepositoryNotFoundError:
        reason = "is not a folder here, and the Hub has no such repository that you may read"
    except RevisionNotFoundError:
        reason = f"is a repository on the Hub without the revision {revision!r}"
    except EntryNotFoundError:
        reason = "is a repository on the Hub without config.json, so it holds no model of transformers"
    except HFValidationError as error:
        reason = f"is not a folder here, nor a name that the Hub allows ({error})"
    except OSError as error:
        reason = f"is not a folder here, and the Hub cannot be reached ({error})"
    raise UnknownModelError(f"{given} {reason}. {_NEXT_STEP}")


def _check_config(folder: Path | None, config: Path, given: str) -> None:
    if folder is not None and not config.is_file():
        raise UnknownModelError(f"{given} holds no model: {_what_it_is(folder)}. {_NEXT_STEP}")
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnknownModelError(
            f"{given} holds no model: its config.json cannot be read ({error}). {_NEXT_STEP}"
        ) from None
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise UnknownModelError(f"{given} holds no model: its config.json names no model_type. {_NEXT_STEP}")


def _what_it_is(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return "it is an adapter without its base"
    checkpoints = [path.name for path in folder.glob("checkpoint-*") if (path / "config.json").is_file()]
    if checkpoints:
        newest = max(checkpoints, key=lambda name: (len(name), name))
        return f"it is the folder of a training run that has not ended; {newest} in it is a model"
    return "it has no config.json"


__all__ = ["EMBEDDED", "EMBEDDED_HELP", "EMBEDDED_MODEL", "UnknownModelError", "resolve_model"]
