"""Puts a trained tabletop model into the package: `python -m reasonseg.tabletop.build_embedded TRAINED RESULTS...`.

What lies in `embedded/` is a repository like any other, but without the code that stands beside published weights:
the package itself is that code.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from ..data.data_files import read_json
from ..model_names import EMBEDDED_MODEL
from .embedded_card import write_card


# What only published weights need, or what only the training run that wrote it needs.
_NOT_EMBEDDED = (
    *("*.py", "*.pt", "*.pth", "training_args.bin", "trainer_state.json", "manifest.json", "checkpoint-*"),
    ".*",  # what a stopped run has left
)
_NOT_EMBEDDED_DIRECTORIES = ("towers", "scores", "runs", "__pycache__")
# Would send transformers to code files beside the weights.
_CODE_POINTERS = ("auto_map", "custom_pipelines")


def embed(trained: str | Path, results: list[str | Path], minutes: float | None = None) -> Path:
    """
    Args:
        trained (`str` or `Path`): Output of `reasonseg train tabletop`.
        results (`list`): `results.json` of `reasonseg evaluate`, one per split and protocol.
        minutes (`float`, *optional*): How long training took, for the card.

    Returns:
        `Path`: [`EMBEDDED_MODEL`], written again.

    Raises:
        FileNotFoundError: If `trained` holds no weights.
    """
    trained = Path(trained)
    if not (trained / "model.safetensors").is_file():
        raise FileNotFoundError(f"{trained} holds no model.safetensors; train with `reasonseg train tabletop --out`.")
    draft = EMBEDDED_MODEL.with_name(".embedded.partial")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(trained, draft, ignore=shutil.ignore_patterns(*_NOT_EMBEDDED, *_NOT_EMBEDDED_DIRECTORIES))
    for path in draft.glob("*.json"):
        _drop_code_pointers(path)
    tables = [read_json(path) for path in results]
    card = write_card(draft, trained, tables, minutes)
    (draft / "README.md").write_text(card, encoding="utf-8")
    replaced = EMBEDDED_MODEL.with_name(".replaced.partial")
    if EMBEDDED_MODEL.exists():
        EMBEDDED_MODEL.rename(replaced)
    draft.rename(EMBEDDED_MODEL)
    shutil.rmtree(replaced, ignore_errors=True)
    return EMBEDDED_MODEL


def _drop_code_pointers(path: Path) -> None:
    values = read_json(path)
    kept = {name: value for name, value in values.items() if name not in _CODE_POINTERS}
    for value in kept.values():
        if isinstance(value, dict):
            for name in _CODE_POINTERS:
                value.pop(name, None)
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m reasonseg.tabletop.build_embedded", description=__doc__.splitlines()[0]
    )
    parser.add_argument("trained", help="output of `reasonseg train tabletop`")
    parser.add_argument("results", nargs="*", help="results.json of `reasonseg evaluate`, one per split and protocol")
    parser.add_argument("--minutes", type=float, help="how long training took, for the card")
    options = parser.parse_args()
    sys.stdout.write(f"{embed(options.trained, options.results, options.minutes)}\n")


if __name__ == "__main__":
    main()


__all__ = ["EMBEDDED_MODEL", "embed"]
