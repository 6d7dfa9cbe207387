"""Files of values, written here byte by byte: TIFF and PNG with 16 bits and any samples, which Pillow cannot write."""

import struct
import zlib
from pathlib import Path

import numpy as np

PLAIN = {"planar": False, "tile": None, "order": "<", "rows": None, "deflate": False, "big": False}


def tiff(path: Path, *pages: np.ndarray, **options) -> Path:
    """Write pages [H, W, C] of one type as a TIFF: in strips or tiles, chunky or planar, of either byte order."""
    o = {**PLAIN, **options}
    order = o["order"]
    content = bytearray(struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 0))
    last = 4  # where the offset of the next directory belongs
    for page in pages:
        height, width, samples = page.shape
        planes = [page[..., c : c + 1] for c in range(samples)] if o["planar"] else [page]
        offsets, counts = [], []
        for plane in planes:
            for block in _blocks(plane, o):
                data = block.astype(block.dtype.newbyteorder(order)).tobytes()
                data = zlib.compress(data) if o["deflate"] else data
                offsets.append(len(content))
                counts.append(len(data))
                content += data + bytes(len(data) % 2)
        kind = {"u": 1, "i": 2, "f": 3}[page.dtype.kind]
        tags = {
            256: [width], 257: [height], 258: [page.dtype.itemsize * 8] * samples, 259: [8 if o["deflate"] else 1],
            262: [1], 277: [samples], 284: [2 if o["planar"] else 1], 339: [kind] * samples,
        }  # fmt: skip
        if o["tile"]:
            tags |= {322: [o["tile"][1]], 323: [o["tile"][0]], 324: offsets, 325: counts}
        else:
            tags |= {273: offsets, 278: [o["rows"] or height], 279: counts}
        where = _write_tags(content, tags, order)
        content[last : last + 4] = struct.pack(f"{order}I", where)
        last = len(content) - 4
    path.write_bytes(bytes(content))
    return path


def _blocks(plane: np.ndarray, options: dict) -> list[np.ndarray]:
    height, width, _ = plane.shape
    if options["tile"] is None:
        rows = options["rows"] or height
        return [plane[top : top + rows] for top in range(0, height, rows)]
    rows, columns = options["tile"]
    padded = np.pad(plane, ((0, -height % rows), (0, -width % columns), (0, 0)))
    corners = [(y, x) for y in range(0, height, rows) for x in range(0, width, columns)]
    return [padded[y : y + rows, x : x + columns] for y, x in corners]


def _write_tags(content: bytearray, tags: dict[int, list[int]], order: str) -> int:
    entries = b""
    for tag, values in sorted(tags.items()):
        data = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            data, where = struct.pack(f"{order}I", len(content)), data
            content += where
        entries += struct.pack(f"{order}HHI", tag, 4, len(values)) + data
    start = len(content)
    content += struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return start


def png(path: Path, values: np.ndarray, filters: tuple[int, ...] = (0,)) -> Path:
    """Write values [H, W, C], uint16 with C of 1 to 4, as a PNG of 16 bits, whose rows have these filters in turn."""
    height, width, channels = values.shape
    size = 2 * channels
    raw = np.frombuffer(values.astype(">u2").tobytes(), np.uint8).reshape(height, width * size).astype(int)
    rows = bytearray()
    for y in range(height):
        kind = filters[y % len(filters)]
        rows.append(kind)
        for i in range(width * size):
            left = raw[y, i - size] if i >= size else 0
            above = raw[y - 1, i] if y else 0
            corner = raw[y - 1, i - size] if y and i >= size else 0
            distances = [abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)]
            nearest = (left, above, corner)[distances.index(min(distances))]
            rows.append((raw[y, i] - (0, left, above, (left + above) // 2, nearest)[kind]) % 256)
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    packed = zlib.compress(bytes(rows))
    parts = [(b"IHDR", head), (b"IDAT", packed[:40]), (b"IDAT", packed[40:]), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path
