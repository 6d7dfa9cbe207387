"""Small files that would become huge: refused by what their headers promise."""

import contextlib
import io
import tracemalloc
import zlib

import pytest
import torch
from PIL import Image, ImageFile

from ldm_kit.data.image_files import BadPicture, Encoded, load_image


def flat(kind: str, side: int) -> bytes:
    """One colour, side x side: hardly any bytes."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, kind, **({"compression": "tiff_lzw"} if kind == "TIFF" else {}))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP"])
def test_a_bomb_is_never_decoded(kind, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it was decoded"))
    contents = flat(kind, 8100)  # 65.6 million pixels, just over the limit
    assert len(contents) < 9_000_000
    with pytest.raises(BadPicture, match=r"limit of 64,000,000"):
        load_image(Encoded("bomb", contents), 8)


def test_text_that_unpacks_to_much_is_left_packed():
    """64 MB in a PNG's compressed text: the picture reads, or is refused, but the text is not unpacked."""
    plain = io.BytesIO()
    Image.new("L", (9, 9), 7).save(plain, "PNG")
    whole = plain.getvalue()
    packed = b"k\0\0" + zlib.compress(b"\0" * 64_000_000, 9)
    chunk = len(packed).to_bytes(4) + b"zTXt" + packed + zlib.crc32(b"zTXt" + packed).to_bytes(4)
    bomb = Encoded("bomb", whole[:33] + chunk + whole[33:])  # behind the header
    tracemalloc.start()
    try:
        with contextlib.suppress(BadPicture):
            assert torch.equal(load_image(bomb, 8), load_image(Encoded("plain", whole), 8))
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()
