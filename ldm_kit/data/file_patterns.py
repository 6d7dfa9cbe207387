"""Find the files that a path names: all files of a folder, the files of a pattern with braces, or a single file."""

import re
from pathlib import Path

from ldm_kit.config import UserError
from ldm_kit.data.folder_index import resolve_inside
from ldm_kit.data.image_files import BadPicture

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_FILES = 100_000  # most files that one pattern may name


def find_files(path: Path, suffix: str) -> dict[str, Path]:
    """Return the files that `path` names, sorted, as {path relative to the folder that holds them: path}.

    Args:
        path: a folder (with its sub-folders), a pattern such as `a-{00..12}.tar` or `{a,b}.tar`, or one file.
        suffix: suffix, such as `.tar`, of the files to take from a folder.

    Raises:
        UserError: there is no such file, a file of the pattern is missing, a link leads out of the folder, or the
            pattern is not valid.
    """
    if path.is_dir():
        names = sorted(p.relative_to(path).as_posix() for p in path.rglob(f"*{suffix}"))
        files = {name: _inside(path, name) for name in names if not name.startswith(".") and "/." not in name}
    elif "{" in str(path):
        root = Path(str(path).partition("{")[0] + "x").parent
        files = {p.relative_to(root).as_posix(): p for p in map(Path, sorted(_expand(str(path))))}
    else:
        files = {path.name: path}
    if missing := [file for file in files.values() if not file.is_file()]:
        raise UserError(
            f"{missing[0]} is no such file; expected a folder of {suffix} files, one, or a pattern a{{0..9}}"
        )
    if not files:
        raise UserError(f"{path} holds no {suffix} files")
    return files


def _inside(root: Path, name: str) -> Path:
    try:
        return resolve_inside(root, name)
    except BadPicture as error:
        raise UserError(
            f"{root}: {error}; give the folder that it leads to as path, or name the files in a pattern"
        ) from None


def _expand(pattern: str) -> list[str]:
    """Return all strings that a pattern stands for, with each `{00..12}` and `{a,b}` in it expanded."""
    texts = [pattern]
    while brace := _BRACES.search(texts[0]):
        span = _RANGE.fullmatch(brace[1])
        if span and int(span[2]) - int(span[1]) < _MAX_FILES:
            options = [f"{number:0{len(span[1])}d}" for number in range(int(span[1]), int(span[2]) + 1)]
        else:
            options = brace[1].split(",")
        if len(texts) * len(options) > _MAX_FILES or not options:
            raise UserError(f"the pattern {pattern} stands for none, or for more than {_MAX_FILES:,} files")
        texts = [text.replace(brace[0], option, 1) for text in texts for option in options]
    return texts
