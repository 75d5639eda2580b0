"""Checkpoints, towers, bases and SAM by where they are: a folder or file here, or a repository on the Hub."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # of whichever client this release of huggingface_hub is built on
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .errors import ConversionError
from .sources import DIFFUSION_INDEX, SIDE_FILES


Location = str | os.PathLike

# What manifests call an adapter that was merged.
ADAPTER = "adapter"

_HUB_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(?P<file>[^@]+))?(?:@(?P<revision>[\w./-]+))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_SMALL_FILES = (
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
# Of a repository that holds its weights in several forms, the first one is taken.
_WEIGHTS = (
    re.compile(
        r"(?:diffusion_pytorch_)?model(?:-\d{5}-of-\d{5})?\.safetensors"
        r"|(?:diffusion_pytorch_)?model\.safetensors\.index\.json"
    ),
    re.compile(r"(?:diffusion_)?pytorch_model(?:-\d{5}-of-\d{5})?\.bin|pytorch_model\.bin\.index\.json"),
    re.compile(r"[^/]+\.(?:safetensors|bin|pth|pt)"),
)
# A LoRA adapter as PEFT saves it, at the top or in a folder.
_ADAPTER_WEIGHTS = re.compile(r"(?:[^/]+/)?adapter_model\.(?:safetensors|bin)")
# Of a diffusers repository's other parts only what says how to use them.
_DIFFUSION_SMALL_FILES = re.compile(r"(?:scheduler|tokenizer|text_encoder)/[^/]+\.(?:json|txt)|model_index\.json")


def locate(
    location: Location, *, weights: bool = True, parts: Sequence[str] = ("unet", "vae"), adapter: bool = False
) -> Path:
    """Find what the user named, and download it into the Hub's cache where it is not on this machine.

    What exists here goes first. Another string of the form `org/name`, `org/name@revision` or `org/name/file.pth`
    names a repository on the Hub, or one file of it. A `Path` never does.

    Args:
        location (`str` or `os.PathLike`): A path, or a name on the Hub.
        weights (`bool`, *optional*, defaults to `True`): Whether the weights of a repository are needed, or only its
            config and tokenizer.
        parts (`Sequence[str]`, *optional*): Sub-folders of a diffusers repository whose weights are needed.
        adapter (`bool`, *optional*, defaults to `False`): Whether a LoRA adapter is meant. It may lie one folder
            further down, as StAR's do, and its `adapter_config.json` comes along.

    Returns:
        `Path`: The file or folder. A path that does not exist is returned as it is; whoever opens it says so.

    Raises:
        ConversionError: The repository, revision or file does not exist, may not be read, cannot be reached, or holds
            no weights, or several adapters.
    """
    name = _hub_name(location)
    if name is None:
        path = Path(location)
        below = (file.relative_to(path).as_posix() for file in (*path.glob("*"), *path.glob("*/adapter_model.*")))
        return path / (_adapter_inside(below, str(location)) or "") if adapter else path
    repo, revision, file = name["repo"], name["revision"], name["file"]
    with _downloading(location):
        api = HfApi()
        names = _listing(api, repo, revision)
        if adapter and file is None:
            file = _adapter_inside(names, repo)
        if file is not None:
            if file not in names:
                raise ConversionError(f"{repo!r} on the Hub has no file {file!r}.", next_step=_offer(names))
            beside = f"{file.rpartition('/')[0]}/adapter_config.json".lstrip("/")
            chosen = [file, beside] if adapter and beside in names else [file]
        elif DIFFUSION_INDEX in names:
            chosen = _diffusion_files(names, parts if weights else ())
        else:
            chosen = [small for small in _SMALL_FILES if small in names]
            found = _weight_files(names)
            if weights and not found:
                raise ConversionError(f"{repo!r} on the Hub holds no weights at its top.", next_step=_offer(names))
            chosen += found if weights else []
        patterns = [glob.escape(path) for path in chosen]
        folder = Path(api.snapshot_download(repo, revision=revision, allow_patterns=patterns))
    return folder if file is None else folder / file


def pin(location: Location) -> Location:
    """Replace the branch of a name on the Hub by its commit, so that all that is read later fits together.

    Raises:
        ConversionError: See `locate`.
    """
    name = _hub_name(location)
    if name is None or name["file"] is not None:
        return location
    return f"{name['repo']}@{locate(location, weights=False).name}"


def location_name(location: Location) -> str:
    """What a location is called: the last part of its path, or of its name on the Hub."""
    name = _hub_name(location)
    if name is None:
        return Path(location).absolute().name
    return (name["file"] or name["repo"]).rsplit("/", 1)[-1]


def hub_repository(location: Location) -> str | None:
    """The repository on the Hub that a location names; `None` for a path."""
    name = _hub_name(location)
    return None if name is None else name["repo"]


def hub_snapshot(path: Path) -> dict[str, str] | None:
    """Which commit of which repository a path in the Hub's cache belongs to.

    Args:
        path (`Path`): Such as `locate` returns.

    Returns:
        `dict[str, str]`, *optional*: `"repo"`, `"revision"` and, for a file of the repository, its `"path"`; `None`
        for what is not a download from the Hub.
    """
    path = path.absolute()  # not resolved: the cache's files are links to blobs that belong to no commit
    for folder in (path, *path.parents):
        kind, _, name = folder.parent.parent.name.partition("--")
        if folder.parent.name == "snapshots" and kind == "models" and name and _COMMIT.fullmatch(folder.name):
            below = {} if folder == path else {"path": path.relative_to(folder).as_posix()}
            # The cache writes "/" as "--", which no name on the Hub may hold.
            return {"repo": name.replace("--", "/"), "revision": folder.name, **below}
    return None


def _hub_name(location: Location) -> re.Match[str] | None:
    """The parts of a name on the Hub; `None` for everything that is, or was meant as, a path here."""
    if not isinstance(location, str) or Path(location).exists():
        return None
    name = _HUB_NAME.fullmatch(location)
    if name is None or ".." in location:
        return None
    # `folder/weights.pth` has the form of a repository's name, but none is called so.
    is_file = (name["file"] or name["repo"]).endswith(_WEIGHT_SUFFIXES)
    return name if is_file == (name["file"] is not None) else None


def _listing(api: HfApi, repo: str, revision: str | None) -> Sequence[str]:
    """The repository's files; without a network those in the cache."""
    try:
        return [entry.rfilename for entry in api.repo_info(repo, revision=revision).siblings]
    except HfHubHTTPError:
        raise
    except (HTTPError, OSError) as error:
        try:
            folder = Path(api.snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[]))
        except OSError:
            raise error from None
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _weight_files(names: Sequence[str]) -> list[str]:
    for pattern in _WEIGHTS:
        if found := [name for name in names if pattern.fullmatch(name)]:
            return [*found, *(name for name in SIDE_FILES if name in names and name not in found)]
    return []


