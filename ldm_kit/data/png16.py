"""Read the values of a PNG file as they are stored, of 8 or 16 bits in 1 to 4 channels.

Pillow turns colours of 16 bits to 8 bits, so imagecodecs reads those (the extra `ldm_kit[values]`).
"""

import io
import struct
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ldm_kit.data.tiff import require_codecs

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
    width, height, bits, colours = struct.unpack(">IIBB", head[16:26])
    if bits not in (8, 16) or colours not in _CHANNELS:
        raise ValueError(f"{bits} bits, colour type {colours}; expected 8 or 16 bits without a palette")
    return Header(width, height, bits, _CHANNELS[colours])


def read_values(data: Any) -> Array:
    """Return the values of a PNG file, uint8 or uint16 [C, H, W]; ValueError or OSError: it is damaged.

    UserError: it has colours of 16 bits, and imagecodecs is not installed.
    """
    header = read_header(data)
    if header.bits == 8 or header.channels == 1:
        with Image.open(io.BytesIO(data[:]), formats=["PNG"]) as image:
            values = np.asarray(image).reshape(header.height, header.width, -1)
        return values.transpose(2, 0, 1).astype(np.uint8 if header.bits == 8 else np.uint16)
    require_codecs("PNG files with colours of 16 bits")
    import imagecodecs

    try:
        return imagecodecs.png_decode(bytes(data)).transpose(2, 0, 1)
    except imagecodecs.PngError:
        raise ValueError("damaged or truncated") from None
