"""PNG files: written atomically, with safe names, and with metadata that says how they were made."""

import io
import logging
import os
import re
import unicodedata
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from ldm_kit.config import UserError

MAX_SEED = 2**64 - 1
_log = logging.getLogger("ldm_kit.evaluation")


def save_png(image: Image.Image, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a PNG file, complete or not at all.

    Args:
        image: the picture.
        path: the file; missing folders are made.
        metadata: text by key (prompt, seed, settings), readable by anyone who has the file, so it should contain no
            path and no user name; NULs become spaces. None: none.

    Raises:
        ValueError: a metadata key that is not 1 to 79 printable Latin-1 characters.
    """
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    for key, value in (metadata or {}).items():
        if not re.fullmatch(r"[!-~\xa1-\xff](?:[ -~\xa1-\xff]{0,77}[!-~\xa1-\xff])?", key):
            raise ValueError(f"PNG text key {key[:100]!r} must be 1 to 79 printable Latin-1 characters")
        text.add_text(key, value.replace("\0", " ").encode("utf-8", "replace").decode())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=text)
    write_atomic(path, buffer.getvalue())


@contextmanager
def tolerate_oserror(path: Path) -> Iterator[None]:
    """Turn an OSError within this context into a warning: a picture is not worth stopping a run on a full disk.

    Args:
        path: the file to name in the warning.
    """
    try:
        yield
    except OSError as error:
        _log.warning("could not write %s: %s; the work goes on without it", path, error.strerror or error)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata that `save_png` wrote into a PNG, without decoding its pixels; empty if there is none.

    Raises:
        UserError: the file cannot be read, or is no PNG.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return {str(key): str(value) for key, value in image.info.items() if isinstance(value, str)}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"cannot read PNG metadata of {path}: {str(error).splitlines()[0]}") from None


def file_name(seed: int, index: int, prompt: str) -> str:
    """Return the name of a picture's file: `{seed:08d}-{index:05d}-{slug}.png`.

    The slug has at most 60 characters of a-z, 0-9 and dashes: accents are dropped ("Curaçao" -> "curacao"), everything
    else between words becomes one dash, and a prompt without such a character becomes "picture". So no prompt can name
    a file outside the folder, a hidden one, or one that a file system refuses.

    Raises:
        ValueError: seed or index outside 0..2^64 - 1.
    """
    for name, number in (("seed", seed), ("index", index)):
        if not 0 <= number <= MAX_SEED:
            raise ValueError(f"{name} must lie in 0..{MAX_SEED}, got {number}")
    plain = unicodedata.normalize("NFKD", prompt[:1000]).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-")
    return f"{seed:08d}-{index:05d}-{slug or 'picture'}.png"


def unused_path(path: Path) -> Path:
    """Return a path at which nothing is, so that what an earlier command wrote there stays.

    It is the path itself, or the first of `NAME-2`, `NAME-3`, ... (before a file's ending) that does not exist. An
    empty folder counts as nothing.
    """
    number, candidate = 1, path
    while candidate.exists() and (candidate.is_file() or any(candidate.iterdir())):
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it and rename it, so that it is complete or absent.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
