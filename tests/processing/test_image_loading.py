"""Every kind of image becomes upright 8-bit RGB or a ValueError that says what to do."""

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features

from reasonseg.processing.image_loading import MAX_IMAGE_PIXELS, ImageTooLargeError, load_rgb_image
from tests.support.parity_data import PARITY


RNG = np.random.default_rng(0)
HWC = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
IMAGE = Image.fromarray(HWC)


def pixels(image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("as_path", [str, os.fspath, lambda path: path], ids=["str", "fspath", "Path"])
def test_files_are_read_from_paths_of_any_kind(as_path):
    path = PARITY / "lisa" / "images" / "img0.png"
    expected = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(pixels(load_rgb_image(as_path(path))), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_exif_orientation_is_applied_once(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo{suffix}"
    Image.fromarray(np.kron(HWC, np.ones((8, 8, 1), dtype=np.uint8))).save(path, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))

    upright = load_rgb_image(path)

    assert upright.size == ((56, 40) if orientation < 5 else (40, 56))
    np.testing.assert_array_equal(pixels(upright), expected)
    np.testing.assert_array_equal(pixels(load_rgb_image(Image.open(path))), expected)
    np.testing.assert_array_equal(pixels(load_rgb_image(upright)), expected)


def test_the_callers_image_is_left_alone():
    image = IMAGE.copy()
    image.info["note"] = "mine"
    load_rgb_image(image)
    assert image.info == {"note": "mine"}


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]
)
def test_8_bit_modes_convert_as_pillow_does(mode):
    steps = {"PA": ["P", "PA"], "LA": ["LA"], "La": ["LA", "La"], "RGBa": ["RGBA", "RGBa"], "HSV": ["HSV"]}
    image = IMAGE
    if mode == "LAB":
        image = Image.merge("LAB", IMAGE.split())
    else:
        for step in steps.get(mode, [mode]):
            image = image.convert(step)
    assert image.mode == mode
    expected = image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode)).convert("RGB")
    np.testing.assert_array_equal(pixels(load_rgb_image(image)), np.asarray(expected))


def test_alpha_is_dropped_not_composited():
    rgba = np.dstack([HWC, np.zeros((5, 7), dtype=np.uint8)])
    for image in (Image.fromarray(rgba), rgba, rgba.transpose(2, 0, 1), torch.from_numpy(rgba)):
        np.testing.assert_array_equal(pixels(load_rgb_image(image)), HWC)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bit_greyscale_keeps_its_high_byte(mode, tmp_path):
    values = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    values[0, 0] = 65535
    if mode == "I":
        image = Image.fromarray(values.astype(np.int32))
    elif mode == "I;16B":
        image = Image.frombytes("I;16B", (7, 5), values.astype(">u2").tobytes())
    else:
        image = Image.fromarray(values)
        image.save(tmp_path / "deep.png")
        np.testing.assert_array_equal(pixels(load_rgb_image(tmp_path / "deep.png"))[..., 0], values >> 8)
    assert image.mode == mode
    np.testing.assert_array_equal(pixels(load_rgb_image(image)), np.repeat((values >> 8)[..., None], 3, axis=-1))


def test_mode_i_with_8_bit_values_is_read_as_8_bit():
    image = Image.fromarray(HWC[..., 0].astype(np.int32))
    np.testing.assert_array_equal(pixels(load_rgb_image(image))[..., 1], HWC[..., 0])


