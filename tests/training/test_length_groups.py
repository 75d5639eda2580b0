"""The order of LLaVA's training: what its own code gave for the same shuffles, and what that order is good for."""

import pytest
import torch

from reasonseg.training.length_groups import ModalityLengthSampler


LENGTHS = [7, -3, 12, 5, -8, 9, 1, 22, -4, 6, 3, 15, -11, 2, 8, -5, 10, 4]


@pytest.mark.parametrize(
    ("lengths", "batch_size", "num_batches", "seed", "expected"),
    [
        (LENGTHS, 2, 2, 1, [11, 13, 14, 3, 7, 0, 2, 5, 16, 10, 9, 17, 12, 8, 4, 15, 1, 6]),
        ([3, 9, 4, 1, 7, 2, 8], 2, 1, 0, [4, 0, 5, 3, 6, 2, 1]),
        ([5, 30, 2, 8, 1, 9, 40, 3], 2, 2, 4, [6, 2, 3, 7, 1, 4, 5, 0]),
    ],
)
def test_the_order_is_the_originals(lengths, batch_size, num_batches, seed, expected):
    """llava_trainer.py, `get_modality_length_grouped_indices`, all of its shuffles by one seeded generator."""
    assert list(ModalityLengthSampler(lengths, batch_size, num_batches, seed)) == expected


def test_batches_are_of_one_kind_and_of_similar_length():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 400, (1003,), generator=generator)
    lengths[torch.rand(1003, generator=generator) < 0.3] *= -1
    sampler = ModalityLengthSampler(lengths.tolist(), batch_size=4, num_batches=8, seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(1003))
    assert len(sampler) == 1003
    kept = len(order) - 64  # what is left over of both kinds comes last
    groups = lengths[torch.tensor(order[: kept // 32 * 32])].view(-1, 32)
    assert ((groups > 0).all(1) | (groups < 0).all(1)).all()
    # Each batch has about as many words as the others of its step.
    words = groups.abs().view(-1, 8, 4).sum(2).float()
    shuffled = lengths[torch.randperm(1003, generator=generator)][:992].abs().view(-1, 8, 4).sum(2).float()
    assert (words.std(1) / words.mean(1)).mean() < 0.5 * (shuffled.std(1) / shuffled.mean(1)).mean()


def test_the_order_follows_seed_and_epoch():
    sampler = ModalityLengthSampler(LENGTHS, 2, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(ModalityLengthSampler(LENGTHS, 2, seed=2)) != first
