"""Write PNG files atomically, under safe names, with metadata that says how the pictures were made."""

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
_PICTURE = re.compile(r"\d{8,20}-(\d{5,20})-[a-z0-9-]+\.png")  # a name made by `file_name`
_log = logging.getLogger("ldm_kit.evaluation")


def save_png(image: Image.Image, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a PNG file atomically: after an error or a crash, the path holds no incomplete file.

    Args:
        image: the picture to write.
        path: path of the file; missing folders are created.
        metadata: texts by key (prompt, seed, settings) for the file; None: no texts. Everyone who has the file can read
            them, so they should contain no path and no user name. NUL characters are replaced by spaces.

    Raises:
        ValueError: a metadata key is not 1 to 79 printable Latin-1 characters, or starts or ends with a space.
        OSError: the file cannot be written.
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
    """Return a context in which an OSError is logged as a warning, so that a failed picture does not stop a run.

    Args:
        path: path of the picture, which the warning names.
    """
    try:
        yield
    except OSError as error:
        _log.warning("could not write %s: %s; the work goes on without it", path, error.strerror or error)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata that `save_png` wrote into a PNG file, without decoding the pixels; {} if there is none.

    Raises:
        UserError: the file cannot be read, or is no PNG.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return {str(key): str(value) for key, value in image.info.items() if isinstance(value, str)}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"cannot read PNG metadata of {path}: {str(error).splitlines()[0]}") from None


def file_name(seed: int, index: int, prompt: str) -> str:
    """Return the file name of a generated picture: `{seed:08d}-{index:05d}-{slug}.png`.

    `index` is the number of the picture among those of one command. The slug is made of the prompt; it has at most 60
    characters of a-z, 0-9 and dashes. Accents are dropped ("Curaçao" gives "curacao"), each sequence of other
    characters becomes one dash, and a prompt without letters or digits gives "picture". So no prompt leads to a file
    outside the folder, to a hidden file, or to a name that a file system does not allow.

    Raises:
        ValueError: `seed` or `index` lies outside 0..2^64 - 1.
    """
    for name, number in (("seed", seed), ("index", index)):
        if not 0 <= number <= MAX_SEED:
            raise ValueError(f"{name} must lie in 0..{MAX_SEED}, got {number}")
    plain = unicodedata.normalize("NFKD", prompt[:1000]).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-")
    return f"{seed:08d}-{index:05d}-{slug or 'picture'}.png"


def next_index(folder: Path) -> int:
    """Return the index for the next picture of a folder: one more than that of any picture there, 0 without pictures.

    With indices from there on, a later command overwrites no picture, whatever its prompts and seeds.

    Args:
        folder: holds pictures whose names are made by `file_name`, and any other files; need not exist.
    """
    names = [path.name for path in folder.glob("*.png")]
    return max((int(match[1]) + 1 for match in map(_PICTURE.match, names) if match), default=0)


def unused_path(path: Path, *suffixes: str) -> Path:
    """Return a path to write to without overwriting the results of an earlier command.

    It is `path` itself if nothing is there, else the first free one of `NAME-2`, `NAME-3`, ... (the number is before
    the file's suffix). A path at which there is an empty folder is free.

    Args:
        path: the path that is preferred.
        suffixes: suffixes, such as ".png", of further files of the same name, which must be free as well.
    """
    number, candidate = 1, path
    while any(_is_used(other) for other in (candidate, *map(candidate.with_suffix, suffixes))):
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def _is_used(path: Path) -> bool:
    return path.exists() and (path.is_file() or any(path.iterdir()))


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically: write a temporary file in the same folder, then rename it. Create missing folders.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
