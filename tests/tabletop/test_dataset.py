"""The torch data set: epochs bring fresh requests and scenes, begin with simple ones, and workers follow."""

import numpy as np
import pytest
from torch.utils.data import DataLoader

from reasonseg.tabletop.dataset import TabletopDataset


SIZE = 72


def questions(item) -> list[str]:
    return [request.question for request in item.requests]


def dataset_of(length: int = 8, **options) -> TabletopDataset:
    return TabletopDataset("train", length, seed=3, size=SIZE, **options)


def test_epochs_ask_something_else_unless_told_not_to():
    fresh, fixed = dataset_of(), dataset_of(fresh_requests=False)
    first = questions(fresh[2])
    fresh.set_epoch(1)
    fixed.set_epoch(1)
    assert questions(fresh[2]) != first
    assert questions(fixed[2]) == first
    fresh.set_epoch(0)
    assert questions(fresh[2]) == first


def test_epochs_show_the_same_scenes_unless_told_not_to():
    same, fresh = dataset_of(), dataset_of(fresh_scenes=True)
    before = [same.get_scene(i).index for i in range(8)]
    assert before == [fresh.get_scene(i).index for i in range(8)] == list(range(8))
    for dataset in (same, fresh):
        dataset.set_epoch(2)
    assert [same.get_scene(i).index for i in range(8)] == before
    assert [fresh.get_scene(i).index for i in range(8)] == list(range(16, 24))


def test_first_epochs_follow_the_curriculum():
    simple = {"weights": {"kind": 1.0}, "several_rate": 0.0}
    dataset = dataset_of(curriculum=[simple], requests_per_scene=2, several_rate=1.0)
    types = [[request.type for request in dataset[i].requests] for i in range(8)]
    assert types == [["kind", "kind"]] * 8
    dataset.set_epoch(1)
    assert [[request.type for request in dataset[i].requests] for i in range(8)] == [["several", "several"]] * 8


def test_mirrors_change_with_the_epoch_and_keep_masks_right():
    dataset = dataset_of(flip=True)
    mirrored = np.zeros((6, 8), dtype=bool)
    for epoch in range(6):
        dataset.set_epoch(epoch)
        for position in range(8):
            item, plain = dataset[position], dataset.get_scene(position)
            mirrored[epoch, position] = not np.array_equal(item.image, plain.image)
            expected = plain.image[:, ::-1] if mirrored[epoch, position] else plain.image
            np.testing.assert_array_equal(item.image, expected)
            for request in item.requests:
                for mask, targets in zip(request.masks, request.targets, strict=True):
                    if targets:
                        np.testing.assert_array_equal(mask, item.scene.mask(*targets))
    assert 10 < mirrored.sum() < 38
    assert (mirrored.any(0) & ~mirrored.all(0)).any()


def test_workers_follow_the_epoch():
    """Workers of a persistent loader are started before the second epoch is announced."""
    dataset = dataset_of(4)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        assert [questions(item) for item in loader] == [questions(dataset[i]) for i in range(4)]


def test_request_options_are_passed_on():
    dataset = dataset_of(requests_per_scene=2, absent_rate=0.0, several_rate=0.0)
    for position in range(8):
        requests = dataset[position].requests
        assert len(requests) == 2
        assert all(request.present == [True] for request in requests)


def test_wrong_arguments_are_explained():
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        dataset_of(0)
    with pytest.raises(IndexError, match="4 scenes, got position 4"):
        dataset_of(4)[4]
