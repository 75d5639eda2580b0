"""Masks of every kind that people give: the same mask is read from each, and what may mean two things is refused."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from reasonseg.processing.image_loading import load_rgb_image, upright_mask
from reasonseg.processing.mask_reading import read_mask, read_soft_mask
from reasonseg.processing.regions import read_run_lengths
from reasonseg.processing.segments import mask_to_polygons, mask_to_rle


SIZE = (24, 36)


def ring() -> np.ndarray:
    """A square with a hole and an island in it, and a second part."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[2:20, 3:21] = True
    mask[5:17, 6:18] = False
    mask[8:11, 9:12] = True
    mask[4:9, 25:34] = True
    return mask


MASK = ring()
WHITE = MASK.astype(np.uint8) * 255


def uncompressed(mask: np.ndarray) -> dict:
    flat = mask.reshape(-1, order="F").astype(int)
    ends = [*(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    counts = np.diff([0, *ends]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def interlaced(mask: np.ndarray) -> np.ndarray:
    wide = np.zeros((mask.shape[0], 2 * mask.shape[1]), dtype=np.uint8)
    wide[:, ::2] = mask
    return wide[:, ::2]


ARRAYS = {
    "bool": MASK,
    "0 and 1": MASK.astype(np.uint8),
    "0 and 255": WHITE,
    "int8": MASK.astype(np.int8),
    "int64": MASK.astype(np.int64),
    "int64 of 255": MASK.astype(np.int64) * 255,
    "uint16 of 65535": MASK.astype(np.uint16) * 65535,
    "float16": MASK.astype(np.float16),
    "float32": MASK.astype(np.float32),
    "float64 of 255": MASK * 255.0,
    "columns first": np.asfortranarray(MASK),
    "negative strides": MASK[::-1, ::-1].copy()[::-1, ::-1],
    "not contiguous": interlaced(MASK),
    "read only": np.frombuffer(WHITE.tobytes(), dtype=np.uint8).reshape(SIZE),
    "bool tensor": torch.from_numpy(MASK),
    "float tensor": torch.from_numpy(MASK).float().requires_grad_(),
    "bfloat16 tensor": torch.from_numpy(MASK).bfloat16(),
    "transposed tensor": torch.from_numpy(MASK.T.copy()).T,
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_every_layout_and_number_format(kind):
    read = read_mask(ARRAYS[kind], SIZE)
    assert read.dtype == bool
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, MASK)
    np.testing.assert_array_equal(read_soft_mask(ARRAYS[kind], SIZE), MASK.astype(np.float32))


def palette_image(colours: list[tuple[int, int, int]], numbers: np.ndarray) -> Image.Image:
    image = Image.fromarray(numbers.astype(np.uint8), mode="P")
    image.putpalette([value for colour in colours for value in colour])
    return image


IMAGES = {
    "1": Image.fromarray(MASK),
    "L": Image.fromarray(WHITE),
    "L of 1": Image.fromarray(MASK.astype(np.uint8)),
    "I;16": Image.fromarray(MASK.astype(np.uint16) * 65535),
    "I": Image.fromarray(MASK.astype(np.int32)),
    "RGB": Image.fromarray(WHITE).convert("RGB"),
    "RGBA": Image.fromarray(WHITE).convert("RGBA"),
    "LA": Image.fromarray(WHITE).convert("LA"),
    "P, a label map": palette_image([(0, 0, 0), (128, 0, 0), (0, 128, 0)], MASK * 2),
    "P, black and white": palette_image([(0, 0, 0), (255, 255, 255)], MASK),
    "P, white first": palette_image([(255, 255, 255), (0, 0, 0)], ~MASK),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_and_their_files(kind, tmp_path):
    np.testing.assert_array_equal(read_mask(IMAGES[kind], SIZE), MASK)
    path = tmp_path / ("mask.tif" if kind == "I" else "mask.png")
    IMAGES[kind].save(path)
    for given_path in (path, str(path)):
        np.testing.assert_array_equal(read_mask(given_path, SIZE), MASK)


def test_run_lengths_of_every_kind():
    compressed = mask_to_rle(MASK)
    kinds = (
        compressed,
        {**compressed, "counts": compressed["counts"].encode()},
        uncompressed(MASK),
        {"size": SIZE, "counts": np.array(uncompressed(MASK)["counts"])},
        json.loads(json.dumps(uncompressed(MASK))),
    )
    for rle in kinds:
        np.testing.assert_array_equal(read_mask(rle, SIZE), MASK)
        np.testing.assert_array_equal(read_mask(rle), MASK)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
def test_run_lengths_are_pycocotools_own(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    np.testing.assert_array_equal(read_mask(encoded), mask)
    np.testing.assert_array_equal(read_mask(uncompressed(mask)), mask)


def test_long_runs():
    mask = np.zeros((3000, 2000), dtype=bool)
    mask[1:, 700:] = True
    np.testing.assert_array_equal(read_mask(mask_to_rle(mask)), mask)


LEFT, RIGHT = [2, 3, 12, 3, 12, 13, 2, 13], [20, 3, 30, 3, 30, 20, 20, 20]


def drawn(*polygons) -> np.ndarray:
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(list(polygons), *SIZE))).astype(bool)


def pairs(polygon: list[float]) -> list[list[float]]:
    return [list(corner) for corner in zip(polygon[::2], polygon[1::2], strict=True)]


@pytest.mark.parametrize(
    "form",
    [
        [LEFT, RIGHT],
        (tuple(LEFT), tuple(RIGHT)),
        [pairs(LEFT), pairs(RIGHT)],
        [np.array(LEFT), np.array(RIGHT)],
        [np.array(pairs(LEFT), dtype=np.float32), np.array(pairs(RIGHT))],
        [[LEFT], [RIGHT]],
        [[pairs(LEFT)], [pairs(RIGHT)]],
    ],
)
def test_polygons_of_several_parts(form):
    np.testing.assert_array_equal(read_mask(form, SIZE), drawn(LEFT, RIGHT))


@pytest.mark.parametrize("form", [LEFT, [LEFT], [pairs(LEFT)], pairs(LEFT), [[LEFT]]])
def test_one_polygon(form):
    np.testing.assert_array_equal(read_mask(form, SIZE), drawn(LEFT))


def test_parts_that_overlap_are_united():
    other = [8, 8, 25, 8, 25, 22, 8, 22]
    for second in (other, [value for corner in reversed(pairs(other)) for value in corner]):
        np.testing.assert_array_equal(read_mask([LEFT, second], SIZE), drawn(LEFT, other))


OUTLINE, HOLE = [2, 2, 30, 2, 30, 20, 2, 20], [8, 6, 16, 6, 16, 12, 8, 12]
HOLE_BACK = [value for corner in reversed(pairs(HOLE)) for value in corner]


def test_holes():
    expected = drawn(OUTLINE) & ~drawn(HOLE)
    for form in (
        [[OUTLINE, HOLE]],
        [[OUTLINE, HOLE_BACK]],
        [[pairs(OUTLINE), pairs(HOLE)]],
        [OUTLINE, HOLE_BACK],
        [HOLE_BACK, OUTLINE],
    ):
        np.testing.assert_array_equal(read_mask(form, SIZE), expected)
    with pytest.raises(ValueError, match=r"polygon inside another \(number 2 in number 1\).*\[\[outline, hole\]\]"):
        read_mask([OUTLINE, HOLE], SIZE)


def test_what_this_package_writes_as_polygons_is_read_back():
    polygons = mask_to_polygons(MASK)
    assert len(polygons) == 4
    np.testing.assert_array_equal(read_mask(polygons, SIZE), MASK)
    np.testing.assert_array_equal(read_mask([polygon.ravel().tolist() for polygon in polygons], SIZE), MASK)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(1, 3), st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
def test_so_are_the_polygons_of_any_mask(height, width, scale, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    mask = np.kron(mask, np.ones((scale, scale), dtype=bool))
    if mask.any():
        np.testing.assert_array_equal(read_mask(mask_to_polygons(mask), mask.shape), mask)


def test_soft_edges_are_for_targets_alone():
    soft = np.linspace(0, 1, SIZE[0] * SIZE[1], dtype=np.float64).reshape(SIZE)
    np.testing.assert_array_equal(read_soft_mask(soft, SIZE), soft.astype(np.float32))
    np.testing.assert_array_equal(read_soft_mask(soft * (1 + 1e-6) - 1e-7, SIZE).max(), 1)
    with pytest.raises(ValueError, match="864 different values"):
        read_mask(soft, SIZE)
    for wrong in (soft * 255, soft - 0.5, np.where(soft > 0.5, np.nan, 0.0)):
        with pytest.raises(ValueError, match="Allowed are bool, 0 and 1, or 0 and 255"):
            read_soft_mask(wrong, SIZE)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.arange(864).reshape(SIZE) % 3, r"3 different values \(0, 1, 2\)"),
        (MASK * 2, r"2 different values \(0, 2\)"),
        (MASK.astype(int) - 1, r"2 different values \(-1, 0\)"),
        (np.where(MASK, 255, 1), r"2 different values \(1, 255\)"),
        (np.where(MASK, np.inf, 0), "not finite"),
        (MASK[None], r"shape \(1, 24, 36\)"),
        (MASK[..., None], r"shape \(24, 36, 1\)"),
        (np.zeros((0, 4)), r"shape \(0, 4\)"),
        (np.array([["a", "b"]]), "dtype <U1"),
        (MASK.astype(complex), "dtype complex128"),
        (MASK[:1], "36 x 1 pixels, the image 36 x 24.*nothing is resized or repeated"),
        (MASK[:, :1], "1 x 24 pixels, the image 36 x 24"),
        (MASK.T, "24 x 36 pixels, the image 36 x 24.*sides are swapped.*upright frame"),
        (mask_to_rle(MASK.T), "24 x 36 pixels, the image 36 x 24.*sides are swapped"),
        (Image.fromarray(WHITE[:12]), "36 x 12 pixels"),
        (Image.fromarray(np.where(MASK[..., None], np.array([255, 0, 0]), 0).astype(np.uint8)), "has colours"),
        (Image.fromarray(WHITE // 2), r"2 different values \(0, 127\)"),
        (palette_image([(0, 0, 0), (128, 0, 0), (0, 128, 0)], MASK + np.eye(*SIZE)), r"palette colours \[0, 1, 2\]"),
        (palette_image([(9, 0, 0), (0, 0, 0)], MASK), r"palette colours \[0, 1\]"),
        ("missing.png", "not an existing local image file"),
        ("https://example.com/mask.png", "is a URL"),
        (3, "of type int"),
        (None, "of type NoneType"),
        ([], "empty list of polygons"),
        ([[]], r"polygon \[\[\]\]"),
        ([[], LEFT], "polygon of 0 corners"),
        ([[], [pairs(LEFT)]], "polygon of 0 corners"),
        ([[], 5, [pairs(LEFT)]], "has the polygon 5"),
        ([LEFT, 5], "has the polygon 5"),
        ([[[[[[1, 2]]]]]], "list of 6 levels"),
        ([[1, 2, 3]], r"polygon \[1, 2, 3\].*even number"),
        ([[1, 2, 9, 9]], r"polygon of 2 corners.*a box is no mask"),
        ([1, 2, 9, 9], "polygon of 2 corners"),
        ([[1, 2, 9, 9], LEFT], "polygon of 2 corners"),
        ([[1, 2, 3, float("nan"), 5, 6]], "finite numbers"),
        ([["1", "2", "3", "4", "5", "6"]], "even number of finite numbers"),
        ([LEFT, pairs(RIGHT)], "even number of finite numbers"),
        ([[1, 1, 300, 1, 300, 20]], r"from \(1, 1\) to \(300, 20\), and the image is 36 x 24 pixels"),
        ([[1e9, 1, 1e9, 3, 1e9, 20]], "the image is 36 x 24"),
        ([[36.5, 1, 37, 1, 37, 20]], "cover no pixel"),
        (MASK.astype(int).tolist(), "list of rows as long as the image's"),
        ({"counts": "abc"}, "dict with size and counts"),
        ({"size": [24, 36], "counts": [863]}, "sum up to 863; its size 24 x 36 .* needs 864"),
        ({"size": [24, 36], "counts": [800, 65]}, "sum up to 865"),
        ({"size": [24, 36], "counts": []}, "whole numbers"),
        ({"size": [24, 36], "counts": [-1, 865]}, "sum up to 864; .* needs 864, in counts of 0 or more"),
        ({"size": [24, 36], "counts": [2**62, 2**62, 2**62, 2**62, 864]}, "sum up to"),
        ({"size": [24, 36], "counts": [2**70]}, "whole numbers"),
        ({"size": [24, 36], "counts": [432.0, 432.0]}, "whole numbers"),
        ({"size": [24, 36], "counts": [[864]]}, "whole numbers"),
        ({"size": [24, 36], "counts": None}, "whole numbers"),
        ({"size": [24, 36], "counts": ""}, "no compressed counts"),
        ({"size": [24, 36], "counts": "hello"}, "no compressed counts|sum up to"),
        ({"size": [24, 36], "counts": "\u00e9\u00e9"}, "no compressed counts"),
        ({"size": [24, 36], "counts": "ooooooooooooo"}, "no compressed counts"),
        ({"size": [24], "counts": [24]}, r"Give \[height, width\]"),
        ({"size": [24.0, 36.0], "counts": [864]}, r"Give \[height, width\]"),
        ({"size": [[24], [36, 1]], "counts": [864]}, r"Give \[height, width\]"),
        ({"size": [True, True], "counts": [1]}, r"Give \[height, width\]"),
        ({"size": [0, 36], "counts": []}, r"Give \[height, width\]"),
        ({"size": [-24, -36], "counts": [864]}, r"Give \[height, width\]"),
    ],
)
def test_what_is_refused(mask, message):
    with pytest.raises(ValueError, match=f"(?s){message}") as refused:
        read_mask(mask, SIZE, "The cup")
    assert str(refused.value).startswith("The cup")


def test_compressed_counts_that_do_not_cover_the_image():
    """pycocotools leaves the rest as memory was found, or refuses, by version."""
    small = mask_to_rle(MASK[:, :30])["counts"]
    with pytest.raises(ValueError, match="sum up to 720; its size 24 x 36"):
        read_mask({"size": [24, 36], "counts": small}, SIZE)
    with pytest.raises(ValueError, match="sum up to 864; its size 24 x 30"):
        read_run_lengths({"size": [24, 30], "counts": mask_to_rle(MASK)["counts"]})


def test_an_unknown_size_is_limited():
    with pytest.raises(ValueError, match="more than the 67108864 allowed"):
        read_mask({"size": [100_000, 100_000], "counts": [10**10]})
    with pytest.raises(ValueError, match="do not tell how large the image is"):
        read_mask([LEFT])


def test_grey_edges_and_jpeg_files_are_refused(tmp_path):
    Image.fromarray(WHITE).resize((72, 48), Image.Resampling.BILINEAR).save(tmp_path / "grey.png")
    Image.fromarray(WHITE).save(tmp_path / "mask.jpg", quality=60)
    for name, size in (("grey.png", (48, 72)), ("mask.jpg", SIZE)):
        with pytest.raises(ValueError, match=rf"The mask in '.*{name}' has \d+ different values.*mask > 127"):
            read_mask(tmp_path / name, size)


def test_opacity_is_not_taken_for_a_mask(tmp_path):
    cut_out = np.zeros((*SIZE, 4), dtype=np.uint8)
    cut_out[MASK] = 255
    Image.fromarray(cut_out).save(tmp_path / "cut.png")
    with pytest.raises(ValueError, match="transparent pixels, so that it has two masks"):
        read_mask(tmp_path / "cut.png", SIZE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_lie_in_the_upright_frame(orientation, tmp_path):
    """A mask file that carries the orientation of its image is turned like it; stored pixels are turned by request."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(WHITE).save(tmp_path / "mask.png", exif=exif)
    upright = np.asarray(load_rgb_image(tmp_path / "mask.png"))[..., 0] == 255
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", upright.shape), upright)
    np.testing.assert_array_equal(upright_mask(MASK, orientation), upright)
    if orientation > 4:
        with pytest.raises(ValueError, match="sides are swapped"):
            read_mask(MASK, upright.shape)


def test_exports_read_masks_the_same_way():
    for kind in ("0 and 255", "int64 of 255", "float64 of 255", "negative strides", "not contiguous"):
        assert mask_to_rle(ARRAYS[kind]) == mask_to_rle(MASK)
        assert [polygon.tolist() for polygon in mask_to_polygons(ARRAYS[kind])] == [
            polygon.tolist() for polygon in mask_to_polygons(MASK)
        ]
    for export in (mask_to_rle, mask_to_polygons):
        for wrong in (MASK * 256, MASK * 0.4, MASK[None]):
            with pytest.raises(ValueError, match=r"Allowed are bool|Give \(height, width\)"):
                export(wrong)