def _adapter_inside(names: Iterable[str], where: str) -> str | None:
    """The file of an adapter's weights in a folder among these; `None` where one lies at the top, or none anywhere.

    Raises:
        ConversionError: There are adapters in several folders.
    """
    found = sorted(filter(_ADAPTER_WEIGHTS.fullmatch, names))
    folders = list(dict.fromkeys(name.rpartition("/")[0] for name in found))
    if "" in folders or not found:
        return None
    if len(folders) > 1:
        raise ConversionError(
            f"{where!r} holds several adapters, in {', '.join(folders)}.",
            next_step=f"Pass the file of one of them, such as {where}/{found[0]}.",
        )
    return found[-1]  # safetensors, where there is also a pickle


def _diffusion_files(names: Sequence[str], parts: Sequence[str]) -> list[str]:
    """What is needed of a diffusers repository."""
    chosen = [name for name in names if _DIFFUSION_SMALL_FILES.fullmatch(name)]
    for part in parts:
        inside = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        wanted = [name for name in ("config.json", *_weight_files(inside)) if name in inside]
        chosen += [f"{part}/{name}" for name in wanted]
    return list(dict.fromkeys(chosen))


def _offer(names: Sequence[str]) -> str:
    """What to pass instead, from what the repository holds."""
    files = [name for name in names if name.endswith(_WEIGHT_SUFFIXES)]
    if not files:
        return "Pass another repository, or a folder or file on this machine."
    return f"Pass ORG/NAME/FILE with one of its files ({', '.join(files[:3])}), or a folder or file on this machine."


@contextmanager
def _downloading(location: Location) -> Iterator[None]:
    """Word what the Hub or the way to it raises."""
    neither = f"{str(location)!r} is neither a file or folder on this machine nor"
    try:
        yield
    except RevisionNotFoundError as error:
        raise ConversionError(
            f"{neither} a revision on the Hub.", next_step="Pass ORG/NAME@REVISION with a branch, tag or commit."
        ) from error
    except GatedRepoError as error:
        raise ConversionError(
            f"{str(location)!r} on the Hub asks you to accept its licence first.",
            next_step="Accept it on its page, log in with `hf auth login`, then run the same command again.",
        ) from error
    except RepositoryNotFoundError as error:
        raise ConversionError(
            f"{neither} a repository on the Hub that you may read.",
            next_step="Check the path or the name; for a private repository log in with `hf auth login`.",
        ) from error
    except (HTTPError, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:300].rstrip(".")
        raise ConversionError(
            f"{neither} in the Hub's cache, and the Hub cannot be reached ({type(error).__name__}: {said}).",
            next_step="Check the path, or the connection and HF_HUB_OFFLINE, or download it elsewhere and pass its "
            "folder.",
        ) from error
