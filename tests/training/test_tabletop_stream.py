"""The torch data set: cached scenes equal drawn ones, epochs bring fresh requests, workers follow the epoch."""

import numpy as np
import pytest
from torch.utils.data import DataLoader

from reasonseg.training.tabletop_stream import SceneCache, TabletopDataset, build_scene_cache


SIZE = 72


def questions(item) -> list[str]:
    return [request.question for request in item["requests"]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return build_scene_cache(tmp_path_factory.mktemp("scenes") / "cache", "train", 8, seed=3, size=SIZE)


def test_cached_scenes_equal_drawn_ones(cache):
    cached = TabletopDataset(length=8, cache=cache)
    drawn = TabletopDataset("train", 8, seed=3, size=SIZE)
    assert len(cached) == len(drawn) == 8
    for first, second in zip((cached[i] for i in range(8)), (drawn[i] for i in range(8)), strict=True):
        np.testing.assert_array_equal(first["image"], second["image"])
        assert first["scene"].objects == second["scene"].objects
        assert questions(first) == questions(second)
        for one, other in zip(first["requests"], second["requests"], strict=True):
            for mask, other_mask in zip(one.masks, other.masks, strict=True):
                np.testing.assert_array_equal(mask, other_mask)


def test_epochs_ask_something_else_unless_told_not_to(cache):
    fresh = TabletopDataset(length=8, cache=cache)
    fixed = TabletopDataset(length=8, cache=cache, fresh_requests=False)
    first = questions(fresh[2])
    fresh.set_epoch(1)
    fixed.set_epoch(1)
    assert questions(fresh[2]) != first
    assert questions(fixed[2]) == first
    fresh.set_epoch(0)
    assert questions(fresh[2]) == first


def test_mirrors_change_with_the_epoch_and_keep_masks_right(cache):
    dataset = TabletopDataset(length=8, cache=cache, flip=True)
    mirrored = np.zeros((6, 8), dtype=bool)
    for epoch in range(6):
        dataset.set_epoch(epoch)
        for position in range(8):
            item, plain = dataset[position], dataset.get_scene(position)
            mirrored[epoch, position] = not np.array_equal(item["image"], plain.image)
            expected = plain.image[:, ::-1] if mirrored[epoch, position] else plain.image
            np.testing.assert_array_equal(item["image"], expected)
            for request in item["requests"]:
                for mask, targets in zip(request.masks, request.targets, strict=True):
                    if targets:
                        np.testing.assert_array_equal(mask, item["scene"].mask(*targets))
    assert 10 < mirrored.sum() < 38
    assert (mirrored.any(0) & ~mirrored.all(0)).any()


def test_workers_follow_the_epoch(cache):
    """Workers of a persistent loader are started before the second epoch is announced."""
    dataset = TabletopDataset(length=4, cache=cache)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        assert [questions(item) for item in loader] == [questions(dataset[i]) for i in range(4)]


def test_request_options_are_passed_on(cache):
    dataset = TabletopDataset(length=8, cache=cache, requests_per_scene=2, absent_rate=0.0, several_rate=0.0)
    for position in range(8):
        requests = dataset[position]["requests"]
        assert len(requests) == 2
        assert all(request.present == [True] for request in requests)


def test_a_second_build_keeps_the_cache_and_refuses_other_settings(cache):
    before = (cache / "images.npy").stat().st_mtime_ns
    assert build_scene_cache(cache, "train", 8, seed=3, size=SIZE) == cache
    assert (cache / "images.npy").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="does not hold"):
        build_scene_cache(cache, "train", 9, seed=3, size=SIZE)


def test_an_interrupted_build_leaves_no_cache(tmp_path):
    class InterruptedBuildError(Exception):
        pass

    def stop(done, total):
        if done == 2:
            raise InterruptedBuildError

    with pytest.raises(InterruptedBuildError):
        build_scene_cache(tmp_path / "cache", "train", 4, size=SIZE, progress=stop)
    assert not (tmp_path / "cache").exists()
    build_scene_cache(tmp_path / "cache", "train", 4, size=SIZE)
    assert len(SceneCache(tmp_path / "cache")) == 4


def test_wrong_arguments_are_explained(cache, tmp_path):
    with pytest.raises(ValueError, match=r"length is 9, but .* holds 8 scenes"):
        TabletopDataset(length=9, cache=cache)
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        TabletopDataset(length=0)
    with pytest.raises(FileNotFoundError, match="no scene cache"):
        TabletopDataset(length=1, cache=tmp_path)
    with pytest.raises(IndexError, match="4 scenes, got position 4"):
        TabletopDataset(length=4, size=SIZE)[4]
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        build_scene_cache(tmp_path / "cache", "train", 0)