def test_mode_f_is_read_as_floating_point_in_0_to_1():
    image = Image.fromarray(HWC[..., 0].astype(np.float32) / 255)
    np.testing.assert_array_equal(pixels(load_rgb_image(image))[..., 1], HWC[..., 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("layout", ["HWC", "CHW", "HW", "HW1", "1HW"])
def test_arrays_and_tensors(dtype, as_tensor, layout):
    array = {
        "HWC": HWC,
        "CHW": HWC.transpose(2, 0, 1),
        "HW": HWC[..., 0],
        "HW1": HWC[..., :1],
        "1HW": HWC[None, ..., 0],
    }[layout]
    expected = HWC if layout in ("HWC", "CHW") else np.repeat(HWC[..., :1], 3, axis=-1)
    if dtype != np.uint8:
        array = (array / 255).astype(dtype)
    image = torch.from_numpy(array.copy()).requires_grad_(dtype != np.uint8) if as_tensor else array
    np.testing.assert_array_equal(pixels(load_rgb_image(image)), expected)


def test_bfloat16_tensors_are_read():
    image = torch.tensor([0.0, 0.5, 1.0], dtype=torch.bfloat16).reshape(1, 1, 3)
    # 1 x 1 x 3 could be either layout
    assert pixels(load_rgb_image(image, input_data_format="channels_last")).tolist() == [[[0, 128, 255]]]
    assert pixels(load_rgb_image(image, input_data_format="channels_first"))[0, :, 0].tolist() == [0, 128, 255]


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert pixels(load_rgb_image(tmp_path / "two.gif"))[0, 0].tolist() == [255, 0, 0]


def test_broken_metadata_does_not_matter():
    image = IMAGE.copy()
    image.info["exif"] = b"Exif\x00\x00not a tiff header"
    np.testing.assert_array_equal(pixels(load_rgb_image(image)), HWC)


def write(tmp_path, name: str, data: bytes):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def truncated(tmp_path, suffix: str):
    path = tmp_path / f"whole{suffix}"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    return write(tmp_path, f"cut{suffix}", data[: len(data) // 2])


BAD_FILES = {
    "missing": (lambda tmp: tmp / "missing.png", "not an existing local image file"),
    "folder": (lambda tmp: tmp, "not an existing local image file"),
    "null byte": (lambda tmp: "a\0b.png", "not an existing local image file"),
    "https": (lambda tmp: "https://example.com/a.png", "is a URL"),
    "file url": (lambda tmp: "file:///etc/passwd", "is a URL"),
    "data url": (lambda tmp: "data:image/png;base64," + "A" * 1000, r"is a URL"),
    "empty": (lambda tmp: write(tmp, "a.png", b""), "cannot be opened as an image"),
    "text": (lambda tmp: write(tmp, "a.png", b"<html></html>"), "cannot be opened as an image"),
    "header only": (lambda tmp: write(tmp, "a.png", b"\x89PNG\r\n\x1a\n"), "cannot be opened as an image"),
    "no data": (lambda tmp: write(tmp, "a.png", png_claiming(8, 8)), "cannot be decoded"),
    "cut png": (lambda tmp: truncated(tmp, ".png"), "cannot be decoded"),
    "cut jpg": (lambda tmp: truncated(tmp, ".jpg"), "cannot be decoded"),
    "cut gif": (lambda tmp: truncated(tmp, ".gif"), "cannot be decoded"),
    "cut webp": (lambda tmp: truncated(tmp, ".webp"), "cannot be (opened|decoded)"),
    "claims 9000 x 9000": (
        lambda tmp: write(tmp, "a.png", png_claiming(9000, 9000)),
        rf"9000 x 9000 = 81000000 pixels, more than the {MAX_IMAGE_PIXELS} allowed",
    ),
    "claims 60000 x 60000": (lambda tmp: write(tmp, "a.png", png_claiming(60000, 60000)), "DecompressionBombError"),
    "claims 0 x 9": (lambda tmp: write(tmp, "a.png", png_claiming(0, 9)), "cannot be opened|at least 1 pixel"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused(case, tmp_path):
    make, message = BAD_FILES[case]
    with pytest.raises(ValueError, match=message) as error:
        load_rgb_image(make(tmp_path))
    assert len(str(error.value)) < 600


def eps(tmp_path):
    path = tmp_path / "a.png"
    IMAGE.save(path, format="EPS")
    return path


def container(tmp_path, kind: str, side: int = 2048):
    """A file that states one small image and holds a larger one."""
    inner = io.BytesIO()
    Image.new("L", (side, side)).save(inner, "PNG")
    data = inner.getvalue()
    if kind == "ico":
        data = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(data), 22) + data
    else:
        data = b"icns" + struct.pack(">I", 16 + len(data)) + b"icp4" + struct.pack(">I", 8 + len(data)) + data
    return write(tmp_path, f"a.{kind}", data)


def tiff_of_one_tile(tmp_path, side: int):
    """Four by four pixels in one tile of any size."""
    tags = [(256, 4), (257, 4), (258, 8), (259, 5), (262, 1), (277, 1), (322, side), (323, side), (324, 8), (325, 4)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    content = b"II*\0" + struct.pack("<I", 12) + bytes(4) + struct.pack("<H", len(tags)) + entries + bytes(4)
    return write(tmp_path, "a.tif", content)


OTHER_FORMATS = {
    "eps": eps,
    "ico": lambda tmp: container(tmp, "ico"),
    "icns": lambda tmp: container(tmp, "icns"),
    **{
        kind: lambda tmp, kind=kind: IMAGE.convert("L").save(tmp / "a.png", format=kind) or tmp / "a.png"
        for kind in ("PCX", "SGI", "TGA", "JPEG2000", "IM")
    },
}


@pytest.mark.parametrize("kind", OTHER_FORMATS)
def test_formats_that_are_not_meant_are_not_decoded(kind, tmp_path, monkeypatch):
    """Neither by their suffix nor where a caller has opened them; no other program starts."""
    path = OTHER_FORMATS[kind](tmp_path)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **kwargs: pytest.fail("Ghostscript starts"))
    monkeypatch.setattr("PIL.IcoImagePlugin.IcoFile.getimage", lambda *args: pytest.fail("an icon is decoded"))
    with pytest.raises(ValueError, match=r"cannot be opened as an image .*PNG, PPM, TIFF, WEBP are read"):
        load_rgb_image(path)
    monkeypatch.undo()  # Pillow decodes an icon when it opens it
    with pytest.raises(ValueError, match="comes from a file of the format"):
        load_rgb_image(Image.open(path))


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".jpg", ".png", ".ppm", ".tif", ".webp", ".avif", ".mpo"])
def test_formats_that_are_meant_are_read_whatever_their_name(suffix, tmp_path):
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("This Pillow was built without AVIF.")
    path = tmp_path / f"a{suffix}"
    IMAGE.save(path, **({"save_all": True, "append_images": [IMAGE]} if suffix == ".mpo" else {}))
    assert load_rgb_image(path.rename(tmp_path / "a.eps")).size == (7, 5)


def test_a_tile_larger_than_any_image_is_not_decoded(tmp_path):
    with pytest.raises(ValueError, match=r"A tile of '.*a\.tif' is 60000 x 60000"):
        load_rgb_image(tiff_of_one_tile(tmp_path, 60_000))
    with pytest.raises(ValueError, match="A tile of"):
        load_rgb_image(Image.open(tiff_of_one_tile(tmp_path, 60_000)))
    with pytest.raises(ValueError, match="cannot be decoded"):
        load_rgb_image(tiff_of_one_tile(tmp_path, 16))


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".jpg", ".png", ".tif", ".webp"])
def test_mutations_of_files_are_refused_or_read(suffix, tmp_path):
    """Whatever a changed byte says, there is an image within the limit or the one error."""
    whole = tmp_path / f"whole{suffix}"
    Image.fromarray(np.kron(HWC, np.ones((4, 4, 1), dtype=np.uint8))).save(whole)
    good, generator, read = whole.read_bytes(), np.random.default_rng(1), 0
    for _ in range(60):
        changed = bytearray(good)
        for where in generator.integers(0, min(len(good), 120), 3):
            changed[where] = generator.integers(0, 256)
        try:
            assert max(load_rgb_image(write(tmp_path, f"a{suffix}", bytes(changed)), 2**20).size) <= 2**20
            read += 1
        except ValueError:
            pass
    assert read < 60


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="not an existing local image file"):
        load_rgb_image(tmp_path / "pipe.png")


