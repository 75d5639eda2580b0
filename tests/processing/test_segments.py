"""Masks at the size of the image equal the original's; boxes, RLE, polygons and drawings describe the same mask."""

import io
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch.nn import functional as F

import reasonseg.processing.segments as segments_module
from reasonseg.processing.phrase_segments import PhraseSegment, PhraseSegmentationResult, without_overlaps
from reasonseg.processing.segments import (
    Segment,
    SegmentationResult,
    mask_to_polygons,
    mask_to_rle,
    masks_to_numpy,
    pack_bits,
    post_process_masks,
    segment_color,
)
from tests.support.parity_data import load_case, load_meta, sampled_like, unpack_mask


RNG = np.random.default_rng(0)


def random_masks(count: int) -> list[np.ndarray]:
    shapes = RNG.integers(1, 24, (count, 2))
    return [RNG.random(shape) < RNG.choice([0.1, 0.5, 0.9]) for shape in shapes.tolist()]


MASKS = [
    np.zeros((4, 6), dtype=bool),
    np.ones((4, 6), dtype=bool),
    np.array([[True]]),
    np.eye(5, dtype=bool),
    np.indices((6, 7)).sum(axis=0) % 2 == 0,
    np.pad(np.pad(np.ones((1, 2), dtype=bool), 2, constant_values=False), 1, constant_values=True),
    *random_masks(60),
]


