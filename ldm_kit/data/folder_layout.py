"""What the sub-folders of a folder of pictures mean, if it has no metadata.jsonl: splits, classes, or nothing.

A class folder may be named as in kohya's training scripts: in `10_dog`, each picture is of class dog and counts 10
times in training.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from ldm_kit.config import UserError
from ldm_kit.data.splits import Role, common_depth, folder_role, picture_roles

Layout = Literal["auto", "classes", "repeats", "plain"]
CLASSES = "say data.layout: classes"  # advice in messages: how to read folders of any names as classes
_REPEATS = re.compile(r"(\d+)_(.+)", re.DOTALL)
_PLAIN = {"images", "image", "imgs", "img", "pictures", "photos", "data"}  # a lone folder of such a name is no class
_log = logging.getLogger("ldm_kit.data")


class FolderMeaning(NamedTuple):
    """Split, class and caption of a picture as the names of its folders give them."""

    role: Role | None = None  # split that the folders name: train, val or test
    label: str | None = None  # class name
    text: str = ""  # caption, unless a file beside the picture has another


def folder_meanings(
    root: Path, names: Sequence[str], layout: Layout, captioned: frozenset[str] = frozenset()
) -> list[FolderMeaning]:
    """Return split, class and caption that the folders of each picture give by their names, in the order of `names`.

    Args:
        root: the folder, for messages.
        names: paths of the pictures, and of linked folders (ending in a slash), relative to the folder.
        layout: what sub-folders mean. classes: a folder is a class; repeats: kohya's folders, such as `10_dog`; plain:
            nothing; auto: their names decide.
        captioned: those of `names` whose picture has a caption file beside it.

    Raises:
        UserError: pictures lie beside sub-folders, folders named as splits lie beside folders of other names,
            or (layout: repeats) a folder is not named as kohya's `10_dog`.
    """
    if layout == "plain":
        return [FolderMeaning()] * len(names)
    named = picture_roles(names, root, CLASSES) if layout == "auto" else None
    if named is None:
        return _labelled(root, names, layout, [name in captioned for name in names])
    result = [FolderMeaning()] * len(names)
    for role in sorted(set(named.roles)):
        rows = [i for i, own in enumerate(named.roles) if own == role]
        below = _labelled(root, [named.names[i] for i in rows], layout, [names[i] in captioned for i in rows])
        for i, meaning in zip(rows, below, strict=True):
            result[i] = meaning._replace(role=role)
    return result


def _labelled(root: Path, names: Sequence[str], layout: Layout, captioned: Sequence[bool]) -> list[FolderMeaning]:
    """Return class and caption that each picture's class folder gives; both are empty where folders are no classes.

    Args:
        root: the folder, for messages.
        names: paths of the pictures relative to the folder, without a folder that names their split (train, val, test).
        layout: classes: the first folder is the class; repeats: it is one of kohya's, such as `10_dog` of class dog;
            auto: the folders' names decide whether they are classes or kohya's, and on which level they lie.
        captioned: for each of `names`, whether the picture has a caption file beside it.

    Raises:
        UserError: pictures lie beside sub-folders, or (layout: repeats) a folder is not named as kohya's are.
    """
    if not any("/" in name for name in names):
        return [FolderMeaning()] * len(names)
    if plain := next((name for name in names if "/" not in name), None):
        nested = next(name for name in names if "/" in name)
        raise UserError(
            f"{root} mixes images at its top ({plain}, ...) with class folders ({nested}, ...); use one layout, or say "
            "data.layout: plain where sub-folders mean nothing"
        )
    level = 0 if layout == "classes" else _class_level(names)
    if level is None:
        return [FolderMeaning()] * len(names)
    folders = [name.split("/")[level] for name in names]
    if _are_repeats(root, folders, layout, captioned):
        return [_repeated(folder) for folder in folders]
    _warn_of_deeper(root, names, level)
    return [FolderMeaning(label=folder, text=_caption(folder)) for folder in folders]


def _class_level(names: Sequence[str]) -> int | None:
    """Return the position (from 0) of the class folder in the pictures' paths; None if folders are no classes.

    The class folder is the first folder in which the paths differ. If some pictures lie directly in the folder that is
    common to all, the class folder is the one at position 0. Pictures that all lie in one folder, named like `images`
    or like a split, have no class folder.
    """
    folders = {name.rpartition("/")[0] for name in names}
    paths = [folder.split("/") for folder in folders]
    depth = common_depth(paths)
    if depth < min(map(len, paths)):
        return depth
    name = paths[0][0]
    return None if len(paths) == 1 and depth == 1 and (name.lower() in _PLAIN or folder_role(name)) else 0


def _are_repeats(root: Path, folders: Sequence[str], layout: Layout, captioned: Sequence[bool]) -> bool:
    """Return whether all class folders are named as kohya's `10_dog` (class dog, each picture counted 10 times).

    With layout auto, names that look like a numbered list of classes (`0_cat`, `1_dog`) are kohya's only if some
    picture has a caption file. `folders` holds the class folder of each picture; `captioned`, whether the picture has a
    caption file. `root`, the folder of all pictures, is for messages.

    Raises:
        UserError: the layout is repeats, and some folder is not named like `10_dog`.
    """
    if layout == "classes":
        return False
    kinds = set(folders)
    matches = [_REPEATS.fullmatch(folder) for folder in kinds]
    if not all(matches):
        if layout == "repeats":
            wrong = next(folder for folder in sorted(kinds) if not _REPEATS.fullmatch(folder))
            raise UserError(f"data.layout is repeats, but {root} holds the folder {wrong}; expected names as 10_cat")
        return False
    numbers = [match[1] for match in matches if match]
    listed = [int(number) for number in sorted(numbers, key=int)]
    is_list = any(number.startswith("0") for number in numbers) or listed == list(
        range(listed[0], listed[0] + max(2, len(listed)))
    )
    if is_list and not any(captioned) and layout == "auto":
        return False
    _log.warning(
        "%s: folders such as %s are read as kohya's, their numbers as repeats; say data.layout: classes if they are "
        "names of classes",
        *(root, min(kinds)),
    )
    return True


def _repeated(folder: str) -> FolderMeaning:
    match = _REPEATS.fullmatch(folder)
    assert match is not None
    return FolderMeaning(label=match[2], text=_caption(match[2]))


def _warn_of_deeper(root: Path, names: Sequence[str], level: int) -> None:
    """Warn that sub-folders of class folders are ignored, if each class folder holds several and no picture itself.

    `level` is the position of the class folder in the pictures' paths `names`, counted from 0. `root`, the folder of
    all pictures, is for the message.
    """
    below: dict[str, set[str]] = {}
    for name in names:
        path = name.split("/")
        below.setdefault(path[level], set()).add("/".join(path[level + 1 : level + 2]) if len(path) > level + 2 else "")
    if all(len(folders) > 1 and "" not in folders for folders in below.values()):
        first = min(below)
        _log.warning(
            "%s: the classes are the folders %s; folders within them, such as %s/%s, mean nothing",
            *(root, ", ".join(sorted(below)[:3]) + (", ..." if len(below) > 3 else ""), first, min(below[first])),
        )


def _caption(folder: str) -> str:
    return folder.replace("_", " ").replace("-", " ")
