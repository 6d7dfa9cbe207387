"""Which files a path stands for: those of a folder, of a pattern with braces, or a single one."""

import re
from pathlib import Path

from ldm_kit.config import UserError
from ldm_kit.data.folder_index import inside
from ldm_kit.data.image_files import BadPicture

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 100_000  # files of one pattern


def find_files(path: Path, suffix: str) -> dict[str, Path]:
    """Files by name, sorted: those of a folder (with what lies below), of a pattern with braces, or a single one.

    Raises:
        UserError: none there, one of a pattern missing, a link that leads out of the folder, or no pattern.
    """
    if path.is_dir():
        names = sorted(p.relative_to(path).as_posix() for p in path.rglob(f"*{suffix}"))
        found = {name: _inside(path, name) for name in names if not name.startswith(".") and "/." not in name}
    elif "{" in str(path):
        root = Path(str(path).partition("{")[0] + "x").parent
        found = {p.relative_to(root).as_posix(): p for p in map(Path, sorted(_expanded(str(path))))}
    else:
        found = {path.name: path}
    if lost := [file for file in found.values() if not file.is_file()]:
        raise UserError(f"{lost[0]} is no such file; expected a folder of {suffix} files, one, or a pattern a{{0..9}}")
    if not found:
        raise UserError(f"{path} holds no {suffix} files")
    return found


def _inside(root: Path, name: str) -> Path:
    try:
        return inside(root, name)
    except BadPicture as error:
        raise UserError(
            f"{root}: {error}; give the folder that it leads to as path, or name the files in a pattern"
        ) from None


def _expanded(pattern: str) -> list[str]:
    """A pattern with `{00..12}` or `{a,b}` in it -> every text it stands for."""
    texts = [pattern]
    while brace := _BRACES.search(texts[0]):
        span = _RANGE.fullmatch(brace[1])
        if span and int(span[2]) - int(span[1]) < _MOST:
            options = [f"{number:0{len(span[1])}d}" for number in range(int(span[1]), int(span[2]) + 1)]
        else:
            options = brace[1].split(",")
        if len(texts) * len(options) > _MOST or not options:
            raise UserError(f"the pattern {pattern} stands for none, or for more than {_MOST:,} files")
        texts = [text.replace(brace[0], option, 1) for text in texts for option in options]
    return texts
