"""The two views of an image equal those of the original projects, for every kind of input."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessorPil, SamImageProcessorPil
from transformers.image_utils import PILImageResampling

import reasonseg.processing.image_processing_reasoning_segmentation as image_processing
from reasonseg.processing.image_processing_reasoning_segmentation import (
    ReasoningSegmentationImageProcessor,
    SegmenterImageProcessor,
)
from reasonseg.registration import register
from tests.support.parity_data import PARITY, load_case, load_meta, sampled_like


RNG = np.random.default_rng(0)


def random_image(height: int, width: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def small():
    """Views small enough to compare many of them."""
    return ReasoningSegmentationImageProcessor(
        size={"shortest_edge": 20}, crop_size={"height": 18, "width": 18}, segmenter_size={"longest_edge": 32}
    )


class TestRecordedViews:
    @pytest.mark.parametrize("image", ["img0", "img1"])
    @pytest.mark.parametrize("system", ["lisa", "gsva"])
    def test_views_equal_the_recorded_ones_exactly(self, system, image):
        meta, recorded = load_meta(system)[image], load_case(system, image)

        views = ReasoningSegmentationImageProcessor()(PARITY / system / meta["file"], return_tensors="pt")

        clip, sam = views["pixel_values"][0], views["sam_pixel_values"][0]
        assert (clip.dtype, clip.shape) == (torch.float32, (3, 224, 224))
        assert (sam.dtype, sam.shape) == (torch.float32, (3, 1024, 1024))
        assert torch.equal(clip[:, :32, :32], recorded["clip_pixel_values_crop_tl32"])
        assert torch.equal(sam[:, :32, :32], recorded["sam_pixel_values_crop_tl32"])
        y, x = meta["corner_crop_yx"]
        assert torch.equal(sam[:, y : y + 32, x : x + 32], recorded["sam_pixel_values_crop_corner32"])
        for name, view in {"clip_pixel_values_stride2": clip, "sam_pixel_values_stride8": sam}.items():
            if name in recorded:
                assert torch.equal(sampled_like(view, name), recorded[name])
        # sums over every value of both views
        assert clip.double().sum().item() == pytest.approx(meta["clip_sum"], abs=1e-6)
        assert sam.double().sum().item() == pytest.approx(meta["sam_sum"], abs=1e-6)

        assert views["original_sizes"].tolist() == [meta["original_hw"]]
        assert views["reshaped_input_sizes"].tolist() == [meta["sam_resized_hw"]]
        assert views["original_sizes"].dtype == views["reshaped_input_sizes"].dtype == torch.int64


class TestAgainstTransformers:
    @pytest.mark.parametrize("size", [(30, 47), (47, 30), (19, 20), (20, 20), (1, 1), (5, 300), (300, 5)])
    def test_the_first_view_equals_the_pillow_clip_processor(self, small, size):
        image = random_image(*size)
        clip = CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 18, "width": 18})
        expected = clip(image, return_tensors="pt")["pixel_values"]
        assert torch.equal(small(image, return_tensors="pt")["pixel_values"], expected)

    @pytest.mark.parametrize(
        "size", [(30, 47), (47, 30), (32, 32), (1, 1), (5, 150), (1001, 997), (15, 20), (19, 20), (25, 4)]
    )
    def test_the_second_view_equals_the_pillow_sam_processor(self, small, size):
        image = random_image(*size)
        sam = SamImageProcessorPil(size={"longest_edge": 32}, pad_size={"height": 32, "width": 32})
        expected = sam(image, return_tensors="pt")
        views = small(image, return_tensors="pt")
        # it normalises values in 0..1, the original SAM values in 0..255: one rounding apart
        torch.testing.assert_close(views["sam_pixel_values"], expected["pixel_values"], atol=1e-6, rtol=0)
        assert torch.equal(views["reshaped_input_sizes"], expected["reshaped_input_sizes"])
        assert torch.equal(views["original_sizes"], expected["original_sizes"])

    def test_options_of_the_first_view_act_as_in_clip(self):
        image = random_image(40, 50)
        options = {
            "size": {"height": 12, "width": 16},
            "do_center_crop": False,
            "resample": PILImageResampling.LANCZOS,
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [0.5, 0.6, 0.7],
        }
        expected = CLIPImageProcessorPil()(image, return_tensors="pt", **options)["pixel_values"]
        assert torch.equal(
            ReasoningSegmentationImageProcessor(**options)(image, return_tensors="pt")["pixel_values"], expected
        )
        assert torch.equal(
            ReasoningSegmentationImageProcessor()(image, return_tensors="pt", **options)["pixel_values"], expected
        )


class TestSegmenterView:
    def test_squashing_for_sam2_and_sam3(self):
        image = random_image(20, 50)
        processor = SegmenterImageProcessor(
            size={"height": 24, "width": 24}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        views = processor(image, return_tensors="pt")
        squashed = np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR)).astype(np.float32)
        expected = torch.from_numpy((squashed - 127.5) / 127.5).permute(2, 0, 1)
        assert torch.equal(views["sam_pixel_values"][0], expected)
        assert views["original_sizes"].tolist() == [[20, 50]]
        assert views["reshaped_input_sizes"].tolist() == [[24, 24]]

    @pytest.mark.parametrize(
        ("old", "new"),
        [((5, 20), (8, 32)), ((3, 5), (4, 8)), ((1, 7), (2, 7)), ((3, 1), (1024, 8)), ((1, 9001), (1, 16384))],
    )
    def test_its_pixels_are_pillow_s_to_the_bit_and_the_image_stays(self, old, new):
        pixels = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
        kept, image = pixels.copy(), np.moveaxis(pixels, -1, 0)
        image.setflags(write=False)
        size = {"height": new[0], "width": new[1]}
        for given in (image, image[:, ::-1], np.ascontiguousarray(image)):
            upright = Image.fromarray(np.ascontiguousarray(np.moveaxis(given, 0, -1)))
            expected = np.moveaxis(np.asarray(upright.resize(new[::-1], Image.Resampling.BILINEAR)), -1, 0)
            view = image_processing.segmenter_view([given], size, PILImageResampling.BILINEAR, 0.0, 1 / 255)
            assert np.array_equal(view["sam_pixel_values"][0], expected)
        assert np.array_equal(pixels, kept)

    def test_it_is_the_second_view_of_the_two_view_processor(self, small):
        image = random_image(31, 17)
        alone = SegmenterImageProcessor(size={"longest_edge": 32})(image, return_tensors="pt")
        both = small(image, return_tensors="pt")
        assert set(alone) == {"sam_pixel_values", "original_sizes", "reshaped_input_sizes"}
        assert all(torch.equal(value, both[name]) for name, value in alone.items())

    def test_padding_is_zero_after_normalisation(self, small):
        view = small(random_image(16, 32), return_tensors="pt")["sam_pixel_values"][0]
        assert (view[:, 16:] == 0).all()
        assert (view[:, :16] != 0).any()

    @pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
    def test_a_very_thin_image_keeps_a_pixel(self, small, size):
        resized = small(random_image(*size), return_tensors="pt")["reshaped_input_sizes"].tolist()[0]
        assert sorted(resized) == [1, 32]

    @pytest.mark.parametrize("size", [1024, None, {}, {"shortest_edge": 8}, {"longest_edge": 0}, {"height": 8}])
    def test_sizes_of_another_form_are_refused(self, size):
        message = "Allowed are {'longest_edge': N}"
        with pytest.raises(ValueError, match=message):
            SegmenterImageProcessor(size=size)
        with pytest.raises(ValueError, match=message):
            ReasoningSegmentationImageProcessor(segmenter_size=size)

    def test_target_size(self):
        assert SegmenterImageProcessor(size={"height": 8, "width": 9}).segmenter_target_size == (8, 9)
        assert ReasoningSegmentationImageProcessor().segmenter_target_size == (1024, 1024)

    @pytest.mark.parametrize("size", [{"longest_edge": 32}, {"height": 32, "width": 24}])
    def test_the_resized_size_is_known_without_a_image(self, size):
        image = random_image(17, 41)
        for processor in (
            SegmenterImageProcessor(size=size),
            ReasoningSegmentationImageProcessor(segmenter_size=size),
        ):
            resized = processor(image)["reshaped_input_sizes"][0]
            assert processor.get_resized_size(17, 41) == tuple(resized)


class TestInputs:
    def test_all_kinds_of_one_image_give_the_same_views(self, small, tmp_path):
        array = RNG.integers(0, 256, (30, 47, 3), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / "a.png")
        kinds = [
            array,
            array.transpose(2, 0, 1),
            (array / 255).astype(np.float32),
            array / 255,
            torch.from_numpy(array),
            torch.from_numpy(array).permute(2, 0, 1).float() / 255,
            Image.fromarray(array),
            Image.fromarray(array).convert("RGBA"),
            str(tmp_path / "a.png"),
            tmp_path / "a.png",
        ]
        views = small(kinds, return_tensors="pt")
        for name, value in views.items():
            assert len(value) == len(kinds)
            assert all(torch.equal(value[0], other) for other in value), name

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_sizes_are_those_of_the_upright_image(self, small, orientation, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright = np.asarray(random_image(30, 20))
        # what a camera stores so that a viewer shows `upright`
        undo = {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.transpose(1, 0, 2),
            6: np.rot90(upright),
            7: upright[::-1, ::-1].transpose(1, 0, 2),
            8: np.rot90(upright, -1),
        }[orientation]
        Image.fromarray(np.ascontiguousarray(undo)).save(tmp_path / "a.png", exif=exif)
        views, expected = small(tmp_path / "a.png", return_tensors="pt"), small(upright, return_tensors="pt")
        assert views["original_sizes"].tolist() == [[30, 20]]
        assert all(torch.equal(value, expected[name]) for name, value in views.items())

    def test_lists_of_lists_and_batched_arrays_are_flattened(self, small):
        batch = RNG.integers(0, 256, (3, 10, 12, 3), dtype=np.uint8)
        expected = small(list(batch), return_tensors="pt")
        for images in (batch, [[batch[0]], [batch[1], batch[2]]], torch.from_numpy(batch), [batch[:2], batch[2]]):
            views = small(images, return_tensors="pt")
            assert all(torch.equal(value, expected[name]) for name, value in views.items())

    def test_only_the_first_view_keeps_extra_channels(self, small):
        rgba = RNG.integers(0, 256, (20, 20, 4), dtype=np.uint8)
        views = small(rgba, do_convert_rgb=False, image_mean=[0.0] * 4, image_std=[1.0] * 4, return_tensors="pt")
        assert views["pixel_values"].shape == (1, 4, 18, 18)
        assert torch.equal(views["sam_pixel_values"], small(rgba[..., :3], return_tensors="pt")["sam_pixel_values"])

    @pytest.mark.parametrize("kind", [None, "np", "pt"])
    def test_return_types(self, small, kind):
        views = small([random_image(9, 8), random_image(8, 9)], return_tensors=kind)
        expected = {None: list, "np": np.ndarray, "pt": torch.Tensor}[kind]
        assert all(isinstance(value, expected) for value in views.values())
        assert list(views) == small.model_input_names

    @pytest.mark.parametrize(
        ("images", "options", "message"),
        [
            ([], {}, "empty list"),
            ("https://example.com/a.png", {}, "is a URL"),
            (["no such file.png"], {}, "not an existing local image file"),
            ([None], {}, "type NoneType"),
            (np.zeros((4, 4, 3), dtype=np.int32), {}, "dtype int32"),
            (Image.new("RGB", (0, 4)), {}, "at least 1 pixel"),
            (np.zeros((4, 4, 3), dtype=np.float32), {"do_rescale": False}, "`do_rescale=False`"),
            (Image.new("RGB", (40, 40)), {"max_image_pixels": 1599}, "more than the 1599 allowed"),
            (
                np.zeros((9, 9), np.uint8),
                {"do_convert_rgb": False, "max_image_pixels": 80},
                "more than the 80 allowed",
            ),
            (Image.new("RGB", (1000, 1)), {"do_center_crop": False, "max_image_pixels": 9999}, "20000 x 20 = 400000"),
        ],
    )
    def test_bad_input_is_refused(self, small, images, options, message):
        with pytest.raises(ValueError, match=message):
            small(images, **options)

    @pytest.mark.parametrize("processor_class", [ReasoningSegmentationImageProcessor, SegmenterImageProcessor])
    def test_the_pixel_limit_holds_for_files_and_per_call(self, processor_class, tmp_path):
        random_image(40, 40).save(tmp_path / "a.png")
        processor = processor_class(max_image_pixels=1599)
        for image in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
            with pytest.raises(ValueError, match="1599 allowed"):
                processor(image)
            assert processor(image, max_image_pixels=1600)["original_sizes"] == [[40, 40]]

    def test_unknown_options_are_refused(self, small):
        with pytest.raises(TypeError, match="segmenter_sise"):
            small(random_image(4, 4), segmenter_sise={"longest_edge": 8})
        with pytest.raises(TypeError, match="do_resize"):
            SegmenterImageProcessor()(random_image(4, 4), do_resize=False)


class TestVeryLongImages:
    @pytest.mark.parametrize("crop", [18, 20, 23])
    @pytest.mark.parametrize("is_tall", [False, True])
    @pytest.mark.parametrize("short", [1, 3, 7, 29])
    def test_resizing_only_the_visible_part_changes_nothing(self, monkeypatch, crop, is_tall, short):
        processor = ReasoningSegmentationImageProcessor(
            size={"shortest_edge": 20}, crop_size={"height": crop, "width": crop}, segmenter_size={"longest_edge": 8}
        )
        for long in RNG.integers(2 * short + 22, 60 * short + 22, 5).tolist():
            # without overshoot, so that the order in which Pillow filters rows and columns does not matter
            steps = 6.0 * np.arange(long)[:, None] / max(1.0, short / 20) + 3.0 * np.arange(short)[None]
            wave = np.rint(127.5 + 110.0 * np.sin(steps[..., None] / 20 + np.arange(3))).astype(np.uint8)
            image = Image.fromarray(wave if is_tall else np.ascontiguousarray(wave.transpose(1, 0, 2)))
            whole = processor(image, return_tensors="pt")["pixel_values"]
            with monkeypatch.context() as patch:
                patch.setattr(image_processing, "_MAX_RESIZED_PIXELS", 0)
                part = processor(image, return_tensors="pt")["pixel_values"]
            assert part.shape == whole.shape
            levels = ((part - whole).abs() * torch.tensor(processor.image_std)[:, None, None] * 255).round()
            # a cut that is off by one pixel of the result differs by 10 levels and more
            assert levels.max() <= 2
            assert (levels > 0).float().mean() < 0.05

    def test_one_by_ten_thousand(self):
        column = np.repeat(np.arange(10000) // 40, 3).reshape(10000, 1, 3).astype(np.uint8)
        views = ReasoningSegmentationImageProcessor(do_normalize=False)(column, return_tensors="pt")
        # the crop shows the one pixel in the middle
        torch.testing.assert_close(
            views["pixel_values"], torch.full((1, 3, 224, 224), 125 / 255), atol=1 / 255, rtol=0
        )
        assert views["original_sizes"].tolist() == [[10000, 1]]
        assert views["reshaped_input_sizes"].tolist() == [[1024, 1]]


class TestSaving:
    @pytest.mark.parametrize(
        "processor",
        [
            ReasoningSegmentationImageProcessor(
                size={"shortest_edge": 336},
                crop_size=336,
                segmenter_size={"height": 1008, "width": 1008},
                segmenter_image_mean=[0.5, 0.5, 0.5],
                segmenter_image_std=[0.4, 0.5, 0.6],
                segmenter_resample=3,
                max_image_pixels=1000,
            ),
            SegmenterImageProcessor(size={"height": 1008, "width": 1008}, image_std=[0.5, 0.5, 0.5]),
        ],
        ids=["two views", "segmenter only"],
    )
    def test_save_and_load(self, processor, tmp_path):
        processor.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "preprocessor_config.json").read_text(encoding="utf-8"))
        assert saved["image_processor_type"] == type(processor).__name__
        assert saved["max_image_pixels"] == processor.max_image_pixels
        loaded = type(processor).from_pretrained(tmp_path)
        assert loaded.to_dict() == processor.to_dict()
        assert loaded.segmenter_target_size == (1008, 1008)

    def test_old_clip_files_with_plain_integers_load(self):
        recorded = json.loads((PARITY / "lisa/vision_tower/preprocessor_config.json").read_text(encoding="utf-8"))
        assert isinstance(recorded["size"], int)
        processor = ReasoningSegmentationImageProcessor.from_dict(recorded)
        assert processor.size == {"shortest_edge": 224}
        assert processor.crop_size == {"height": 224, "width": 224}

    def test_auto_image_processor_loads_it_and_its_code_is_saved(self, tmp_path):
        register()
        processor = ReasoningSegmentationImageProcessor(segmenter_size={"longest_edge": 32})
        processor.save_pretrained(tmp_path)
        assert {path.name for path in tmp_path.glob("*.py")} == {
            "image_processing_reasoning_segmentation.py",
            "image_loading.py",
        }
        loaded = AutoImageProcessor.from_pretrained(tmp_path)
        assert type(loaded) is ReasoningSegmentationImageProcessor
        image = random_image(12, 20)
        views, expected = loaded(image, return_tensors="pt"), processor(image, return_tensors="pt")
        assert all(torch.equal(value, expected[name]) for name, value in views.items())
