"""Read the values of a TIFF file as they are stored: any number of pages and samples, 8 to 64 bits, whole or float.

Pillow turns 16-bit colours to 8 bits and reads no file of five samples, so tifffile reads these files, and imagecodecs
decompresses them (the extra `ldm_kit[values]`).
"""

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from ldm_kit.config import UserError

if TYPE_CHECKING:
    from tifffile import TiffPage

Array = np.ndarray[Any, Any]
_MOST_PAGES = 256
_PLAIN = ("MINISBLACK", "RGB")  # photometric interpretations
_COPY = 0b101  # bits of NewSubfileType: a smaller copy of another page, or a mask
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it warns of is raised here, if it matters


def require_codecs(files: str) -> None:
    """Check that tifffile and imagecodecs are installed, which read `files`; raise UserError if one is not."""
    if missing := [name for name in ("tifffile", "imagecodecs") if find_spec(name) is None]:
        raise UserError(f"{files} need {' and '.join(missing)}: pip install 'ldm_kit[values]'")


def open_pages(data: Any) -> list["TiffPage"]:
    """Return the pages of a TIFF file without smaller copies and masks; their values are not read.

    `data` is an opened file, or its bytes mapped into memory, and stays open until the values are read.

    Raises:
        UserError: tifffile or imagecodecs is not installed.
        ValueError: the file is damaged, or has over 256 pages, pages of several sizes or types, or other colours than
            grey or RGB.
    """
    require_codecs("TIFF files of values")
    from tifffile import TiffFile, TiffPage

    whole = TiffFile(data).pages
    if len(whole) > _MOST_PAGES:
        raise ValueError(f"{len(whole)} pages; expected 1 to {_MOST_PAGES}")
    pages = [page for page in whole if isinstance(page, TiffPage) and not page.subfiletype & _COPY]
    if not pages:
        raise ValueError("it has no page, or is truncated")
    if len({(size_of(page), page.dtype) for page in pages}) > 1:
        raise ValueError("pages of several sizes or types; expected all alike, as the channels of one picture")
    colours = getattr(pages[0].photometric, "name", "MINISBLACK")
    if colours not in _PLAIN or pages[0].dtype is None or pages[0].dtype.kind not in "uif":
        raise ValueError(f"TIFF colours {colours} of type {pages[0].dtype}; expected grey or RGB, of 8 bits or more")
    return pages


def size_of(page: "TiffPage") -> tuple[int, int, int]:
    """Return samples, height and width of a page."""
    return page.samplesperpixel, page.imagelength, page.imagewidth


def read_values(pages: Sequence["TiffPage"]) -> Array:
    """Return the values of pages, [samples of all pages, height, width], in the machine's byte order.

    Raises:
        ValueError: the file is damaged, or its compression is not read.
    """
    from tifffile import PLANARCONFIG

    samples, height, width = size_of(pages[0])
    if pages[0].planarconfig == PLANARCONFIG.SEPARATE:
        planes = [page.asarray().reshape(samples, height, width) for page in pages]
    else:
        planes = [page.asarray().reshape(height, width, samples).transpose(2, 0, 1) for page in pages]
    values = np.concatenate(planes)
    return values.astype(values.dtype.newbyteorder("="), copy=False)
