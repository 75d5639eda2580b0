"""PNG files of photographs, in a fraction of the time that Pillow takes."""

import struct
import zlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from PIL import Image


_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EIGHT_BIT_RGB = bytes((8, 2, 0, 0, 0))
# Of each byte the one of the pixel on its left is subtracted.
_FILTER_SUB = 1


def encode_rgb_png(image: "Image.Image") -> bytes:
    """Return an RGB image as a PNG file.

    Pillow tries five filters on every row and looks for repeated texts in what is left, of which photographs have
    none. One filter, run lengths and Huffman codes give files of about the same size in a tenth of the time.
    """
    import numpy as np

    pixels = np.asarray(image.convert("RGB"))
    height, width = pixels.shape[:2]
    pixels = pixels.reshape(height, 3 * width)
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = _FILTER_SUB
    rows[:, 1:4] = pixels[:, :3]
    np.subtract(pixels[:, 3:], pixels[:, :-3], out=rows[:, 4:])
    compressor = zlib.compressobj(1, strategy=zlib.Z_RLE)
    compressed = compressor.compress(rows) + compressor.flush()
    header = struct.pack(">II", width, height) + _EIGHT_BIT_RGB
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", compressed) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


__all__ = ["encode_rgb_png"]