class TestPostProcessMasks:
    @pytest.mark.parametrize(
        ("system", "case", "full"),
        [("lisa", "infer/img0", "low_res_masks_first"), ("gsva", "infer/refer_img1", "low_res_masks")],
    )
    def test_equals_the_recording_exactly(self, system, case, full):
        recorded, image = load_case(system, case), load_meta(system)["img" + case[-1]]
        sizes = (image["original_hw"], image["sam_resized_hw"])
        low_res = recorded[full][:, 0]

        logits = post_process_masks(low_res, *sizes, mask_threshold=None)
        name = next(name for name in recorded if name.startswith("pred_masks0") and "stride" in name)
        assert torch.equal(sampled_like(logits, name), recorded[name])

        masks = post_process_masks(low_res, *sizes)
        assert masks.dtype == torch.bool
        expected = unpack_mask(recorded["pred_masks0_packed"], width=image["original_hw"][1])[: len(masks)]
        np.testing.assert_array_equal(masks.numpy(), expected)

    def test_200_random_sizes_follow_the_formula(self):
        generator = torch.Generator().manual_seed(0)
        for height, width in RNG.integers(1, 3001, (200, 2)).tolist():
            height, width = (
                max(1, height // 12),
                max(1, width // 12),
            )  # the formula holds at any scale; this one is quick
            target = 64
            scale = target / max(height, width)
            resized = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
            low_res = torch.randn(2, 16, 16, generator=generator)
            square = F.interpolate(low_res[None], (target, target), mode="bilinear", align_corners=False)
            expected = F.interpolate(
                square[..., : resized[0], : resized[1]], (height, width), mode="bilinear", align_corners=False
            )[0]
            logits = post_process_masks(low_res, (height, width), resized, target, mask_threshold=None)
            assert logits.shape == (2, height, width)
            torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)
            masks = post_process_masks(low_res, (height, width), resized, target)
            assert torch.equal(masks, logits > 0)

    @pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (2999, 2001), (1024, 1024), (1, 1)])
    def test_a_image_that_is_all_object_stays_all_object(self, size):
        scale = 1024 / max(size)
        resized = tuple(max(1, int(side * scale + 0.5)) for side in size)
        low_res = torch.full((1, 256, 256), -5.0)
        # 1 where the image is, and the row and column of low resolution that its border falls into
        low_res[:, : resized[0] // 4 + 1, : resized[1] // 4 + 1] = 5.0
        masks = post_process_masks(low_res, size, resized)
        assert masks.shape == (1, *size)
        assert masks.float().mean() > 0.99

    def test_chunks_change_nothing(self, monkeypatch):
        low_res = torch.randn(5, 16, 16)
        whole = post_process_masks(low_res, (30, 40), (24, 32), 32, mask_threshold=None)
        monkeypatch.setattr(segments_module, "_CHUNK_VALUES", 2 * 32 * 40)
        assert torch.equal(post_process_masks(low_res, (30, 40), (24, 32), 32, mask_threshold=None), whole)
        assert torch.equal(post_process_masks(low_res, (30, 40), (24, 32), 32), whole > 0)

    def test_no_masks(self):
        masks = post_process_masks(torch.zeros(0, 16, 16), (30, 40), (24, 32), 32)
        assert (masks.shape, masks.dtype) == ((0, 30, 40), torch.bool)

    def test_half_precision_is_computed_in_float32(self):
        low_res = torch.randn(1, 16, 16).bfloat16()
        logits = post_process_masks(low_res, (30, 40), (24, 32), 32, mask_threshold=None)
        assert torch.equal(logits, post_process_masks(low_res.float(), (30, 40), (24, 32), 32, mask_threshold=None))

    def test_threshold_and_kinds_of_sizes(self):
        low_res = torch.randn(1, 16, 16)
        logits = post_process_masks(low_res, (30, 40), (24, 32), 32, mask_threshold=None)
        sizes = (torch.tensor([30, 40]), np.array([24, 32]), (32, 32))
        assert torch.equal(post_process_masks(low_res, *sizes, mask_threshold=0.4), logits > 0.4)

    @pytest.mark.parametrize(
        ("shape", "sizes", "message"),
        [
            ((16, 16), ((4, 4), (4, 4)), r"shape \(16, 16\)"),
            ((1, 1, 16, 16), ((4, 4), (4, 4)), r"\(masks, height, width\) is needed"),
            ((1, 16, 16), ((0, 4), (4, 4)), r"original_size \(0, 4\)"),
            ((1, 16, 16), ((4, 4), (33, 4)), r"reshaped_input_size \(33, 4\) and pad_size \(32, 32\)"),
        ],
    )
    def test_impossible_sizes_are_refused(self, shape, sizes, message):
        with pytest.raises(ValueError, match=message):
            post_process_masks(torch.zeros(shape), *sizes, 32)


class TestSegment:
    @pytest.mark.parametrize("mask", MASKS, ids=lambda mask: "x".join(map(str, mask.shape)))
    def test_descriptions_agree_with_pycocotools(self, mask):
        segment = Segment(mask=mask)
        np.testing.assert_array_equal(coco_mask.decode(segment.rle).astype(bool), mask)
        assert segment.rle["size"] == list(mask.shape)
        assert isinstance(segment.rle["counts"], str)
        assert segment.area == int(coco_mask.area(segment.rle)) == mask.sum()
        if mask.any():
            x1, y1, x2, y2 = segment.box_xyxy
            assert [x1, y1, x2 - x1, y2 - y1] == coco_mask.toBbox(segment.rle).tolist()
        else:
            assert segment.box_xyxy is None

    def test_a_rejected_segment_has_no_mask(self):
        segment = Segment("a dog", (0, 5), None, score=0.9, slot_prob=0.2, rejected=True)
        assert (segment.area, segment.box_xyxy, segment.rle, segment.polygons) == (0, None, None, [])

    @pytest.mark.parametrize("kind", [Segment, PhraseSegment])
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (0.25, 0.25),
            (-0.77, 0.0),
            (1.02, 1.0),
            (np.float32(7), 1.0),
            (float("nan"), 0.0),
            (torch.tensor(-1.0), 0.0),
        ],
    )
    def test_scores_lie_in_0_to_1(self, kind, given, expected):
        segment = kind(score=given)
        assert segment.score == expected
        assert type(segment.score) is float

    def test_estimates_above_1_still_rank_masks(self):
        mask = np.ones((2, 2), dtype=bool)
        worse, better = PhraseSegment(mask=mask, score=1.01), PhraseSegment(mask=mask, score=1.02)
        assert without_overlaps([worse, better], 0.75) == [better]

    @pytest.mark.parametrize("kind", [Segment, PhraseSegment])
    def test_its_repr_is_one_line(self, kind):
        segment = kind("a\nred cup" * 100, (0, 5), np.ones((300, 400), dtype=bool), score=0.5)
        assert repr(segment).startswith(f"{kind.__name__}(label='a\\nred cup")
        assert repr(segment).endswith("span=(0, 5), score=0.50, box_xyxy=(0, 0, 400, 300), area=120000)")
        assert len(repr(segment)) < 250
        assert "\n" not in repr(segment)
        assert repr(Segment(rejected=True)) == "Segment(label=None, span=None, rejected)"

    def test_rle_without_pycocotools_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pycocotools", None)
        with pytest.raises(ImportError, match="pip install pycocotools"):
            mask_to_rle(np.ones((2, 2), dtype=bool))


