"""What a run shows: labelled grids of pictures, training curves, and PNG files that remember how they were made.

A picture file is whole or absent (written beside, then renamed), is named by numbers and a harmless slug, and may carry
its prompt, seed and settings as PNG text. Nothing here touches matplotlib's global state.
"""

import io
import json
import math
import os
import re
import unicodedata
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm_kit.config import UserError

MAX_SEED = 2**64 - 1
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_TEXT_SIZE, _LINE_HEIGHT, _LINES = 11, 14, 3
_CAPTIONED_WIDTH = 96  # pixels a caption needs to be of use; narrower pictures get wider cells


def grid(
    pictures: Tensor, columns: int, scale: int = 1, captions: Sequence[str] | None = None, padding: int = 2
) -> Image.Image:
    """Lay pictures, uint8 [N, C, H, W] with C = 1, 3 or 4, in rows on white, each caption under its picture.

    Pixels are repeated `scale` times, never smoothed; alpha is laid over white. Captions wrap to three lines at most and
    widen the cells of small pictures to 96 pixels.

    Raises:
        ValueError: no pictures, not uint8 [N, 1 | 3 | 4, H, W], fewer than 1 column, or not one caption a picture.
    """
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"got {len(captions)} captions for {len(pictures)} pictures; expected one each")
    return _lay(list(zip(_images(pictures, scale), captions or [""] * len(pictures), strict=True)), columns, padding)


def pairs_grid(
    originals: Tensor,
    reconstructions: Tensor,
    columns: int = 8,
    scale: int = 1,
    captions: Sequence[str] | None = None,
    padding: int = 2,
) -> Image.Image:
    """Rows of originals, each followed by the row of their reconstructions, which carry the captions.

    Raises:
        ValueError: the two differ in shape, or as in `grid`.
    """
    if originals.shape != reconstructions.shape:
        raise ValueError(f"got shapes {[*originals.shape]} and {[*reconstructions.shape]}; expected equal ones")
    captions = captions or [""] * len(originals)
    above = [(image, "") for image in _images(originals, scale)]
    below = list(zip(_images(reconstructions, scale), captions, strict=True))
    cells: list[_Cell] = []
    for start in range(0, len(above), max(columns, 1)):
        for row in (above[start : start + columns], below[start : start + columns]):
            cells += [*row, *[(None, "")] * (min(columns, len(above)) - len(row))]
    return _lay(cells, min(columns, len(above)), padding)


def strip(pictures: Tensor, scale: int = 1, captions: Sequence[str] | None = None, padding: int = 2) -> Image.Image:
    """All pictures, uint8 [N, C, H, W], side by side in one row."""
    return grid(pictures, max(len(pictures), 1), scale, captions, padding)


def curves(metrics_jsonl: Path, out: Path, keys: Sequence[str] | None = None) -> None:
    """Draw one panel a key over the steps of a `metrics.jsonl`; the suffix of `out` chooses png, svg or pdf.

    Each line of the file is an object with `step` and numbers; a step met twice counts as last written, a torn line is
    passed over. Keys default to every number met. Losses are drawn on a logarithmic scale where all are positive, with
    a moving mean over 5 % of the points.

    Raises:
        UserError: no such file, no line with a step and a number, or a key that no line holds.
    """
    from matplotlib.figure import Figure  # slow to import

    series = _series(metrics_jsonl)
    if unknown := [key for key in keys or () if key not in series]:
        raise UserError(f"{metrics_jsonl} holds no {unknown[0]!r}; known: {', '.join(series)}")
    keys = list(keys or series)
    across = min(len(keys), 3)
    rows = math.ceil(len(keys) / across)
    figure = Figure(figsize=(5 * across, 3.2 * rows), layout="constrained")
    for place, key in enumerate(keys, 1):
        _panel(figure.add_subplot(rows, across, place), key, series[key])
    buffer = io.BytesIO()
    figure.savefig(buffer, format=out.suffix.lstrip(".") or "png", dpi=120)
    _write_whole(out, buffer.getvalue())


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
    _write_whole(path, buffer.getvalue())


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


_Cell = tuple[Image.Image | None, str]


