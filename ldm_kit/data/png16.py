"""Read the values of a PNG file as they are stored, of 8 or 16 bits in 1 to 4 channels.

Pillow turns colours of 16 bits to 8 bits. Their rows are decompressed and unfiltered here (PNG, third edition, 2025,
sections 9 and 10), all rows at once: pixel x of row y is decoded in step x + y, when those left and above are.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by the colour type in the header; 3, a palette, has no values
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Header(NamedTuple):
    """Size and type of a PNG's values."""

    width: int
    height: int
    bits: int  # 8 or 16
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, self.height, self.width


def read_header(data: Any) -> Header:
    """Read the header of a PNG file, `data` its bytes; ValueError: it is none, or of a kind that is not read."""
    head = bytes(data[:29])
    if len(head) < 29 or head[:8] != _SIGNATURE or head[12:16] != b"IHDR":
        raise ValueError("not a PNG file")
    width, height, bits, colours, _, _, interlaced = struct.unpack(">IIBBBBB", head[16:29])
    if bits not in (8, 16) or colours not in _CHANNELS:
        raise ValueError(f"{bits} bits, colour type {colours}; expected 8 or 16 bits without a palette")
    if interlaced and bits == 16 and colours:
        raise ValueError("interlaced colours of 16 bits; expected rows in order")
    return Header(width, height, bits, _CHANNELS[colours])


def read_values(data: Any) -> Array:
    """Return the values of a PNG file, uint8 or uint16 [C, H, W]; ValueError or OSError: it is damaged."""
    header = read_header(data)
    if header.bits == 8 or header.channels == 1:
        with Image.open(io.BytesIO(data[:]), formats=["PNG"]) as image:
            values = np.asarray(image).reshape(header.height, header.width, -1)
        return values.transpose(2, 0, 1).astype(np.uint8 if header.bits == 8 else np.uint16)
    size = 2 * header.channels
    length = header.height * (1 + header.width * size)
    unpacked = zlib.decompressobj().decompress(b"".join(_image_data(data)), length)
    if len(unpacked) < length:
        raise ValueError("the file is truncated")
    rows = np.frombuffer(unpacked, np.uint8).reshape(header.height, 1 + header.width * size)
    pixels = _unfiltered(rows[:, 0], rows[:, 1:].reshape(header.height, header.width, size))
    return pixels.view(">u2").astype(np.uint16).transpose(2, 0, 1)


def _image_data(data: Any) -> Iterator[bytes]:
    """Yield the contents of all IDAT chunks, after checking their checksums."""
    start = 8
    while len(head := bytes(data[start : start + 8])) == 8 and head[4:] != b"IEND":
        (size,) = struct.unpack(">I", head[:4])
        if head[4:] == b"IDAT":
            content = bytes(data[start + 8 : start + 8 + size])
            checksum = bytes(data[start + 8 + size : start + 12 + size])
            if checksum != struct.pack(">I", zlib.crc32(head[4:] + content)):
                raise ValueError("a checksum differs")
            yield content
        start += size + 12


def _unfiltered(kinds: Array, coded: Array) -> Array:
    """Undo the filter of each row, `kinds` uint8 [H] of 0..4, of pixels uint8 [H, W, bytes of a pixel]."""
    if kinds.max(initial=0) > 4:
        raise ValueError("a row has an unknown filter")
    height, width, size = coded.shape
    pixels = np.zeros((height + 1, width + 1, size), np.uint8)  # zeros above the first row, and left of the first pixel
    for step in range(height + width - 1):
        y = np.arange(max(0, step - width + 1), min(height, step + 1))
        x = step - y
        left, above, corner = (pixels[y + dy, x + dx].astype(np.int16) for dy, dx in ((1, 0), (0, 1), (0, 0)))
        kind = kinds[y, None]
        guess = np.select(
            [kind == 1, kind == 2, kind == 3, kind == 4],
            [left, above, (left + above) // 2, _paeth(left, above, corner)],
        )
        pixels[y + 1, x + 1] = (coded[y, x] + guess).astype(np.uint8)
    return np.ascontiguousarray(pixels[1:, 1:])


def _paeth(left: Array, above: Array, corner: Array) -> Array:
    """Return that of three neighbours which is nearest to left + above - corner (Paeth 1991)."""
    guess = left + above - corner
    a, b, c = (np.abs(guess - each) for each in (left, above, corner))
    return np.where((a <= b) & (a <= c), left, np.where(b <= c, above, corner))
