"""Scenes: the same bytes everywhere, exact masks, and splits that keep apart."""

import hashlib
from itertools import combinations

import numpy as np
import pytest

from reasonseg.tabletop.scenes import (
    COLOURS,
    HELD_OUT_PAIRS,
    MIN_VISIBLE_FRACTION,
    SIZES,
    SPLITS,
    TabletopObject,
    TabletopRandom,
    draw_scene,
    scene_random,
)
from reasonseg.tabletop.sprites import KINDS, NUM_POSES, VIEWS, get_sprite


# Digests of image and numbers. A change here changes every data set that was written before: raise FORMAT_VERSION.
DIGESTS = {
    ("train", 0, 0, 160): "92ed189a530c205a",
    ("validation", 3, 0, 112): "15ba20a920a57d07",
    ("test", 7, 5, 96): "00a29334e54119ac",
    ("test_unseen", 1, 0, 224): "b3fa7df903bb4bb5",
}


def digest(scene) -> str:
    return hashlib.sha256(scene.image.tobytes() + scene.id_map.tobytes()).hexdigest()[:16]


@pytest.fixture(scope="module")
def scenes() -> dict[str, list]:
    return {split: [draw_scene(split, index, size=96) for index in range(40)] for split in SPLITS}


def every_scene(scenes):
    return [scene for group in scenes.values() for scene in group]


@pytest.mark.parametrize("case", DIGESTS, ids=lambda case: f"{case[0]}-{case[1]}")
def test_scenes_are_the_same_bytes_on_every_platform(case):
    split, index, seed, size = case
    assert digest(draw_scene(split, index, seed, size)) == DIGESTS[case]


def test_random_numbers_are_the_documented_stream():
    rng = TabletopRandom(1, 2, 3)
    assert [rng.below(1000) for _ in range(4)] == [854, 984, 148, 714]
    assert rng.uniform() == pytest.approx(0.1366205185684103, abs=1e-15)
    assert sorted(rng.shuffled(range(20))) == list(range(20))


def test_scenes_differ_by_split_index_and_seed():
    scenes = [draw_scene("train", 0), draw_scene("test", 0), draw_scene("train", 1), draw_scene("train", 0, seed=1)]
    assert len({digest(scene) for scene in scenes}) == 4


def test_numbers_describe_the_image(scenes):
    for scene in every_scene(scenes):
        assert 2 <= len(scene.objects) <= 7
        assert scene.image.shape == (96, 96, 3)
        assert scene.image.dtype == scene.id_map.dtype == np.uint8
        assert scene.id_map.max() == len(scene.objects)
        for position, thing in enumerate(scene.objects):
            rows, columns = np.nonzero(scene.mask(position))
            left, top, right, bottom = thing.box_xyxy
            assert 0 <= left <= columns.min() <= columns.max() < right <= 96
            assert 0 <= top <= rows.min() <= rows.max() < bottom <= 96
            assert thing.visible_area == len(rows) <= thing.area
            assert thing.visible_area >= MIN_VISIBLE_FRACTION * thing.area


def test_things_hide_each_other_in_some_scenes(scenes):
    hidden = [thing for scene in every_scene(scenes) for thing in scene.objects if thing.visible_area < thing.area]
    assert len(hidden) > 20


def test_masks_have_the_colour_of_their_thing(scenes):
    """The named colour is the nearest one to the middle of the pixels, up to a few parts in other colours."""
    names = list(COLOURS)
    right = []
    for scene in every_scene(scenes):
        for position, thing in enumerate(scene.objects):
            colour = np.median(scene.image[scene.mask(position)].astype(float), axis=0)
            # Brightness changes with the light: compare directions, and lightness only where there is no hue.
            palette = np.array(list(COLOURS.values()), dtype=float)
            chroma = palette - palette.mean(1, keepdims=True)
            found = colour - colour.mean()
            if np.abs(found).max() < 30:
                guess = "white" if colour.mean() > 120 else "black"
            else:
                similarity = chroma @ found / (np.linalg.norm(chroma, axis=1) + 1e-9)
                guess = names[int(similarity[:6].argmax())]
            right.append(guess == thing.colour)
    assert np.mean(right) > 0.95


def test_mask_of_several_things_is_their_union(scenes):
    scene = scenes["train"][0]
    np.testing.assert_array_equal(scene.mask(0, 1), scene.mask(0) | scene.mask(1))


def test_held_out_pairs_are_only_in_their_split(scenes):
    assert {kind for kind, _ in HELD_OUT_PAIRS} == set(KINDS)
    for split, group in scenes.items():
        held_out = [any((t.kind, t.colour) in HELD_OUT_PAIRS for t in scene.objects) for scene in group]
        assert all(held_out) if split == "test_unseen" else not any(held_out)