def _images(pictures: Tensor, scale: int) -> list[Image.Image]:
    """uint8 [N, C, H, W] -> RGB images, enlarged."""
    shape, kind = [*pictures.shape], str(pictures.dtype)
    if len(shape) != 4 or not len(pictures) or shape[1] not in _MODES or kind != "torch.uint8":
        raise ValueError(f"got {kind} {shape}; expected at least one picture, uint8 [N, 1 | 3 | 4, H, W]")
    if scale < 1:
        raise ValueError(f"scale must be a whole number of at least 1, got {scale}")
    arrays = pictures.detach().cpu().permute(0, 2, 3, 1).numpy().repeat(scale, 1).repeat(scale, 2)
    return [_on_white(Image.fromarray(a[..., 0] if a.shape[-1] == 1 else np.ascontiguousarray(a))) for a in arrays]


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _lay(cells: Sequence[_Cell], columns: int, padding: int) -> Image.Image:
    """Draw cells row by row; a row is as high as its pictures and its longest caption."""
    if columns < 1 or padding < 0:
        raise ValueError(f"expected at least 1 column and padding of 0 or more, got {columns} and {padding}")
    columns = min(columns, len(cells))
    wide, high = next(image.size for image, _ in cells if image is not None)
    cell = max(wide, _CAPTIONED_WIDTH) if any(text for _, text in cells) else wide
    wrapped = [(image, _wrap(text, cell)) for image, text in cells]
    rows = [wrapped[start : start + columns] for start in range(0, len(wrapped), columns)]
    heights = [high + _LINE_HEIGHT * max(len(lines) for _, lines in row) for row in rows]
    size = (columns * (cell + padding) + padding, sum(heights) + padding * (len(rows) + 1))
    canvas, top = Image.new("RGB", size, "white"), padding
    for row, height in zip(rows, heights, strict=True):
        for column, (image, lines) in enumerate(row):
            _draw(canvas, image, lines, (padding + column * (cell + padding), top), cell)
        top += height + padding
    return canvas


def _draw(canvas: Image.Image, image: Image.Image | None, lines: list[str], corner: tuple[int, int], wide: int) -> None:
    if image is None:
        return
    left, top = corner
    canvas.paste(image, (left + (wide - image.width) // 2, top))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(_TEXT_SIZE)
    for number, line in enumerate(lines):
        place = (left + wide / 2, top + image.height + number * _LINE_HEIGHT + 1)
        pen.text(place, line, fill="black", font=font, anchor="ma")


def _wrap(text: str, width: int) -> list[str]:
    """Break a caption into at most three lines of `width` pixels; what is left out shows as an ellipsis."""
    font = ImageFont.load_default(_TEXT_SIZE)
    words = "".join(c if c.isprintable() else " " for c in text[:300]).split()
    lines: list[str] = []
    while words and len(lines) < _LINES:
        fits = next((n for n in range(len(words), 0, -1) if font.getlength(" ".join(words[:n])) <= width), 0)
        lines.append(" ".join(words[:fits]) if fits else _cut(words[0], width, font))
        words = words[fits:] if fits else [words[0][len(lines[-1]) :], *words[1:]]
    if words:
        lines[-1] = _cut(lines[-1], width - font.getlength("..."), font).rstrip() + "..."
    return lines


def _cut(text: str, width: float, font: Any) -> str:
    """The longest beginning of a text that fits, of one character at least."""
    return text[: max(1, next(n for n in range(len(text), -1, -1) if font.getlength(text[:n]) <= width or not n))]


def _series(path: Path) -> dict[str, dict[float, float]]:
    """Key -> step -> value of every number beside `step` in a metrics.jsonl."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the metrics {path}: {error.strerror}") from None
    found: dict[str, dict[float, float]] = {}
    for entry in map(_object, lines):
        numbers = {key: value for key, value in entry.items() if isinstance(value, int | float)}
        step = numbers.pop("step", None)
        for key, value in numbers.items() if step is not None else ():
            found.setdefault(key, {})[step] = value
    if not found:
        raise UserError(f"{path} holds no line such as " + '{"step": 10, "loss": 0.5}')
    return found


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _panel(axes: Any, key: str, points: Mapping[float, float]) -> None:
    steps = np.array(sorted(points), dtype=float)
    values = np.array([points[step] for step in steps], dtype=float)
    window = len(values) // 20
    axes.plot(steps, values, color="C0", alpha=0.35 if window > 1 else 1.0, linewidth=1, marker="." * (len(steps) == 1))
    if window > 1:
        mean = np.convolve(values, np.full(window, 1 / window), "valid")
        axes.plot(steps[window - 1 :], mean, color="C0", linewidth=1.5)
    if "loss" in key and (values > 0).all():
        axes.set_yscale("log")
    axes.set_title(key, parse_math=False)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)


def _write_whole(path: Path, content: bytes) -> None:
    """Write beside and rename, so that a file under its final name is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
