"""Stage II of IVM's training: discriminator-weighted supervised learning (DWSL).

After figure 6 (stage II) of arXiv 2405.19783: every example, of people or machines, teaches with the weight that the
trained and fixed discriminator gives it. As a formula, which is our reading and not a quotation,

    min_G  E_all[ w(image, instruction, mask) * (BCE + dice)(G(image, instruction), mask) ],

and the loss of each example is that of the original's `IVM.forward`. Left open, and chosen here:

- what makes a weight of a score. Here w = floor + (1 - floor) * D^sharpness. The original's first published forward
  multiplied with 0.2 + 0.8 * label, so that a floor of 0.2 and a sharpness of 1 are the defaults; later versions take
  the weight as an argument and ignore it.
- the scale. With `normalise` the weights have the mean 1 over the data set, so that learning rates mean the same with
  and without weights; the original's loss is not normalised.
- when examples are scored. Here once before stage II, without augmentation, so that the discriminator need not stay in
  memory beside the generator and a look at the scores is possible (figure 10b).
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState
from torch.utils.data import Dataset

from ..atomic_files import write_whole
from ..data.example import MaskingExample
from .ivm_discriminator import IvmDiscriminator


logger = logging.getLogger(__name__)

SCORES_PATTERN = "scores-*.jsonl"


@dataclass(frozen=True)
class WeightRule:
    """
    How scores become weights.

    Args:
        floor (`float`): Weight at the score 0, 0 to 1.
        sharpness (`float`): Exponent of the score, above 0; larger ones trust only what scores highest.
        normalise (`bool`): Divide by the mean weight.
    """

    floor: float = 0.2
    sharpness: float = 1.0
    normalise: bool = True

    def __post_init__(self):
        if not 0.0 <= self.floor <= 1.0:
            raise ValueError(f"floor is {self.floor}; it is the weight at the score 0, from 0 to 1.")
        if self.sharpness <= 0:
            raise ValueError(f"sharpness is {self.sharpness}; it must be above 0.")

    def __call__(self, scores: Sequence[float] | torch.Tensor) -> torch.FloatTensor:
        """
        Args:
            scores: D of each example of the data set, in [0, 1].

        Returns:
            `torch.FloatTensor` of shape `(examples,)`, at least 0.

        Raises:
            ValueError: If there is no score, one is not in [0, 1], or every weight is 0.
        """
        scores = torch.as_tensor(scores, dtype=torch.float32)
        if scores.ndim != 1 or not len(scores) or not bool(((scores >= 0) & (scores <= 1)).all()):
            raise ValueError(f"Scores must be one row of numbers in [0, 1], got the shape {tuple(scores.shape)}.")
        weights = self.floor + (1 - self.floor) * scores**self.sharpness
        if not self.normalise:
            return weights
        if not bool(weights.any()):
            raise ValueError("Every weight is 0, so that nothing could be learned; raise `floor`.")
        return weights / weights.mean()


class WeightedExamples(Dataset):
    """
    A data set whose examples carry weights.

    Args:
        examples (`Dataset`): Of [`MaskingExample`]s; the same index must show the same label in every epoch.
        weights (`Sequence[float]`): One per example.

    Raises:
        ValueError: If their numbers differ.
    """

    def __init__(self, examples: Dataset, weights: Sequence[float] | torch.Tensor):
        if len(examples) != len(weights):
            raise ValueError(f"{len(examples)} examples and {len(weights)} weights were given; give one for each.")
        self.examples = examples
        self.weights = [float(weight) for weight in weights]

    def __len__(self) -> int:
        return len(self.weights)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.examples, "set_epoch"):
            self.examples.set_epoch(epoch)

    def __getitem__(self, index: int) -> MaskingExample:
        return replace(self.examples[index], weight=self.weights[index])


def score_examples(
    discriminator: IvmDiscriminator,
    examples: Dataset,
    collator: Callable,
    folder: Path,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """
    D of every example, kept in `folder` while they are computed, so that a run resumes where it stopped;
    several processes share the work.

    Args:
        discriminator ([`IvmDiscriminator`]): Trained, on its device.
        examples (`Dataset`): Of [`MaskingExample`]s, without augmentation.
        collator (`Callable`): A `DiscriminatorCollator`.
        folder (`Path`): Where the scores lie. Empty it when the discriminator or the data set changes.
        batch_size (`int`): Examples per forward pass.
        progress (`Callable`, *optional*): Called with the number of finished examples and of all.

    Returns:
        `list[float]`: One score in [0, 1] per example.

    Raises:
        ValueError: If the folder holds scores of another number of examples, or a damaged line.
    """
    state = PartialState()
    folder.mkdir(parents=True, exist_ok=True)
    if state.is_main_process:
        repair_scores(folder)
    state.wait_for_everyone()  # nobody reads while a file is replaced
    done = read_scores(folder, len(examples))
    state.wait_for_everyone()  # nobody writes before all have read what there is
    pending = [index for index in range(len(examples)) if index not in done]
    mine = pending[state.process_index :: state.num_processes]
    was_training = discriminator.training
    discriminator.eval()
    with (folder / f"scores-{state.process_index:05d}.jsonl").open("a", encoding="utf-8") as lines:
        for start in range(0, len(mine), batch_size):
            indices = mine[start : start + batch_size]
            scores = discriminator.scores(collator([examples[index] for index in indices])).tolist()
            for index, score in zip(indices, scores, strict=True):
                line = {"index": index, "of": len(examples), "score": score}
                lines.write(json.dumps(line) + "\n")
            lines.flush()
            if progress is not None:
                progress(min(len(examples), len(done) + (start + len(indices)) * state.num_processes), len(examples))
    discriminator.train(was_training)
    state.wait_for_everyone()
    done = read_scores(folder, len(examples))
    return [done[index] for index in range(len(examples))]


def repair_scores(folder: Path) -> None:
    """Removes lines that were cut off at the end of files, so that others can follow; for one process alone."""
    for path in sorted(folder.glob(SCORES_PATTERN)):
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) != len(content):
            write_whole(path, whole)


def read_scores(folder: Path, count: int) -> dict[int, float]:
    """
    The scores in a folder by the index of their example, without what was cut off at the end of a file; nothing is
    written.

    Raises:
        ValueError: If the scores are of another number of examples, or a line is damaged.
    """
    scores: dict[int, float] = {}
    for path in sorted(folder.glob(SCORES_PATTERN)):
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):  # bytes: at line ends alone
            try:
                entry = json.loads(line)
                index, of, score = entry["index"], entry["of"], float(entry["score"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number} is damaged; remove the file to score again.") from error
            if of != count or not 0 <= index < count:
                raise ValueError(
                    f"{path} holds scores of {of} examples, but there are {count}; remove {folder} or use another "
                    "folder."
                )
            scores[index] = score
    return scores


__all__ = ["WeightRule", "WeightedExamples", "read_scores", "repair_scores", "score_examples"]
