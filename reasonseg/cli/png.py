"""PNG files of photographs and masks, in a fraction of the time that Pillow takes."""

import struct
import zlib
from typing import TYPE_CHECKING

from zlib_ng import zlib_ng


if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EIGHT_BIT_RGB = bytes((8, 2, 0, 0, 0))
_EIGHT_BIT_GREY = bytes((8, 0, 0, 0, 0))
# Of each byte the one of the pixel on its left, or of that above it, is subtracted.
_FILTER_SUB, _FILTER_UP = 1, 2


def encode_rgb_png(image: "Image.Image") -> bytes:
    """Return an RGB image as a PNG file.

    Pillow tries five filters on every row and looks for repeated texts in what is left, of which photographs have
    none. One filter, run lengths and Huffman codes give files of about the same size in a tenth of the time. zlib-ng
    writes zlib's bytes in half of its time.
    """
    import numpy as np

    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    height, width = pixels.shape[:2]
    pixels = pixels.reshape(height, 3 * width)
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = _FILTER_SUB
    rows[:, 1:4] = pixels[:, :3]
    np.subtract(pixels[:, 3:], pixels[:, :-3], out=rows[:, 4:])
    compressor = zlib_ng.compressobj(1, strategy=zlib_ng.Z_RLE)
    return _file(width, height, _EIGHT_BIT_RGB, compressor.compress(rows) + compressor.flush())


def encode_mask_png(mask: "np.ndarray") -> bytes:
    """Return a bool mask `(height, width)` as a greyscale PNG file of 0 and 255. Rows are mostly as the ones above."""
    import numpy as np

    height, width = mask.shape
    rows = np.empty((height, 1 + width), np.uint8)
    rows[:, 0] = _FILTER_UP
    pixels = mask.astype(np.uint8) * np.uint8(255)
    rows[0, 1:] = pixels[0]
    np.subtract(pixels[1:], pixels[:-1], out=rows[1:, 1:])
    return _file(width, height, _EIGHT_BIT_GREY, zlib.compress(rows, 1))


def _file(width: int, height: int, kind: bytes, compressed: bytes) -> bytes:
    header = struct.pack(">II", width, height) + kind
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", compressed) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


__all__ = ["encode_mask_png", "encode_rgb_png"]