BAD_IMAGES = {
    "0 x 5": (Image.new("RGB", (0, 5)), "0 x 5 pixels. Both sides must be at least 1"),
    "too many pixels": (Image.new("1", (8193, 8192)), "8193 x 8192 = 67117056 pixels, more than the 67108864 allowed"),
    "mode F out of range": (Image.fromarray(np.full((2, 2), 3.0, dtype=np.float32)), "must lie in 0..1"),
    "mode I out of range": (Image.fromarray(np.full((2, 2), -1, dtype=np.int32)), "0..255 or 0..65535"),
    "empty array": (np.zeros((0, 4, 3), dtype=np.uint8), "every size at least 1"),
    "1 dimension": (np.zeros(4, dtype=np.uint8), r"shape \(4,\)"),
    "4 dimensions": (np.zeros((2, 4, 4, 3), dtype=np.uint8), "Pass several images as a list"),
    "2 channels": (np.zeros((5, 5, 2), dtype=np.uint8), r"1 \(grey\), 3 \(RGB\) or 4 \(RGBA\)"),
    "bool": (np.zeros((4, 4), dtype=bool), "dtype bool"),
    "int64": (np.zeros((4, 4, 3), dtype=np.int64), "dtype int64"),
    "uint16": (np.zeros((4, 4, 3), dtype=np.uint16), "dtype uint16"),
    "object": (np.zeros((4, 4, 3), dtype=object), "dtype object"),
    "complex": (torch.zeros(3, 4, 4, dtype=torch.complex64), "dtype complex64"),
    "NaN": (np.full((4, 4, 3), np.nan, dtype=np.float32), "remove NaN"),
    "infinite": (np.full((4, 4, 3), np.inf, dtype=np.float32), "must lie in 0..1"),
    "float 0..255": (np.full((4, 4, 3), 200.0, dtype=np.float32), "values from 200.0 to 200.0"),
    "normalised": (torch.full((3, 4, 4), -1.5), "undo any normalisation"),
    "None": (None, "type NoneType"),
    "list": ([[1, 2], [3, 4]], "type list"),
    "bytes": (b"\x89PNG", r"image of 4 bytes cannot be opened as an image \(of no known kind\)"),
    "bytearray": (bytearray(b"\x89PNG"), "type bytearray"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images_are_refused(case):
    image, message = BAD_IMAGES[case]
    with pytest.raises(ValueError, match=message):
        load_rgb_image(image)


def test_the_channels_must_match_the_given_layout():
    with pytest.raises(ValueError, match="given as channels_first, which makes 5 channels"):
        load_rgb_image(HWC, input_data_format="channels_first")


def test_the_pixel_limit_can_be_raised_and_lowered():
    assert load_rgb_image(IMAGE, max_image_pixels=35).size == (7, 5)
    with pytest.raises(ValueError, match="more than the 34 allowed"):
        load_rgb_image(IMAGE, max_image_pixels=34)


@pytest.mark.parametrize(("width", "height"), [(12000, 9000), (20000, 10000), (60000, 60000)])
def test_a_large_image_is_refused_once(tmp_path, width, height):
    """Above our limit, above Pillow's warning and above Pillow's error: one message, with what to do."""
    path = write(tmp_path, "a.png", png_claiming(width, height))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageTooLargeError) as error:
            load_rgb_image(path)
    assert str(width * height) in str(error.value)
    assert "more than the 67108864 allowed" in str(error.value)
    assert "raise `max_image_pixels` if you trust it" in str(error.value)


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_what_is_allowed_is_read_whatever_pillow_says(tmp_path, monkeypatch, how):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    path = tmp_path / "a.tif"  # its tiles are checked by Pillow once more when they are decoded
    Image.new("RGB", (30, 20), "red").save(path)
    limit = {"max_image_pixels": 600} if how == "argument" else {"max_image_pixels": 10}
    if how == "environment":
        monkeypatch.setenv("REASONSEG_MAX_IMAGE_PIXELS", "600")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_rgb_image(path, **limit).size == (30, 20)
        Image.new("RGB", (30, 21), "red").save(path)
        with pytest.raises(ImageTooLargeError, match="more than the 600 allowed"):
            load_rgb_image(path, **limit)
    assert Image.MAX_IMAGE_PIXELS == 50, "a setting of the whole process"


@pytest.mark.parametrize("given", ["many", "0", "-1", "1e6"])
def test_a_limit_in_the_environment_that_is_none(monkeypatch, given):
    monkeypatch.setenv("REASONSEG_MAX_IMAGE_PIXELS", given)
    with pytest.raises(ValueError, match=r"REASONSEG_MAX_IMAGE_PIXELS is .* a number of pixels, at least 1"):
        load_rgb_image(Image.new("RGB", (2, 2)))


def test_threads_that_decode_leave_the_settings_of_the_process_as_they_were(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.png" for number in range(24)]
    for path in paths:
        IMAGE.resize((30, 20)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # a warning for each, were it not for the limit here
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(4) as threads:
        limits = [10**6 + number % 3 for number in range(24)]
        read = list(threads.map(load_rgb_image, paths, limits))
    assert all((np.asarray(image) == np.asarray(read[0])).all() for image in read)
    assert not caught
    assert Image.MAX_IMAGE_PIXELS == 50
    assert warnings.filters == before