def test_every_kind_colour_size_and_view_is_drawn(scenes):
    things = [thing for scene in every_scene(scenes) for thing in scene.objects]
    assert {thing.kind for thing in things} == set(KINDS)
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.size for thing in things} == set(SIZES)
    assert {scene.view for scene in every_scene(scenes)} == set(VIEWS)


def test_sizes_are_well_apart():
    for kind in KINDS:
        areas = [int(get_sprite(kind, 0, round(288 * scale), "angle", False).mask.sum()) for scale in SIZES.values()]
        assert areas[1] > 1.8 * areas[0]
        assert areas[2] > 1.8 * areas[1]


@pytest.mark.parametrize("view", VIEWS)
def test_silhouettes_of_kinds_differ(view):
    """Laid over each other by their boxes, no two kinds look the same in any pose."""
    shapes = {}
    for kind in KINDS:
        for pose in range(NUM_POSES[kind]):
            mask = get_sprite(kind, pose, 240, view, False).mask
            rows, columns = (np.linspace(0, side - 1, 32).round().astype(int) for side in mask.shape)
            ratio = round(6 * np.log2(mask.shape[0] / mask.shape[1]))
            shapes[kind, pose] = (mask[rows][:, columns], ratio)
    for first, second in combinations(shapes, 2):
        if first[0] == second[0] or abs(shapes[first][1] - shapes[second][1]) > 2:
            continue
        a, b = shapes[first][0], shapes[second][0]
        assert (a & b).sum() / (a | b).sum() < 0.9, (first, second)


def test_mirrored_sprites_are_mirrored():
    plain, mirrored = (get_sprite("cup", 0, 300, "angle", mirror) for mirror in (False, True))
    np.testing.assert_array_equal(plain.mask[:, ::-1], mirrored.mask)
    np.testing.assert_array_equal(plain.shadow[:, ::-1], mirrored.shadow)
    assert mirrored.origin_yx == (plain.origin_yx[0], plain.mask.shape[1] - 1 - plain.origin_yx[1])


def test_flipped_twice_is_the_same(scenes):
    scene = scenes["train"][3]
    flipped = scene.flipped()
    np.testing.assert_array_equal(flipped.mask(1), scene.mask(1)[:, ::-1])
    rows, columns = np.nonzero(flipped.mask(1))
    left, top, right, bottom = flipped.objects[1].box_xyxy
    assert left <= columns.min() <= columns.max() < right
    assert top <= rows.min() <= rows.max() < bottom
    again = flipped.flipped()
    assert again.objects == scene.objects
    np.testing.assert_array_equal(again.image, scene.image)


def test_dense_labels_point_at_their_thing(scenes):
    scene = scenes["train"][5]
    labels = scene.dense_labels()
    for position, thing in enumerate(scene.objects):
        row, column = np.argwhere(scene.mask(position))[0]
        assert KINDS[labels["kind"][row, column] - 1] == thing.kind
        assert list(COLOURS)[labels["colour"][row, column] - 1] == thing.colour
        assert list(SIZES)[labels["size"][row, column] - 1] == thing.size
        offset_x, offset_y = labels["centre_xy"][:, row, column] * scene.size
        assert (column + 0.5 + offset_x, row + 0.5 + offset_y) == pytest.approx(thing.centre_xy, abs=1e-3)
    for name in ("kind", "colour", "size"):
        np.testing.assert_array_equal(labels[name] == 0, scene.id_map == 0)
    assert not labels["centre_xy"][:, scene.id_map == 0].any()


def test_objects_survive_json():
    thing = draw_scene("train", 0, size=64).objects[0]
    assert TabletopObject.from_dict(thing.to_dict()) == thing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("holiday", 0), "no split 'holiday'; choose one of train"),
        (("train", -1), "must not be negative, got -1"),
        (("train", 0, -2), "must not be negative, got 0, -2"),
        (("train", 0, 0, 32), "64 to 1024 pixels, got 32"),
    ],
)
def test_wrong_scenes_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_scene(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("spoon", 0, 100, "angle", False), "no kind 'spoon'; choose one of cup"),
        (("cup", 2, 100, "angle", False), "poses 0 to 1, got 2"),
        (("cup", 0, 100, "below", False), "no view 'below'"),
        (("cup", 0, 0, "angle", False), "at least 1, got 0"),
    ],
)
def test_wrong_sprites_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        get_sprite(*arguments)


def test_streams_of_a_scene_differ():
    draws = {scene_random("train", 0, 0, stream).uniform() for stream in range(5)}
    assert len(draws) == 5
