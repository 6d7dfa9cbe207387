"""ICC profiles for colour spaces that a file names without a profile: by primaries and gamma (PNG) or a mark (EXIF)."""

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

_D50 = np.array([0.9642, 1.0, 0.8249])  # white point of ICC's profile connection space
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # white, red, green, blue: x and y of each
_ADOBE = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_ADOBE_GAMMA = 563 / 256
_VIDEO_GAMMA = 0.45455  # PNG gamma that programs write when they mean the curve of sRGB
_INTEROP_MARK, _ADOBE_MARK = 1, "R03"


def named_profile(image: Image.Image) -> bytes | None:
    """Return an ICC profile for the colour space that an opened file names without a profile; None if it names none.

    A JPEG of a camera that is set to Adobe RGB has the mark R03 in its EXIF data (DCF 2.0). A PNG may have gAMA and
    cHRM chunks, which count if there is no sRGB chunk (PNG specification, 13.13).

    Raises:
        ValueError, ArithmeticError, struct.error: the primaries or the gamma define no colour space.
    """
    if image.format in ("JPEG", "MPO"):
        return _profile(_ADOBE, _ADOBE_GAMMA, "Adobe RGB (1998)") if _is_adobe(image) else None
    gamma = image.info.get("gamma")
    if image.format != "PNG" or gamma is None or "srgb" in image.info:
        return None
    exponent = None if abs(gamma - _VIDEO_GAMMA) < 0.005 else 1 / gamma
    return _profile(image.info.get("chromaticity", _SRGB), exponent, f"gamma {gamma:.3g} (PNG)")


def _is_adobe(image: Image.Image) -> bool:
    try:
        return image.getexif().get_ifd(ExifTags.IFD.Interop).get(_INTEROP_MARK) == _ADOBE_MARK
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return False  # damaged EXIF says nothing


def _profile(points: Sequence[float], exponent: float | None, name: str) -> bytes:
    """Return the bytes of an ICC display profile (ICC.1:2001-04).

    Args:
        points: chromaticities x and y of white, red, green and blue, eight numbers.
        exponent: gamma of the tone curve; None: the curve of sRGB.
        name: description of the profile, ASCII.
    """
    white, *primaries = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in zip(points[::2], points[1::2], strict=True))
    matrix = np.stack(primaries, axis=1)
    matrix = matrix * np.linalg.solve(matrix, white)  # white is the sum of the primaries
    adapt = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white)) @ _BRADFORD
    description = name.encode("ascii") + b"\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(description)) + description + b"\0" * 78,
        b"wtpt": _xyz(_D50),
        **{key: _xyz(column) for key, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), (adapt @ matrix).T, strict=True)},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(exponent)),
    }
    return _container(tags)


def _container(tags: dict[bytes, bytes]) -> bytes:
    """Return the bytes of an ICC profile: header, then `tags` ({signature: contents}), each padded to 4 n bytes."""
    table, body = struct.pack(">I", len(tags)), b""
    for key, value in tags.items():
        table += key + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(value))
        body += value + b"\0" * (-len(value) % 4)
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4xI4s4s4s12x4s28x", size, 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"acsp") + _fixed(_D50)
    return head.ljust(128, b"\0") + table + body


def _curve(exponent: float | None) -> bytes:
    """Return an ICC curve tag: linear light at 1024 pixel values v in [0, 1], v^exponent or (None) sRGB's curve."""
    v = np.linspace(0, 1, 1024)
    light = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4) if exponent is None else v**exponent
    return b"curv\0\0\0\0" + struct.pack(">I", len(v)) + np.round(light * 65535).astype(">u2").tobytes()


def _xyz(value: NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(value)


def _fixed(values: NDArray[np.float64]) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(float(value) * 65536) for value in values))
