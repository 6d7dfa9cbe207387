"""Picture files: whole or absent, named by numbers and a harmless slug, and able to say how they were made."""

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
    """Write a PNG, whole or not at all, with `metadata` (prompt, seed, settings) as text; None leaves all text out.

    The text is readable by anyone who gets the file: give it no path and no name of a user. NULs become spaces.

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
    """Around the writing of a picture that the work can do without: a full disk costs it, and a warning."""
    try:
        yield
    except OSError as error:
        _log.warning("could not write %s: %s; the work goes on without it", path, error.strerror or error)


def read_metadata(path: Path) -> dict[str, str]:
    """The text that `save_png` wrote into a PNG, without decoding its pixels; empty if there is none.

    Raises:
        UserError: the file cannot be read, or is no PNG.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return {str(key): str(value) for key, value in image.info.items() if isinstance(value, str)}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"cannot read PNG metadata of {path}: {str(error).splitlines()[0]}") from None


def file_name(seed: int, index: int, prompt: str) -> str:
    """`{seed:08d}-{index:05d}-{slug}.png`: unique by the two numbers, a slug of at most 60 of a-z, 0-9 and dashes.

    Accents are dropped ("Curaçao" -> "curacao"), all else between words becomes one dash, and a prompt without any such
    letter is called "picture"; so no prompt can leave the folder, hide the file or be refused by a file system.

    Raises:
        ValueError: seed or index outside 0..2^64 - 1.
    """
    for what, number in (("seed", seed), ("index", index)):
        if not 0 <= number <= MAX_SEED:
            raise ValueError(f"{what} must lie in 0..{MAX_SEED}, got {number}")
    plain = unicodedata.normalize("NFKD", prompt[:1000]).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-")
    return f"{seed:08d}-{index:05d}-{slug or 'picture'}.png"


def write_atomic(path: Path, content: bytes) -> None:
    """Write beside and rename, so that a file under its final name is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