class TestPolygons:
    @pytest.mark.parametrize("mask", MASKS, ids=lambda mask: "x".join(map(str, mask.shape)))
    def test_outlines_describe_the_mask_exactly(self, mask):
        crossings = np.zeros(mask.shape, dtype=int)
        signed_area = 0.0
        for polygon in mask_to_polygons(mask):
            steps = np.diff(np.concatenate([polygon, polygon[:1]]), axis=0)
            is_vertical = steps[:, 0] == 0
            assert ((steps == 0).sum(axis=1) == 1).all(), "every side runs along the grid"
            assert (is_vertical != np.roll(is_vertical, 1)).all(), "every corner turns"
            assert polygon.tolist()[0] == min(polygon.tolist(), key=lambda corner: corner[::-1])
            x, y = polygon.T
            signed_area += (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2
            for (x1, y1), (_, dy) in zip(polygon[is_vertical], steps[is_vertical], strict=True):
                crossings[min(y1, y1 + dy) : max(y1, y1 + dy), x1:] += 1
        np.testing.assert_array_equal(crossings % 2 == 1, mask)
        assert signed_area == mask.sum()

    def test_pixels_that_touch_at_a_corner_are_outlined_separately(self):
        assert len(mask_to_polygons(np.eye(3, dtype=bool))) == 3
        assert len(mask_to_polygons(np.fliplr(np.eye(3, dtype=bool)))) == 3

    def test_a_hole_runs_the_other_way(self):
        mask = np.ones((3, 3), dtype=bool)
        mask[1, 1] = False
        outer, hole = mask_to_polygons(mask)
        assert outer.tolist() == [[0, 0], [3, 0], [3, 3], [0, 3]]
        assert hole.tolist() == [[1, 1], [1, 2], [2, 2], [2, 1]]


@pytest.fixture
def result():
    left, right = np.zeros((2, 40, 60), dtype=bool)
    left[10:30, 5:25] = True
    right[20:35, 40:55] = True
    return SegmentationResult(
        text="The cup is [SEG], the saucer [SEG], the dog [REJ].",
        segments=[
            Segment("cup", (4, 7), left, score=0.75),
            Segment("dog", (40, 43), None, score=0.5, slot_prob=0.1, rejected=True),
            Segment("saucer", (22, 28), right, score=0.5),
        ],
        image_size=(40, 60),
    )


class TestSegmentationResult:
    def test_to_coco(self, result):
        first, second = result.to_coco(image_id=7, category_id=3)
        assert {name: value for name, value in first.items() if name != "segmentation"} == {
            "image_id": 7,
            "category_id": 3,
            "label": "cup",
            "bbox": [5, 10, 20, 20],
            "area": 400,
            "score": 0.75,
        }
        np.testing.assert_array_equal(coco_mask.decode(second["segmentation"]).astype(bool), result.segments[2].mask)

    def test_to_coco_keeps_an_empty_mask(self):
        entry = SegmentationResult("", [Segment(mask=np.zeros((2, 3), dtype=bool))], (2, 3)).to_coco()[0]
        assert (entry["bbox"], entry["area"]) == ([0, 0, 0, 0], 0)

    def test_to_supervision(self, result, monkeypatch):
        monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
        result.segments.append(Segment("cup", None, np.zeros((40, 60), dtype=bool)))
        detections = result.to_supervision()
        # x2 and y2 are the last pixel, as supervision's mask_to_xyxy counts
        assert detections.xyxy.tolist() == [[5, 10, 24, 29], [40, 20, 54, 34], [0, 0, 0, 0]]
        assert (detections.mask.shape, detections.mask.dtype) == ((3, 40, 60), bool)
        assert detections.confidence.tolist() == [0.75, 0.5, 0.0]
        assert detections.class_id.tolist() == [0, 1, 0]
        assert detections.data["class_name"].tolist() == ["cup", "saucer", "cup"]

    def test_its_boxes_are_those_of_supervision(self, result):
        supervision = pytest.importorskip("supervision", reason="`pip install reasonseg[viz]` has it.")
        result.segments += [
            Segment("dot", None, np.eye(40, 60, dtype=bool) & (np.arange(40) == 7)[:, None]),
            Segment("nothing", None, np.zeros((40, 60), dtype=bool)),
            Segment("all", None, np.ones((40, 60), dtype=bool)),
        ]
        detections = result.to_supervision()
        assert isinstance(detections, supervision.Detections)
        np.testing.assert_array_equal(detections.xyxy, supervision.mask_to_xyxy(detections.mask))
        assert detections.xyxy[2].tolist() == [7, 7, 7, 7]

    def test_to_supervision_of_nothing_keeps_the_shapes(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
        detections = SegmentationResult("", [], (4, 6)).to_supervision()
        assert (detections.xyxy.shape, detections.mask.shape) == ((0, 4), (0, 4, 6))

    def test_to_supervision_without_the_package_says_what_to_install(self, result, monkeypatch):
        monkeypatch.setitem(sys.modules, "supervision", None)
        with pytest.raises(ImportError, match="pip install supervision"):
            result.to_supervision()

    def test_its_repr_is_one_line(self, result):
        labelled = "['cup' 0.75, 'dog' rejected, 'saucer' 0.50]"
        assert repr(result) == f"SegmentationResult(text={result.text!r}, segments={labelled}, 60x40)"
        long = replace(result, text="line\n" * 1000, segments=[Segment("x" * 1000), Segment(rejected=True)] * 50)
        assert "\n" not in repr(long)
        assert len(repr(long)) < 800
        assert "segment 2 rejected" in repr(long)
        assert "92 more]" in repr(long)
        grounded = PhraseSegmentationResult("A cup.", [], (3, 4), attention_maps=np.zeros((9, 8, 8)))
        assert repr(grounded) == "PhraseSegmentationResult(text='A cup.', segments=[], 4x3)"


class TestNotebook:
    """What Jupyter asks for where the code of a checkpoint is all there is: `_repr_png_`."""

    @staticmethod
    def shown(result) -> Image.Image:
        return Image.open(io.BytesIO(result._repr_png_()))

    def test_the_image_with_its_masks(self, result):
        result.image = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        np.testing.assert_array_equal(np.asarray(self.shown(result)), np.asarray(result.overlay(result.image)))

    def test_a_large_image_is_made_smaller(self):
        result = SegmentationResult("", [Segment(mask=np.ones((3000, 1500), dtype=bool))], (3000, 1500))
        result.image = Image.new("RGB", (1500, 3000))
        assert self.shown(result).size == (512, 1024)

    @pytest.mark.parametrize("image", [None, "nowhere.png", Image.new("RGB", (5, 5))])
    def test_without_its_image_the_masks_stand_alone(self, result, image):
        result.image = image
        pixels = np.asarray(self.shown(result))
        assert pixels.shape == (40, 60, 3)
        assert not (pixels[22:28, 41:50] == pixels[0, 59]).all()

    def test_overlay_takes_the_image_it_knows(self, result):
        with pytest.raises(ValueError, match=r"does not hold its image\. Pass the one that was segmented"):
            result.overlay()
        result.image = Image.new("RGB", (60, 40), "white")
        assert np.array_equal(result.overlay(), result.overlay(Image.new("RGB", (60, 40), "white")))


class TestOverlay:
    def test_masks_are_blended_and_the_rest_is_left_alone(self):
        image = RNG.integers(0, 256, (200, 300, 3), dtype=np.uint8)
        mask = np.zeros((200, 300), dtype=bool)
        mask[100:150, 50:250] = True
        result = SegmentationResult("", [Segment("cup", None, mask, score=0.5)], (200, 300))
        for alpha in (0.0, 0.3, 1.0):
            overlay = np.asarray(result.overlay(image, alpha=alpha))
            expected = np.rint(image[mask] * (1 - alpha) + np.array(segment_color(0)) * alpha)
            np.testing.assert_array_equal(overlay[mask], expected)
            np.testing.assert_array_equal(overlay[150:], image[150:])
            assert (overlay[70:100] != image[70:100]).any(), "the label stands above the mask"

    def test_rejected_phrases_are_listed(self, result):
        image = np.full((400, 600, 3), 255, dtype=np.uint8)
        rejected = SegmentationResult("", [result.segments[1]], (400, 600))
        overlay = np.asarray(rejected.overlay(image))
        changed = (overlay != 255).any(axis=-1)
        assert changed[-1, 0]
        assert not changed[:350].any()
        two = SegmentationResult("", [result.segments[1]] * 2, (400, 600)).overlay(image)
        assert (np.asarray(two) != 255).any(axis=-1).sum() > 1.8 * changed.sum()

    def test_a_label_at_the_border_stays_inside(self):
        mask = np.zeros((60, 200), dtype=bool)
        mask[0:2, 198:200] = True
        overlay = SegmentationResult("", [Segment("cup", None, mask)], (60, 200)).overlay(Image.new("RGB", (200, 60)))
        assert overlay.size == (200, 60)
        assert np.asarray(overlay)[3:10, 150:].any()

    def test_labels_in_other_scripts_and_very_small_images(self):
        for text in ("красная чашка", "红色杯子", "☕", "a\nb", "x" * 500, ""):
            mask = np.ones((1, 1), dtype=bool)
            overlay = SegmentationResult("", [Segment(text, None, mask)], (1, 1)).overlay(Image.new("L", (1, 1)))
            assert (overlay.mode, overlay.size) == ("RGB", (1, 1))

    def test_the_image_is_turned_upright(self, result):
        exif = Image.Exif()
        exif[0x0112] = 6
        image = Image.new("RGB", (40, 60))
        image.info["exif"] = exif.tobytes()
        assert result.overlay(image).size == (60, 40)

    @pytest.mark.parametrize(
        ("size", "alpha", "message"),
        [((40, 60), 0.5, "is 40 x 60 pixels, the masks are 60 x 40"), ((60, 40), 1.5, "alpha is 1.5")],
    )
    def test_bad_arguments_are_refused(self, result, size, alpha, message):
        with pytest.raises(ValueError, match=message):
            result.overlay(Image.new("RGB", size), alpha=alpha)

    def test_colors_are_fixed_and_differ(self):
        colors = [segment_color(index) for index in range(20)]
        assert colors[:3] == [(255, 51, 51), (51, 111, 255), (170, 255, 51)]
        assert min(np.abs(np.subtract(a, b)).sum() for i, a in enumerate(colors) for b in colors[:i]) > 20


@pytest.mark.parametrize("shape", [(0, 3, 5), (1, 1, 1), (2, 7, 9), (3, 8, 16)])
def test_masks_are_packed_as_numpy_packs_them(shape):
    masks = torch.from_numpy(np.random.default_rng(0).random(shape) < 0.5)
    packed = pack_bits(masks)
    assert packed.dtype == torch.uint8
    assert (packed.numpy() == np.packbits(masks.numpy())).all()


def test_masks_of_an_accelerator_come_as_bits(monkeypatch):
    """What is no tensor plays one that lies on an accelerator: it can be packed, and nothing else."""
    masks = torch.from_numpy(np.random.default_rng(0).random((2, 5, 7)) < 0.5)
    assert np.shares_memory(masks_to_numpy(masks), masks.numpy())
    packed = pack_bits(masks)
    assert packed.numel() == 9
    monkeypatch.setattr(segments_module, "pack_bits", lambda given: packed)
    elsewhere = SimpleNamespace(device=torch.device("cuda"), shape=masks.shape, numel=masks.numel)
    copied = masks_to_numpy(elsewhere)
    assert copied.dtype == np.bool_
    assert (copied == masks.numpy()).all()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_an_overlay_mixes_every_pixel_in_float_and_rounds_it(alpha):
    rng = np.random.default_rng(0)
    pixels, masks = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8), rng.random((3, 40, 50)) < 0.5
    masks[:, :12] = masks[:, :, :30] = False  # beside the labels
    result = SegmentationResult("", [Segment(mask=mask) for mask in masks], (40, 50))
    expected = pixels.copy()
    for index, mask in enumerate(masks):
        mixed = expected[mask] * (1.0 - alpha) + np.array(segment_color(index)) * alpha
        expected[mask] = np.rint(mixed).astype(np.uint8)
    drawn = np.asarray(result.overlay(Image.fromarray(pixels), alpha))
    assert (drawn[-12:] == expected[-12:]).all()
