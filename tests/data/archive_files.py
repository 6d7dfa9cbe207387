"""Made-up pictures as the contents of files, and tar shards of them."""

import io
import tarfile
from pathlib import Path

import torch
from PIL import Image


def encoded(shade: int = 0, size: tuple[int, int] = (12, 10), kind: str = "PNG", **options: object) -> bytes:
    """One grey picture's file."""
    file = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(file, kind, **options)
    return file.getvalue()


def noise(seed: int) -> bytes:
    """A picture that does not compress."""
    pixels = torch.randint(0, 256, (16, 16, 3), generator=torch.Generator().manual_seed(seed))
    file = io.BytesIO()
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(file, "PNG")
    return file.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **about: object) -> tarfile.TarInfo:
    """The header of a member, of any kind that tar knows."""
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in about.items():
        setattr(info, key, value)
    return info


def shard(path: Path, *members: tuple[str | tarfile.TarInfo, bytes]) -> Path:
    """A tar with members in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, contents in members:
            info = member(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
    return path


def greys(path: Path, first: int, count: int) -> Path:
    """A tar of pictures whose grey is their number, each with a caption and a class."""
    rows = []
    for i in range(first, first + count):
        rows += [
            (f"{i:04d}.png", encoded(i)),
            (f"{i:04d}.txt", f"grey {i}\n".encode()),
            (f"{i:04d}.cls", b"%d" % (i % 3)),
        ]
    return shard(path, *rows)
