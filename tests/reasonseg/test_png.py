"""PNG files of this package's own writing, as Pillow reads them."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from reasonseg.cli.png import encode_mask_png, encode_rgb_png


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (33, 17)])
def test_pixels_are_kept(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    content = encode_rgb_png(Image.fromarray(pixels))
    read = Image.open(io.BytesIO(content))
    read.verify()  # checksums
    read = Image.open(io.BytesIO(content))
    assert (read.format, read.mode) == ("PNG", "RGB")
    assert (np.asarray(read) == pixels).all()


def test_a_photograph_is_run_lengths_and_codes_as_zlib_writes_them():
    pixels = np.random.default_rng(0).normal(128, 20, (64, 48, 3)).astype(np.uint8)
    filtered = pixels.reshape(64, -1).copy()
    filtered[:, 3:] -= pixels.reshape(64, -1)[:, :-3]
    compressor = zlib.compressobj(1, strategy=zlib.Z_RLE)
    expected = compressor.compress(np.pad(filtered, ((0, 0), (1, 0)), constant_values=1)) + compressor.flush()
    assert expected in encode_rgb_png(Image.fromarray(pixels))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (33, 17)])
def test_masks_are_kept(size):
    mask = np.random.default_rng(1).random(size) < 0.5
    content = encode_mask_png(mask)
    Image.open(io.BytesIO(content)).verify()
    read = Image.open(io.BytesIO(content))
    assert (read.format, read.mode) == ("PNG", "L")
    assert (np.asarray(read) == np.where(mask, 255, 0)).all()
