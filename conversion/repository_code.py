"""Code in a repository, and what leads to it: its own files, files beside the listed ones, configs naming classes."""

from __future__ import annotations

import ast
import functools
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..loading import CODE_FIELDS
from .manifest import file_sha256, repository_files


_PUBLISHED = [Path(__file__).resolve().parents[1] / folder for folder in ("modeling", "processing")]
_CODE_SUFFIXES = frozenset((".py", ".pyc", ".pyo", ".pyw", ".pyd", ".pyz", ".so", ".dll", ".dylib"))
_CACHE = "__pycache__"
_OTHER_REPOSITORY = "--"  # between the name of a repository on the Hub and the class in it
_KERNEL_FIELDS = frozenset(("attn_implementation", "_attn_implementation", "experts_implementation"))
_ADAPTER = "adapter_config.json"


def published_code(repo: Path) -> dict[str, str]:
    """This package's files that transformers has copied beside the weights, and what each of them does.

    Nothing is read from the repository but the names of its files.

    Args:
        repo (`Path`): The folder.

    Returns:
        `dict[str, str]`: The first sentence of every file's docstring by the file's name, in an order of reading: each
        file before those that only it imports.
    """
    there = {path.name for path in repo.glob("*.py")}
    own = {path.name: path for folder in _PUBLISHED for path in sorted(folder.glob("*.py")) if path.name in there}
    read = {name: _summary_and_siblings(path) for name, path in own.items()}
    waiting = [name for name in read if not any(name in siblings for _, siblings in read.values())]
    order: dict[str, str] = {}
    while waiting:
        name = waiting.pop(0)
        if name in read and name not in order:
            order[name], siblings = read[name]
            waiting += siblings
    return order


@functools.cache
def _summary_and_siblings(path: Path) -> tuple[str, tuple[str, ...]]:
    """The first sentence of a file's docstring, and the files beside it that it imports."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(module) if isinstance(node, ast.ImportFrom) and node.level == 1]
    summary = (ast.get_docstring(module) or "").partition("\n\n")[0]
    return " ".join(summary.split()), tuple(f"{node.module}.py" for node in imports)


def stray_files(repo: Path, listed: Mapping[str, Mapping[str, Any]], *, trained: bool) -> Iterator[tuple[str, str]]:
    """Files that do not belong to a repository: what its manifest does not list, and code wherever it hides.

    Hidden files and folders belong to other tools, as do those in which a training keeps its state; code in them is
    named all the same, unless a checkpoint of the training holds a copy of the repository's own.

    Args:
        repo (`Path`): The folder.
        listed (`Mapping[str, Mapping[str, Any]]`): The files of its manifest.
        trained (`bool`): Whether a training made it.

    Returns:
        `Iterator[tuple[str, str]]`: Path in the repository, and what is wrong with it.
    """
    own = set(repository_files(repo, trained=trained))
    for parent, folders, files in os.walk(repo, followlinks=False):
        for name in sorted(folders):
            path = Path(parent, name)
            if path.is_symlink():
                yield path.relative_to(repo).as_posix(), "This is a link to a folder, whose files are not checked."
        for name in sorted(files):
            path = Path(parent, name)
            relative = path.relative_to(repo).as_posix()
            if relative in listed:
                continue
            if is_code(path):
                if not (trained and relative not in own and _is_copy(path, listed)):
                    yield relative, f"This is code that the manifest does not know. Remove {_home(relative)}."
            elif relative in own:
                yield relative, "The manifest does not know this file."


def _home(name: str) -> str:
    """What to remove: the file, or the checkpoint that another version of this package has left."""
    first = name.partition("/")[0]
    return f"{first}/, a checkpoint of another version," if first.startswith("checkpoint-") else "it"


def is_code(path: Path) -> bool:
    """Whether Python, or the system, would take a file for a program."""
    return path.suffix.lower() in _CODE_SUFFIXES or _CACHE in path.parts


def _is_copy(path: Path, listed: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a file is the listed one of the same name."""
    entry = listed.get(path.name)
    return entry is not None and is_regular(path) and file_sha256(path) == entry["sha256"]


def is_regular(path: Path) -> bool:
    """Whether a path leads to a file with bytes: no folder, pipe, device or loop of links."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def code_references(name: str, config: object, listed: Mapping[str, Any]) -> Iterator[str]:
    """What a config names that is not a part of its repository.

    Args:
        name (`str`): The config's path in the repository.
        config: What the JSON file holds.
        listed (`Mapping[str, Any]`): The files of the manifest.

    Returns:
        `Iterator[str]`: What is wrong, in a sentence.
    """
    if name == _ADAPTER and isinstance(config, Mapping):
        base = config.get("base_model_name_or_path")
        yield f"transformers would load the model that it names ({base!r}) in place of this repository's."
    open_ones = [config]
    while open_ones:
        value = open_ones.pop()
        if isinstance(value, list):
            open_ones += value
        elif isinstance(value, Mapping):
            for field, inner in value.items():
                if field in CODE_FIELDS:
                    yield from _wrong_references(name, field, inner, listed)
                elif field in _KERNEL_FIELDS and "/" in str(inner):
                    yield f"{field} leads to another repository: {inner!r}."
                else:
                    open_ones.append(inner)


def _wrong_references(name: str, field: str, value: object, listed: Mapping[str, Any]) -> Iterator[str]:
    references = list(_references(value))
    if not isinstance(value, Mapping):
        yield f"{field} is not a JSON object."
    for reference in references:
        repository, separator, rest = reference.rpartition(_OTHER_REPOSITORY)
        module = f"{rest.rpartition('.')[0]}.py"
        beside = (Path(name).parent / module).as_posix()
        if separator:
            yield f"{field} leads to another repository, {repository!r}."
        elif rest.count(".") != 1:
            yield f"{field} names {reference!r}, which is not a class of a file beside it."
        elif module not in listed and beside not in listed:
            yield f"{field} names {module}, which is not there or not in the manifest."


def _references(value: object) -> Iterator[str]:
    """All texts in an entry but what a pipeline says of itself besides its class."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)
    elif isinstance(value, Mapping):
        values = [value["impl"]] if "impl" in value else value.values()
        for inner in values:
            yield from _references(inner)
