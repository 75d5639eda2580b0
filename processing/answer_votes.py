"""One result of many answers to a question, as StAR votes on them (evaluation_star.py)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


NO_ANSWER = "none of the {} answers could be read"
UNREAD = "{} of the {} answers could not be read and have no vote"
NOTHING_BY_VOTE = "{} of {} answers found nothing"


@dataclass
class _Cluster:
    """Masks of one object: (answer, its segment) each; the first one is what others are compared with."""

    members: list[tuple[int, Any]] = field(default_factory=list)

    @property
    def votes(self) -> int:
        """From how many answers they come."""
        return len({answer for answer, _ in self.members})

    @property
    def mean_score(self) -> float:
        return float(np.mean([segment.mask_score for _, segment in self.members]))

    @property
    def best(self) -> tuple[int, Any]:
        """That of the highest score, the largest of several."""
        return max(self.members, key=lambda member: (member[1].mask_score, member[1].mask.sum()))

    @property
    def label(self) -> str | None:
        """What most of them are called."""
        labels = Counter(segment.label for _, segment in self.members if segment.label is not None)
        return labels.most_common(1)[0][0] if labels else None


def vote(
    results: Sequence[Any],
    nothing_threshold: float = 0.5,
    iou_threshold: float = 0.85,
    vote_threshold: float = 0.2,
) -> Any:
    """
    Args:
        results (`Sequence[CoordinateResult]`):
            Of answers to one question about one image that were sampled, in their order; objects are not joined. StAR
            takes 32 with a temperature of 1.0 and top-p of 0.9.
        nothing_threshold (`float`): Share of the answers which have to find nothing, so that nothing is found.
        iou_threshold (`float`): From which IoU on two masks are of one object.
        vote_threshold (`float`): Share of the answers that have to hold an object, unless none has so many.

    Returns:
        `CoordinateResult`: As many objects as most answers have that hold any: those of the most answers, then of the
        highest mean score, each with its best mask. `slot_prob` is its share of the answers. Text and chain of thought
        are those of the answer from which the first mask comes; masks of others have no span in it. Answers that could
        not be read (`error`) have no vote.

    Raises:
        ValueError: If there are no results, or they are of images of several sizes.
    """
    if not results or len({result.image_size for result in results}) != 1:
        sizes = sorted({result.image_size for result in results})
        raise ValueError(f"{len(results)} results of images of {sizes} were given; give those of one question.")
    read = [result for result in results if result.error is None]
    problems = [UNREAD.format(len(results) - len(read), len(results))] if len(read) < len(results) else []
    counts = [len(result.segments) for result in read]
    if not read:
        return replace(results[0], segments=[], problems=(NO_ANSWER.format(len(results)),))
    if counts.count(0) / len(read) >= nothing_threshold:
        said = NOTHING_BY_VOTE.format(counts.count(0), len(read))
        return replace(read[counts.index(0) if 0 in counts else 0], segments=[], problems=(*problems, said))
    clusters: list[_Cluster] = []
    for answer, result in enumerate(read):
        for segment in result.segments:
            if segment.mask is not None:
                _cluster_of(segment.mask, clusters, iou_threshold).members.append((answer, segment))
    frequent = [cluster for cluster in clusters if cluster.votes / len(read) >= vote_threshold] or clusters
    frequent.sort(key=lambda cluster: (cluster.votes, cluster.mean_score), reverse=True)
    number = Counter(count for count in counts if count).most_common(1)[0][0]
    chosen = frequent[:number]
    if not chosen:
        return replace(read[0], segments=[], problems=tuple(problems))
    writer = chosen[0].best[0]
    segments = []
    for cluster in chosen:
        answer, segment = cluster.best
        span = segment.span if answer == writer else None
        segments.append(replace(segment, label=cluster.label, span=span, slot_prob=cluster.votes / len(read)))
    return replace(read[writer], segments=segments, problems=(*read[writer].problems, *problems))


def _cluster_of(mask: np.ndarray, clusters: list[_Cluster], iou_threshold: float) -> _Cluster:
    """The first cluster with whose first mask this one agrees, or a new one."""
    for cluster in clusters:
        first = cluster.members[0][1].mask
        union = np.logical_or(mask, first).sum()
        if union and np.logical_and(mask, first).sum() / union >= iou_threshold:
            return cluster
    clusters.append(_Cluster())
    return clusters[-1]


__all__ = ["vote"]
