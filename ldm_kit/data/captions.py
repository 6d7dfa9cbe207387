"""Captions of pictures: a text, or several of which training draws one; and caption files beside pictures.

Caption files are `0.txt` or `0.caption` beside `0.png`, as kohya's scripts and img2dataset write them. The class of a
picture may be in `0.cls`; caption and class may also be in a JSON object, `0.json`, as in tar shards.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

TEXT_KINDS = ("caption", "txt")
KINDS = frozenset({*TEXT_KINDS, "cls", "json"})
LIMIT = 2**20  # most bytes of a caption file


class Captions(NamedTuple):
    """The captions of a picture."""

    text: str = ""  # the first; "" if there is none
    others: tuple[str, ...] = ()  # further ones

    @classmethod
    def of(cls, value: object) -> "Captions":
        """Return the captions in a metadata value: a text, a list of texts (empty ones are left out), or None.

        Raises:
            ValueError: the value is something else.
        """
        texts = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{value!r:.60}; expected a text, or a list of texts")
        return cls.several([str(text) for text in texts])

    @classmethod
    def several(cls, texts: Sequence[str]) -> "Captions":
        """Return a list of texts as captions; empty ones are left out."""
        first, *others = [text for text in texts if text] or [""]
        return cls(first, tuple(others))


class Sidecar(NamedTuple):
    """Caption and class of a picture, read from the caption files beside it, such as `0.txt` beside `0.png`."""

    text: str = ""  # caption; "" if there is none
    label: str | None = None  # class name; None if there is none
    problem: str = ""  # why the files cannot be read; "" if they can
    others: tuple[str, ...] = ()  # further captions


def read_sidecar(root: Path, stem: str, kinds: Sequence[str], lines: bool = False) -> Sidecar:
    """Read a picture's caption and class from the files beside it that share its name, such as `0.txt` beside `0.png`.

    If a file cannot be read, the result has no caption and no class, and says why in `problem`.

    Args:
        root: the data set's folder.
        stem: the picture's path relative to `root`, without the picture's suffix.
        kinds: suffixes, without dot, of the files to read; each is caption, txt, cls or json in upper or lower case.
        lines: whether each line of a caption file is a caption.
    """
    try:
        contents = {kind.lower(): _read(root, f"{stem}.{kind}") for kind in kinds}
        return _sidecar(contents, lines)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"{error!s:.120}"
        return Sidecar(problem=f"its caption file (.{', .'.join(sorted(kinds))}) cannot be read ({reason})")


def _read(root: Path, name: str) -> str:
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ValueError("a link that leads outside the folder")
    if path.stat().st_size > LIMIT:
        raise ValueError(f"has {path.stat().st_size:,} bytes, more than any caption needs")
    return path.read_text(encoding="utf-8-sig").strip()


def _sidecar(contents: Mapping[str, str], lines: bool) -> Sidecar:
    values: Any = json.loads(contents["json"]) if "json" in contents else {}
    values = values if isinstance(values, dict) else {}  # another tool's: boxes, points
    texts = [in_lines(contents.get(kind, ""), lines) for kind in TEXT_KINDS]
    texts += [_captions(values.get(key)) for key in ("text", "caption")]
    labels = [contents.get("cls"), values.get("label")]
    text, others = next((captions for captions in texts if captions.text), Captions())
    label = next((label for label in labels if isinstance(label, str | int) and label != ""), None)
    return Sidecar(text, None if label is None else str(label), others=others)


def in_lines(text: str, lines: bool) -> Captions:
    """Return the contents of a caption file as captions: one for each line if `lines`, else a single one."""
    return Captions.several([line.strip() for line in text.splitlines()]) if lines else Captions(text)


def _captions(value: object) -> Captions:
    try:
        return Captions.of(value)
    except ValueError:
        return Captions()  # another tool's
