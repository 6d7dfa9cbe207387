"""Colour profiles (ICC) of pictures: pixels are converted to sRGB, which models and viewers expect.

Pixels in Adobe RGB, Display P3 or ProPhoto that are read as if they were in sRGB are wrong by 13 to 27 of 255 levels on
average. A profile that is equivalent to sRGB changes no pixel.
"""

import io
import logging
import struct
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms

from ldm_kit.data.left_out import listed
from ldm_kit.data.matrix_profiles import named_profile

_log = logging.getLogger("ldm_kit.data")
_SAME = 3  # levels of 255: a profile that changes no colour by more counts as sRGB
_UNUSABLE = (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError)  # ImportError: Pillow without littleCMS
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space in a profile -> Pillow's image mode
# Pillow's mode of a picture -> mode of its colours, which a profile describes. The colours of a palette are RGB.
_COLOUR_MODES = {"1": "L", "L": "L", "LA": "L", "La": "L", "CMYK": "CMYK", "LAB": "LAB", "YCbCr": "RGB"}
_COLOUR_MODES |= dict.fromkeys(["P", "PA", "RGB", "RGBA", "RGBX", "RGBa"], "RGB")


class Profile(NamedTuple):
    """A picture's colour profile (ICC)."""

    name: str  # description that the profile gives of itself; "" for a broken profile
    problem: str = ""  # why the profile cannot be used; "" if it can


class Conversion(NamedTuple):
    """How the colours of a picture are converted to sRGB."""

    profile: Profile | None  # None: the picture has no profile, or one equivalent to sRGB
    mode: str = ""  # Pillow's image mode that the transform takes
    transform: Any = None  # littleCMS's transform to sRGB; None: nothing is converted

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the decoded picture `image`, of 8 bits per channel, converted to sRGB; alpha is kept.

        A picture that is in sRGB, or whose profile cannot be used, is returned unchanged. Others become RGB, or RGBA if
        they have transparency.
        """
        if self.transform is None:
            return image
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        colours = image.convert(_colour_mode(image)).convert(self.mode)
        converted = ImageCms.applyTransform(colours, self.transform)
        if converted is None:
            raise ValueError("its colours cannot be converted")
        if alpha is not None:
            converted.putalpha(alpha)
        return converted


@dataclass
class ProfileCounts:
    """Counts of the pictures in a set whose colours are converted to sRGB, or whose profiles cannot be used."""

    converted: Counter[str] = field(default_factory=Counter)  # profile's name -> number of pictures
    unusable: list[str] = field(default_factory=list)  # a complaint for each picture whose profile cannot be used

    def add(self, name: str, profile: Profile | None) -> None:
        """Count a picture, given its name and its colour profile; one without a profile, or in sRGB, is not counted."""
        if profile is not None and profile.problem:
            self.unusable.append(f"{name}: {profile.problem}")
        elif profile is not None:
            self.converted[profile.name] += 1

    @property
    def settings(self) -> list[str]:
        """Texts to hash into the picture set's fingerprint: "colours=srgb" if any picture was converted, else none."""
        return ["colours=srgb"] if self.converted else []

    def log(self, source: object, total: int) -> None:
        """Log how many of the `total` pictures in `source`, a path, are converted, and which have unusable profiles."""
        if self.converted:
            kinds = ", ".join(f"{count:,} of {name}" for name, count in self.converted.most_common(5))
            count = self.converted.total()
            _log.warning("converted the colours of %d of %d pictures in %s to sRGB (%s)", count, total, source, kinds)
        if self.unusable:
            _log.warning(
                "%d of %d pictures in %s have a colour profile that cannot be used, and are read as sRGB: %s",
                *(len(self.unusable), total, source, listed(self.unusable)),
            )


def describe(profile: Profile) -> str:
    """Return a message that says what was done about a picture's colour profile."""
    if profile.problem:
        return f"{profile.problem}; its colours are read as sRGB"
    return f"its colours are converted from {profile.name} to sRGB"


def conversion_of(image: Image.Image) -> Conversion:
    """Return how the colours of an opened image file are converted to sRGB, without decoding pixels.

    The file's ICC profile decides, or the colour space that a PNG's chunks or a JPEG's EXIF data name instead.
    """
    mode = _colour_mode(image)
    if mode in ("", "LAB"):
        return _lab_conversion() if mode else Conversion(None)
    icc = image.info.get("icc_profile")
    try:
        if "icc_profile" not in image.info:
            icc = named_profile(image)
            return Conversion(None) if icc is None else _profile_conversion(icc, mode)
    except (ArithmeticError, ValueError, struct.error) as error:
        return _unusable(error)
    return _profile_conversion(icc if isinstance(icc, bytes) else b"", mode)  # None: Pillow could not unpack it


def _colour_mode(image: Image.Image) -> str:
    """Return Pillow's mode of a picture's colours without alpha; "" if no profile can describe them (floats)."""
    return "L" if image.mode.startswith("I") else _COLOUR_MODES.get(image.mode, "")


@lru_cache(maxsize=64)
def _profile_conversion(icc: bytes, mode: str) -> Conversion:
    """Return the conversion to sRGB of colours in Pillow's mode `mode` (L, RGB, CMYK) with the ICC profile `icc`."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        header: Any = profile.profile
        space, name = header.xcolor_space.strip(), _name(header)
        taken = _SPACES.get(space, "")
        if mode != taken and (mode, taken) != ("L", "RGB"):
            return Conversion(Profile(name, f"its profile {name} is of {space} and its pixels are {_text(mode)}"))
        transform = _transform(profile, taken)
        if _is_srgb(taken, transform):
            return Conversion(None)
        return Conversion(Profile(name), taken, transform)
    except _UNUSABLE as error:
        return _unusable(error)


def _unusable(error: Exception) -> Conversion:
    return Conversion(Profile("", f"broken profile ({' '.join(str(error).split()):.80})"))


@lru_cache(maxsize=1)
def _lab_conversion() -> Conversion:
    """Return the conversion of CIE L*a*b* (TIFF) to sRGB, which needs no profile."""
    try:
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        return Conversion(Profile("CIE L*a*b*"), "LAB", _transform(lab, "LAB"))
    except _UNUSABLE:
        return Conversion(None)


def _transform(profile: ImageCms.ImageCmsProfile, mode: str) -> Any:
    """Return littleCMS's transform from a profile to sRGB: relative colorimetric, with black-point compensation.

    These are Photoshop's settings. `mode` is Pillow's mode of the colours to transform.
    """
    return ImageCms.buildTransform(
        *(profile, ImageCms.createProfile("sRGB"), mode, "RGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def _is_srgb(mode: str, transform: Any) -> bool:
    """Return whether a transform to sRGB changes no colour by over 3 of 255 levels, as tried on a grid of colours.

    `mode` is Pillow's mode of the colours to transform; for other modes than L and RGB the result is False.
    """
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    if mode == "L":
        probe = levels[None]
    elif mode == "RGB":
        probe = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    else:
        return False
    colours = Image.fromarray(probe)
    converted = np.asarray(ImageCms.applyTransform(colours, transform), dtype=int)
    return int(np.abs(converted - np.asarray(colours.convert("RGB"), dtype=int)).max()) <= _SAME


def _name(header: Any) -> str:
    text = header.profile_description or ""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:60] or "an unnamed profile"


def _text(mode: str) -> str:
    return {"L": "grey"}.get(mode, mode)
