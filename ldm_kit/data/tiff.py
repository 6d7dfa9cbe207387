"""Read the values of a TIFF file as they are stored: any number of pages and samples, 8 to 64 bits, whole or float.

Pillow turns 16-bit colours to 8 bits and reads no file of five samples. So the file's directories are read here (TIFF
revision 6.0, 1992, and BigTIFF), and Pillow's libtiff decompresses one strip or tile at a time, as plain bytes.
"""

import io
import struct
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]
_CODECS = {1: "none", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits", 50000: "ZSTD"}
_UNPREDICTED = (1, 32773)  # compressions to which no predictor is applied, whatever its tag says
_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q"}
_FORMATS = {1: "u", 2: "i", 3: "f"}  # by the tag SampleFormat
_MOST_PAGES, _MOST_VALUES = 256, 2**22
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS, _OFFSETS, _SAMPLES = 256, 257, 258, 259, 262, 273, 277
_ROWS, _COUNTS, _PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_COUNTS = (
    278, 279, 284, 317, 322, 323, 324, 325,
)  # fmt: skip
_SUBFILE, _SAMPLE_FORMAT = 254, 339


class Page(NamedTuple):
    """One directory of a TIFF file: size and type of its values, and where they lie."""

    tags: Mapping[int, tuple[Any, ...]]
    order: str  # byte order: "<" or ">"

    def number(self, tag: int, default: int | None = None) -> int:
        """Return the first value of a tag; ValueError: it is missing, and there is no default."""
        values = self.tags.get(tag, ()) or (() if default is None else (default,))
        if not values:
            raise ValueError(f"the TIFF tag {tag} is missing")
        return int(values[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and samples of a pixel."""
        return self.number(_HEIGHT), self.number(_WIDTH), self.number(_SAMPLES, 1)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a value, in the file's byte order; ValueError: it is one that is not read."""
        bits, kinds = {*self.tags.get(_BITS, (1,))}, {*self.tags.get(_SAMPLE_FORMAT, (1,))}
        if len(bits) > 1 or len(kinds) > 1 or {*kinds} - {*_FORMATS} or bits.isdisjoint({8, 16, 32, 64}):
            raise ValueError(f"samples of {sorted(bits)} bits; expected 8, 16, 32 or 64, the same in all channels")
        return np.dtype(f"{self.order}{_FORMATS[kinds.pop()]}{bits.pop() // 8}")

    @property
    def is_picture(self) -> bool:
        """Whether it is neither a smaller copy of another page nor a mask."""
        return not self.number(_SUBFILE, 0) & 0b101


def read_pages(data: Any) -> list[Page]:
    """Read the directories of a TIFF file, `data` its bytes, without smaller copies and masks.

    Raises:
        ValueError: the file is damaged, or has over 256 pages, or pages of several sizes or types.
    """
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    version = 0 if order is None or len(data) < 16 else struct.unpack(f"{order}H", data[2:4])[0]
    if order is None or version not in (42, 43):
        raise ValueError("not a TIFF file")
    big = version == 43
    offset = struct.unpack(f"{order}Q", data[8:16])[0] if big else struct.unpack(f"{order}I", data[4:8])[0]
    pages: list[Page] = []
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) <= _MOST_PAGES:
        seen.add(offset)
        tags, offset = _directory(data, offset, order, big=big)
        pages.append(Page(tags, order))
    pages = [page for page in pages if page.is_picture]
    if not pages or len(seen) > _MOST_PAGES:
        raise ValueError(f"{len(pages)} pages; expected 1 to {_MOST_PAGES}")
    if len({(page.shape, page.dtype) for page in pages}) > 1:
        raise ValueError("pages of several sizes or types; expected all alike, as the channels of one picture")
    return pages


def _directory(data: Any, offset: int, order: str, *, big: bool) -> tuple[dict[int, tuple[Any, ...]], int]:
    """Return the tags of the directory at `offset`, and the offset of the next one; 0: there is none."""
    head, size = (f"{order}Q", 20) if big else (f"{order}H", 12)
    (count,) = _unpack(head, data, offset)
    start = offset + struct.calcsize(head)
    tags: dict[int, tuple[Any, ...]] = {}
    for entry in range(start, start + min(count, 4096) * size, size):
        tag, kind, number = _unpack(f"{order}HHQ" if big else f"{order}HHI", data, entry)
        if kind not in _TYPES or number > _MOST_VALUES:
            continue
        form = f"{order}{number}{_TYPES[kind]}"
        inline = 8 if big else 4
        where = entry + size - inline
        if struct.calcsize(form) > inline:
            (where,) = _unpack(f"{order}Q" if big else f"{order}I", data, where)
        tags[tag] = _unpack(form, data, where)
    (following,) = _unpack(f"{order}Q" if big else f"{order}I", data, start + count * size)
    return tags, following


def _unpack(form: str, data: Any, offset: int) -> tuple[Any, ...]:
    content = bytes(data[offset : offset + struct.calcsize(form)])
    if len(content) < struct.calcsize(form):
        raise ValueError("the file is truncated")
    return struct.unpack(form, content)


def read_values(data: Any, page: Page) -> Array:
    """Return the values of a page, [samples, height, width], in the machine's byte order.

    Raises:
        ValueError: the file is damaged, or its compression, colours or predictor are not read.
    """
    height, width, samples = page.shape
    if page.number(_COMPRESSION, 1) not in _CODECS:
        names = ", ".join(dict.fromkeys(_CODECS.values()))
        raise ValueError(f"TIFF compression {page.number(_COMPRESSION)}; expected one of {names}")
    if page.number(_COLOURS, 1) not in (1, 2, 5):
        raise ValueError(f"TIFF colours of kind {page.number(_COLOURS)} (a palette, or inverted); expected plain ones")
    planar = page.number(_PLANAR, 1) == 2 and samples > 1
    planes, own = (samples, 1) if planar else (1, samples)
    whole = np.empty((planes, height, width, own), page.dtype.newbyteorder("="))
    blocks = [*_blocks(page, planes)]
    offsets, counts = (
        page.tags.get(tag, ()) for tag in ((_TILES, _TILE_COUNTS) if _tiled(page) else (_OFFSETS, _COUNTS))
    )
    if len(offsets) != len(blocks) or len(counts) != len(blocks):
        raise ValueError(f"{len(offsets)} strips or tiles; expected {len(blocks)}")
    for (plane, top, left, rows, columns), offset, count in zip(blocks, offsets, counts, strict=True):
        content = bytes(data[offset : offset + count])
        values = _decoded(content, page, rows, columns, own)
        cut = values[: height - top, : width - left]
        whole[plane, top : top + rows, left : left + columns] = cut
    return np.ascontiguousarray(whole.transpose(0, 3, 1, 2).reshape(samples, height, width))


def _tiled(page: Page) -> bool:
    return _TILES in page.tags


def _blocks(page: Page, planes: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield plane, top, left, rows and columns of each strip or tile, in the file's order."""
    height, width, _ = page.shape
    if _tiled(page):
        rows, columns = page.number(_TILE_HEIGHT), page.number(_TILE_WIDTH)
    else:
        rows, columns = min(page.number(_ROWS, height), height), width
    if min(rows, columns, height, width) < 1 or planes * -(-height // rows) * -(-width // columns) > _MOST_VALUES:
        raise ValueError("strips or tiles of an impossible size")
    for plane in range(planes):
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                cut = rows if _tiled(page) else min(rows, height - top)  # the last strip is shorter, a tile is not
                yield plane, top, left, cut, columns


def _decoded(content: bytes, page: Page, rows: int, columns: int, samples: int) -> Array:
    """Decompress a strip or tile, and undo its predictor: [rows, columns, samples]."""
    dtype, row = page.dtype, columns * samples * page.dtype.itemsize
    if (codec := page.number(_COMPRESSION, 1)) != 1:
        content = _decompressed(content, codec, rows, row)
    if len(content) < rows * row:
        raise ValueError("the file is truncated")
    flat = np.frombuffer(content, np.uint8, rows * row)
    match 1 if codec in _UNPREDICTED else page.number(_PREDICTOR, 1):
        case 1:
            return flat.view(dtype).reshape(rows, columns, samples).astype(dtype.newbyteorder("="))
        case 2 if dtype.kind in "ui":
            plain = flat.view(dtype).reshape(rows, columns, samples).astype(dtype.newbyteorder("="))
            return np.cumsum(plain, axis=1, dtype=plain.dtype)  # differences wrap around
        case 3 if dtype.kind == "f":
            sums = np.cumsum(flat.reshape(rows, -1, samples), axis=1, dtype=np.uint8)
            planes = sums.reshape(rows, dtype.itemsize, columns * samples).transpose(0, 2, 1)  # highest byte first
            values = np.ascontiguousarray(planes).view(dtype.newbyteorder(">"))
            return values.reshape(rows, columns, samples).astype(dtype.newbyteorder("="))
        case other:
            raise ValueError(f"TIFF predictor {other}; expected 1 or 2, or 3 of floats")


def _decompressed(content: bytes, codec: int, rows: int, row: int) -> bytes:
    """Decompress a strip: as the only strip of a grey 8-bit TIFF of `rows` rows of `row` bytes, which Pillow opens."""
    entries = [
        (_WIDTH, row), (_HEIGHT, rows), (_BITS, 8), (_COMPRESSION, codec), (_COLOURS, 1), (_OFFSETS, 8), (_SAMPLES, 1),
        (_ROWS, rows), (_COUNTS, len(content)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in entries)
    padding = len(content) % 2
    head = struct.pack("<2sHI", b"II", 42, 8 + len(content) + padding)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        file = io.BytesIO(head + content + bytes(padding) + directory + bytes(4))
        try:
            with Image.open(file, formats=["TIFF"]) as image:
                return image.tobytes()
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise ValueError("a strip of more pixels than are read at once; save the file in strips or tiles") from None
