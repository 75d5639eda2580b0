"""Masking an image by its heat-map: equal to the original's images to the last bit, and clear at its limits."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from reasonseg.processing import masked_images
from reasonseg.processing.masked_images import blur_mask, dilate_mask, gaussian_weights, mask_image
from reasonseg.processing.segments import post_process_masks
from tests.support.parity_data import load_meta, load_tensors
from tests.support.recorded_cases import recorded_image


META, RECORDED = load_meta("ivm"), load_tensors("ivm")
NAMES = [f"img{image}_ins{instruction}" for image in (0, 1) for instruction in (0, 1)]


def recorded_heatmap(name: str) -> np.ndarray:
    """The heat-map of the recorded low-resolution mask."""
    image = recorded_image("ivm", name[:4])
    masks = RECORDED["batch/low_res_masks"][NAMES.index(name)]
    logits = post_process_masks(masks, (image.height, image.width), (1024, 1024), mask_threshold=None)
    return logits[0].sigmoid().numpy()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.99])
def test_recorded_images_are_equal_to_the_last_bit(name, threshold):
    masked = mask_image(recorded_image("ivm", name[:4]), recorded_heatmap(name), threshold)
    case = f"forward_batch/thr{threshold}/crop0/{name}"
    assert np.array_equal(masked.pixels[::8, ::8], RECORDED[f"{case}_stride8"].numpy())
    assert masked.pixels.astype(np.float64).sum() == META[case]["sum"]
    x1, y1, x2, y2 = masked.crop_box_xyxy
    cropped = masked.pixels[y1:y2, x1:x2]
    case = f"forward_batch/thr{threshold}/crop1/{name}"
    assert list(cropped.shape) == META[case]["shape"]
    assert cropped.astype(np.float64).sum() == META[case]["sum"]
    assert masked.crop.size == (x2 - x1, y2 - y1)
    # the model's largest value decides whether anything is hidden at all
    assert masked.found == (META[f"prob_range/{name}"][1] > threshold)


def test_recorded_overlay_colour():
    masked = mask_image(recorded_image("ivm", "img0"), recorded_heatmap("img0_ins0"), 0.5, overlay_color=(10, 200, 30))
    recorded = RECORDED["forward_batch/overlay_10_200_30/thr0.5/img0_ins0_stride8"].numpy()
    assert np.array_equal(masked.pixels[::8, ::8], recorded)


def spot(height=40, width=60, box=(20, 10, 30, 20)) -> tuple[np.ndarray, np.ndarray]:
    """A random image and a heat-map with one bright box (x1, y1, x2, y2)."""
    x1, y1, x2, y2 = box
    heatmap = np.full((height, width), 0.05, np.float32)
    heatmap[y1:y2, x1:x2] = 0.8
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8), heatmap


def test_it_shows_itself_in_one_line_and_in_notebooks():
    image, heatmap = spot()
    masked = mask_image(image, heatmap, 0.5)
    assert repr(masked) == "MaskedImage(found=True, kept_ratio=0.0417, box_xyxy=(20, 10, 30, 20), 60x40)"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(masked._repr_png_()))), np.asarray(masked.masked_image))


def test_what_the_heatmap_finds_stays_and_the_rest_is_painted():
    image, heatmap = spot()
    masked = mask_image(image, heatmap, 0.5, dilate=0, blur=0, overlay_color="red")
    assert masked.found
    assert masked.box_xyxy == masked.crop_box_xyxy == (20, 10, 30, 20)
    assert masked.kept_ratio == pytest.approx(100 / 2400)
    pixels = np.asarray(masked.masked_image)
    assert np.array_equal(pixels[10:20, 20:30], image[10:20, 20:30])
    assert np.array_equal(np.unique(pixels[~masked.mask], axis=0), [[255, 0, 0]])
    assert np.array_equal(np.asarray(masked.crop), image[10:20, 20:30])
    assert masked.heatmap.dtype == np.float32


def test_widening_and_softening_are_shares_of_the_height():
    image, heatmap = spot(height=100, width=60, box=(20, 40, 30, 50))
    wide = mask_image(image, heatmap, 0.5, dilate=0.05, blur=0)
    assert wide.crop_box_xyxy == (15, 35, 35, 55)
    assert set(np.unique(wide.weights)) == {0.0, 1.0}
    soft = mask_image(image, heatmap, 0.5, dilate=0.05, blur=0.03)
    assert soft.crop_box_xyxy == (12, 32, 38, 58)
    assert len(np.unique(soft.weights)) > 5
    assert soft.box_xyxy == wide.box_xyxy == (20, 40, 30, 50), "the box is that of the mask itself"


@pytest.mark.parametrize(("threshold", "min_kept_ratio"), [(0.9, 0.0), (0.5, 0.05)])
def test_the_whole_image_is_kept_and_said_so_where_too_little_is_found(threshold, min_kept_ratio):
    image, heatmap = spot()
    masked = mask_image(image, heatmap, threshold, min_kept_ratio=min_kept_ratio)
    assert not masked.found
    assert np.array_equal(np.asarray(masked.masked_image), image)
    assert masked.crop.size == masked.masked_image.size
    assert (masked.weights == 1).all()
    if threshold == 0.9:
        assert masked.box_xyxy is None
        assert masked.kept_ratio == 0
    else:
        assert masked.box_xyxy == (20, 10, 30, 20)


def test_dilation_is_a_maximum_over_a_square():
    rng = np.random.default_rng(1)
    for shape, radius in [((13, 17), 3), ((5, 40), 4), ((1, 1), 2), ((9, 9), 0)]:
        mask = rng.random(shape) > 0.9
        tensor = torch.from_numpy(mask).float()[None, None]
        expected = torch.nn.functional.max_pool2d(tensor, 2 * radius + 1, stride=1, padding=radius)[0, 0].bool()
        assert np.array_equal(dilate_mask(mask, radius), expected.numpy())


def test_blur_is_a_mirrored_gaussian():
    rng = np.random.default_rng(2)
    shapes = [((30, 44), 5), ((7, 300), 12), ((600, 20), 3), ((3, 3), 8), ((1, 9), 2)]
    # pixels by chance, and wide parts: of most rows a window holds one edge at most
    masks = [(rng.random(shape) > 0.6, radius) for shape, radius in shapes]
    masks += [(dilate_mask(rng.random((60, 400)) > 0.9995, 9), radius) for radius in (3, 9, 20)]
    for mask, radius in masks:
        shape = mask.shape
        weights = gaussian_weights(radius).astype(np.float64)
        padded = np.pad(mask.astype(np.float64), radius, mode="reflect")
        rows = sum(w * padded[:, place : place + shape[1]] for place, w in enumerate(weights))
        expected = sum(w * rows[place : place + shape[0]] for place, w in enumerate(weights))
        blurred = blur_mask(mask, radius)
        assert blurred.dtype == np.float32
        assert np.abs(blurred - expected).max() < 1e-6
    assert not blur_mask(np.zeros((4, 4), bool), 1).any()


def test_a_large_mask_is_blurred_in_blocks_without_seams():
    mask = np.zeros((30, 4000), bool)
    mask[5:15, 3:3900] = True
    blurred = blur_mask(mask, 4)
    assert np.array_equal(blurred[:, 400:3800], np.repeat(blurred[:, 400:401], 3400, axis=1))
    assert np.array_equal(blur_mask(np.tile(mask[:, 1000:1100], (1, 40)), 4)[:, 400:3800], blurred[:, 400:3800])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, r"threshold is 1.5. It must lie in 0\.\.1"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": "high"}, "threshold is 'high'"),
        ({"dilate": -0.1}, r"dilate is -0.1. It must lie in 0\.\.0.5"),
        ({"blur": 2}, "blur is 2"),
        ({"min_kept_ratio": 2}, "min_kept_ratio is 2"),
        ({"overlay_color": "greenish"}, "The colour 'greenish' was given. Give three numbers"),
        ({"overlay_color": (0, 0)}, r"The colour \(0, 0\)"),
        ({"overlay_color": (0, 0, 300)}, "300"),
    ],
)
def test_options_out_of_range(options, message):
    image, heatmap = spot()
    with pytest.raises(ValueError, match=message):
        mask_image(image, heatmap, **options)


def test_a_heatmap_of_another_image():
    image, heatmap = spot()
    with pytest.raises(ValueError, match=r"The heat-map has the shape \(40, 60\), the image \(60, 40\)"):
        mask_image(Image.fromarray(image).rotate(90, expand=True), heatmap)


def test_a_image_that_was_accepted_before_is_not_too_large_now(monkeypatch):
    image, heatmap = spot()
    monkeypatch.setattr(masked_images, "MAX_IMAGE_PIXELS", 100)
    assert mask_image(image, heatmap).mask.shape == (40, 60)
    with pytest.raises(ValueError, match="more than the 100 allowed"):
        mask_image(image, heatmap[:5, :5])
