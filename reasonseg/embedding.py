"""Puts a trained tabletop model into the package: `python -m reasonseg.embedding TRAINED RESULTS...`.

What lies in `embedded/` is a repository like any other, but without the code that stands beside published weights:
the package itself is that code.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any


EMBEDDED_MODEL = Path(__file__).parent / "embedded"
"""Folder of the model that runs where none is named."""

# What only published weights need, or what only the training run that wrote it needs.
_NOT_EMBEDDED = ("*.py", "*.pt", "*.pth", "training_args.bin", "trainer_state.json", "manifest.json", "checkpoint-*")
_NOT_EMBEDDED_DIRECTORIES = ("towers", "scores", "runs", "__pycache__")
# Would send transformers to code files beside the weights.
_CODE_POINTERS = ("auto_map", "custom_pipelines")

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-segmentation
tags: [reasoning-segmentation, tabletop]
---

# The tabletop model

A GSVA of {millions:.1f} million parameters (CLIP, LLaMA and SAM classes of transformers, {megabytes:.1f} MB) that
answers requests about drawn tabletops with text and masks, and rejects what is not there. It exists so that the
package does its real job on a fresh machine, and to prove training, evaluation, rejection and pipeline end to end.

**Its world is drawn tabletops; it knows nothing of photographs.**

```python
from transformers import pipeline
import reasonseg

pipe = pipeline("reasoning-segmentation")
```

## Training

From random weights on scenes drawn by `reasonseg.training.tabletop_scenes`, with other scenes in every epoch, seed 0,
on 2 CPU cores, by

```bash
torchrun --nproc-per-node 2 -m reasonseg train tabletop --out out/tabletop
```

(`training/recipes/tabletop.yaml`){minutes}. First both image encoders alone on dense labels, then everything together,
last the head that scores masks.

## Evaluation

Scenes that training never drew, four requests about each. With protocol `free` the model writes its own answer, with
`paper` the right words are given and only the slots are its own. `test_unseen` shows pairs of colour and kind that
training never shows.

{tables}

Made by

```bash
reasonseg evaluate --model reasonseg/embedded --dataset tabletop --split test --out out/test
reasonseg evaluate --model reasonseg/embedded --dataset tabletop --split test_unseen --out out/test_unseen
```

## Limits

Ten kinds of things in eight colours and three sizes, seen from the side and above, up to seven on a table, pictures
of any size that are looked at in 128 x 128 pixels. The vocabulary is closed ({words} words); other words are read as
`<unk>`, which the model has learned to reject. Comparisons and relations are its weakest requests; see the table.

## Licence

Apache-2.0, code and weights. The scenes are drawn by the same package; no other data went in.
"""


def embed(trained: str | Path, results: list[str | Path], minutes: float | None = None) -> Path:
    """
    Args:
        trained (`str` or `Path`): Output of `reasonseg train tabletop`.
        results (`list`): `results.json` of `reasonseg evaluate`, one per split and protocol.
        minutes (`float`, *optional*): How long training took, for the card.

    Returns:
        `Path`: [`EMBEDDED_MODEL`], written anew.

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
    card = write_card(draft, [json.loads(Path(path).read_text(encoding="utf-8")) for path in results], minutes)
    (draft / "README.md").write_text(card, encoding="utf-8")
    replaced = EMBEDDED_MODEL.with_name(".replaced.partial")
    if EMBEDDED_MODEL.exists():
        EMBEDDED_MODEL.rename(replaced)
    draft.rename(EMBEDDED_MODEL)
    shutil.rmtree(replaced, ignore_errors=True)
    return EMBEDDED_MODEL


def _drop_code_pointers(path: Path) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in values.items() if name not in _CODE_POINTERS}
    for value in kept.values():
        if isinstance(value, dict):
            for name in _CODE_POINTERS:
                value.pop(name, None)
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_card(repo: Path, results: list[dict[str, Any]], minutes: float | None) -> str:
    """The README of the embedded model; its numbers are those of `results` and of its own files."""
    from safetensors import safe_open

    weights = repo / "model.safetensors"
    with safe_open(weights, "pt") as file:
        parameters = 0
        for name in file.keys():  # noqa: SIM118 (not a dict)
            size = 1
            for side in file.get_slice(name).get_shape():
                size *= side
            parameters += size
    vocabulary = json.loads((repo / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    return CARD.format(
        millions=parameters / 1e6,
        megabytes=weights.stat().st_size / 1e6,
        minutes=f": {minutes:.0f} minutes" if minutes else "",
        tables="\n\n".join(_table(result) for result in results),
        words=len(vocabulary),
    )


def _table(result: dict[str, Any]) -> str:
    title = f"`{result['split']}`, {result['questions']} requests, protocol `{result['protocol']}`"
    columns = ("giou", "ciou", "n_acc", "t_acc", "pr@0.5")
    lines = [
        f"{title}:",
        "",
        "| requests | phrases | gIoU | cIoU | N-acc | T-acc | Pr@0.5 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, numbers in [*result["by_type"].items(), ("**all**", result["overall"])]:
        cells = ["-" if numbers[column] is None else f"{numbers[column]:.3f}" for column in columns]
        lines.append(f"| {name} | {numbers['masks']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("Name the trained model, then the results.json files of its evaluation.")
    sys.stdout.write(f"{embed(sys.argv[1], sys.argv[2:])}\n")


__all__ = ["EMBEDDED_MODEL", "embed", "write_card"]
