"""Kinds of image files that can be read: by Pillow itself, or by an installed plugin for Pillow."""

import importlib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import PurePath

from PIL import Image

# Formats that start other programs (EPS) or need a handler (WMF, HDF5) are left out, and so are formats with a single
# float channel. Pillow recognises a format by the first bytes of a file; TGA has no such mark and goes by its suffix.
_SUFFIXES: Mapping[str, str] = {
    "PNG": ".png .apng",
    "JPEG": ".jpg .jpeg .jpe .jfif",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "DIB": ".dib",
    "TIFF": ".tif .tiff",
    "PPM": ".ppm .pgm .pbm .pnm",
    "JPEG2000": ".jp2 .j2k .j2c .jpc .jpf .jpx",
    "QOI": ".qoi",
    "PSD": ".psd",
    "SGI": ".sgi .rgb .rgba .bw",
    "DDS": ".dds",
    "PCX": ".pcx",
    "ICO": ".ico",
    "ICNS": ".icns",
    "SUN": ".ras",
}
_TGA = frozenset({".tga", ".icb", ".vda", ".vst"})
# Formats that not every installation of Pillow reads: their suffixes, and the module that reads them.
_OPTIONAL: Mapping[str, tuple[str, str]] = {
    "AVIF": (".avif .avifs", "PIL._avif"),
    "HEIF": (".heic .heif .hif", "pillow_heif"),
    "JXL": (".jxl", "pillow_jxl"),
}
_PACKAGES: Mapping[str, str] = {
    "AVIF": "pillow 11.3 or later",
    "HEIF": "pillow-heif",
    "JXL": "pillow-jxl-plugin",
}


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


_installed = {kind: suffixes for kind, (suffixes, module) in _OPTIONAL.items() if _is_installed(module)}
FORMATS = (*_SUFFIXES, *_installed)
SUFFIXES = frozenset(" ".join([*_SUFFIXES.values(), *_installed.values()]).split()) | _TGA


def is_picture(name: str) -> bool:
    """Return whether a file's name has the suffix, in upper or lower case, of an image format that can be read."""
    return PurePath(name).suffix.lower() in SUFFIXES


def is_array(name: str) -> bool:
    """Return whether a file's name has the suffix of an array, .npy, which is read where a range of values is given."""
    return PurePath(name).suffix.lower() == ".npy"


def formats_of(name: str) -> tuple[str, ...]:
    """Return Pillow's names of the formats to try for a file: all readable ones; TGA only if `name` has its suffix."""
    return (*_formats(), "TGA") if PurePath(name).suffix.lower() in _TGA else _formats()


@cache
def _formats() -> tuple[str, ...]:
    """Register the installed Pillow plugins, and return Pillow's names of all formats that can be read."""
    Image.init()
    if "HEIF" in _installed:
        importlib.import_module("pillow_heif").register_heif_opener()
    if "JXL" in _installed:
        importlib.import_module("pillow_jxl")  # registers itself
    return tuple(name for name in FORMATS if name in Image.OPEN)


def package_for(suffix: str) -> str | None:
    """Return the package needed to read files with `suffix` (".heic"); None if the suffix needs none or is unknown."""
    return next((_PACKAGES[kind] for kind, (suffixes, _) in _OPTIONAL.items() if suffix in suffixes.split()), None)
