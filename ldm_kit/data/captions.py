"""Caption files beside pictures: `0.txt` or `0.caption` beside `0.png`, as kohya's scripts and img2dataset write them.

The class of a picture may be in `0.cls`; caption and class may also be in a JSON object, `0.json`, as in tar shards.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

TEXT_KINDS = ("caption", "txt")
KINDS = frozenset({*TEXT_KINDS, "cls", "json"})
LIMIT = 2**20  # most bytes of a caption file


class Sidecar(NamedTuple):
    """Caption and class of a picture, read from the caption files beside it, such as `0.txt` beside `0.png`."""

    text: str = ""  # caption; "" if there is none
    label: str | None = None  # class name; None if there is none
    problem: str = ""  # why the files cannot be read; "" if they can


def read_sidecar(root: Path, stem: str, kinds: Sequence[str]) -> Sidecar:
    """Read a picture's caption and class from the files beside it that share its name, such as `0.txt` beside `0.png`.

    If a file cannot be read, the result has no caption and no class, and says why in `problem`.

    Args:
        root: the data set's folder.
        stem: the picture's path relative to `root`, without the picture's suffix.
        kinds: suffixes, without dot, of the files to read; each is caption, txt, cls or json in upper or lower case.
    """
    try:
        contents = {kind.lower(): _read(root, f"{stem}.{kind}") for kind in kinds}
        return _sidecar(contents)
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


def _sidecar(contents: Mapping[str, str]) -> Sidecar:
    values: Any = json.loads(contents["json"]) if "json" in contents else {}
    values = values if isinstance(values, dict) else {}  # another tool's: boxes, points
    texts = [contents.get("caption"), contents.get("txt"), values.get("text"), values.get("caption")]
    labels = [contents.get("cls"), values.get("label")]
    text = next((text for text in texts if isinstance(text, str) and text), "")
    label = next((label for label in labels if isinstance(label, str | int) and label != ""), None)
    return Sidecar(text, None if label is None else str(label))
