"""What publishing writes beside a checkpoint and for its Space: the files of `deployment/`, filled in for it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData

from .card import card_values, read_card, read_card_values
from .sources import read_any_json


# In a checkout the folder lies beside this one; installed, it is the sub-package of the same name.
DEPLOYMENT = Path(__file__).resolve().parents[1] / "deployment"
HANDLER, REQUIREMENTS, APP, CARD = "handler.py", "requirements.txt", "app.py", "README.md"
# The gradio that app.py was tried with, and Python as Spaces call it.
GRADIO, PYTHON = "6.31.0", "3.12"
# The ranges in which this package is tested.
PACKAGES = (
    "torch>=2.10",
    "transformers>=5.23,<6",
    "accelerate>=1.7",
    "safetensors>=0.8",
    "huggingface-hub>=1.31,<3",
    "numpy>=2.0",
    "pillow>=11.3",
    "jinja2>=3.1.6",
)
OPTIONAL_PACKAGES = {"diffusers": "diffusers>=0.35", "peft": "peft>=0.20", "spacy": "spacy>=3.7"}
_REQUIREMENTS_HEAD = "# What the code of the checkpoint needs, as `reasonseg publish` has found.\n"
# Weights up to so many bytes, and what of the Hub's machines holds them beside what a request needs.
_HARDWARE = ((2e9, "cpu-basic"), (18e9, "l4x1"), (38e9, "l40sx1"), (float("inf"), "a100-large"))
_CONSTANTS = re.compile(r'^(TITLE|REPO|REVISION) = ".*"$', re.MULTILINE)


def requirements(repo: Path) -> list[str]:
    """The packages that a checkpoint runs with, as pip takes them.

    Args:
        repo (`Path`): The repository.
    """
    names = []
    if '"difflmm"' in (repo / "config.json").read_text(encoding="utf-8"):
        names.append("diffusers")
    if (repo / "adapter_config.json").is_file():
        names.append("peft")
    processor = repo / "processor_config.json"
    described = read_any_json(processor) if processor.is_file() else {}
    if isinstance(described, Mapping) and str(described.get("phrase_extractor")).startswith("spacy"):
        names.append("spacy")
    return [*PACKAGES, *(OPTIONAL_PACKAGES[name] for name in names)]


def endpoint_files(repo: Path) -> dict[str, bytes]:
    """What an Inference Endpoint needs beside a checkpoint: `handler.py` and `requirements.txt`.

    Args:
        repo (`Path`): The repository.

    Returns:
        `dict[str, bytes]`: Contents by the file's name.
    """
    return {HANDLER: (DEPLOYMENT / HANDLER).read_bytes(), REQUIREMENTS: _requirements_file(requirements(repo))}


def is_own_handler(content: bytes) -> bool:
    """Whether a `handler.py` is the one of this package, of this or another version."""
    return _first_line(content) == _first_line((DEPLOYMENT / HANDLER).read_bytes())


def is_own_requirements(content: bytes) -> bool:
    """Whether a `requirements.txt` was written by this package."""
    return content.startswith(_REQUIREMENTS_HEAD.encode("utf-8"))


def space_files(
    repo: Path, repo_id: str, revision: str, *, private: bool, card: str | None = None
) -> dict[str, bytes]:
    """A Space that runs a published checkpoint.

    Args:
        repo (`Path`): The repository.
        repo_id (`str`): What it is called on the Hub.
        revision (`str`): The commit to run.
        private (`bool`): Whether only its owner sees the checkpoint.
        card (`str`, *optional*): Name or file of the card's values; by default the README.md says which.

    Returns:
        `dict[str, bytes]`: Contents of `app.py`, `requirements.txt` and `README.md` by name.
    """
    described = card or card_values(read_card(repo))
    title = str(read_card_values(described).get("title")) if described else repo_id.partition("/")[2]
    values = {"TITLE": title, "REPO": repo_id, "REVISION": revision}
    app = (DEPLOYMENT / APP).read_text(encoding="utf-8")
    app = _CONSTANTS.sub(lambda line: f"{line[1]} = {json.dumps(values[line[1]])}", app)
    data = SpaceCardData(
        title=title,
        colorFrom="indigo",
        colorTo="green",
        sdk="gradio",
        sdk_version=GRADIO,
        python_version=PYTHON,
        app_file=APP,
        license="apache-2.0",
        models=[repo_id],
        suggested_hardware=_hardware(repo),
    )
    text = SpaceCard.from_template(
        data,
        template_path=str(DEPLOYMENT / "space.md.jinja"),
        title=title,
        repo_id=repo_id,
        revision=revision,
        private=private,
    )
    return {
        APP: app.encode("utf-8"),
        REQUIREMENTS: _requirements_file([f"gradio>={GRADIO},<7", *requirements(repo)]),
        CARD: (str(text).rstrip() + "\n").encode("utf-8"),
    }


def _requirements_file(packages: list[str]) -> bytes:
    return (_REQUIREMENTS_HEAD + "\n".join(packages) + "\n").encode("utf-8")


def _hardware(repo: Path) -> str:
    """The smallest of the Hub's machines on which the weights and a request fit."""
    size = sum(file.stat().st_size for file in repo.glob("*.safetensors"))
    return next(name for largest, name in _HARDWARE if size <= largest)


def _first_line(content: bytes) -> str | None:
    try:
        return (ast.get_docstring(ast.parse(content)) or "").partition("\n")[0] or None
    except (SyntaxError, ValueError):
        return None
