"""Named splits: data sets whose folders or files are named train, val and test, or by common variants of these names.

A set whose folders (or shards) are all named so is split by these names. Validation pictures are held out; if there are
none, test pictures are. If there are both, test pictures are left out.
"""

import logging
import math
import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from ldm_kit.config import UserError
from ldm_kit.data.images import PictureSet, Split, heldout_split, subset
from ldm_kit.data.records import labels_of, names_of

Role = Literal["train", "val", "test"]
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("training", "train"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "val"),
    **dict.fromkeys(("testing", "test"), "test"),
}
_WORD = "|".join(_ROLES)
_FOLDER = re.compile(rf"(?:(?:images?|imgs?)[-_. ]?)?({_WORD})(?:[-_. ]?(?:set|split|images?|imgs?|data|\d+))?", re.I)
_FILE = re.compile(rf"(?:.*[-_.])?({_WORD})(?:[-_.\d].*)?", re.I)
ONE_SET = "say data.named_splits: false"  # advice in messages: how to read archives of any names as one set
_log = logging.getLogger("ldm_kit.data")


def folder_role(name: str) -> Role | None:
    """Return the split that a folder's name stands for, such as "val" for `val2017`; None if it stands for none."""
    match = _FOLDER.fullmatch(name)
    return _ROLES[match[1].lower()] if match else None


def file_role(name: str) -> Role | None:
    """Return the split (train, val, test) that a folder or file in an archive's path names; None if none does."""
    path = PurePosixPath(name)
    for folder in path.parts[:-1]:
        if (role := folder_role(folder)) is not None:
            return role
    match = _FILE.fullmatch(path.stem)
    return _ROLES[match[1].lower()] if match else None


class PictureRoles(NamedTuple):
    """Splits of N pictures that lie in folders named as splits, such as `train/cat/0.png`."""

    roles: list[Role]  # split of each picture: train, val or test
    names: list[str]  # path of each picture without the folder that names the split, such as `cat/0.png`


def picture_roles(names: Sequence[str], source: object, remedy: str) -> PictureRoles | None:
    """Return the split of each picture by the folders it lies in, such as `train/cat/0.png` or `cat/train/0.png`.

    Args:
        names: relative posix paths of the pictures.
        source: name of the data set, for the message.
        remedy: advice for the message: how to read the data set without named splits.

    Returns:
        Splits, and `names` without the folders that name splits; None if folders name fewer than two splits.

    Raises:
        UserError: of the folders at one level, some name splits and others do not.
    """
    folders = {name.rpartition("/")[0] for name in names}
    paths = [folder.split("/") if folder else [] for folder in folders]
    first = common_depth(paths)
    for level in (first, first + 1):
        words = {path[level] if level < len(path) else None for path in paths}
        roles = {role for role in map(folder_role, filter(None, words)) if role}
        others = sorted(word or "pictures" for word in words if word is None or folder_role(word) is None)
        if len(roles) < 2 or (level > first and ("train" not in roles or others)):
            continue
        if others:
            raise mixed(source, [word for word in words if word and folder_role(word)], others, remedy)
        return PictureRoles(*_at_level(names, level))
    return None


def common_depth(folders: Sequence[list[str]]) -> int:
    """Return how many leading folders all paths in `folders`, each a list of folder names, have in common."""
    low, high = min(folders, default=[]), max(folders, default=[])
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def _at_level(names: Sequence[str], level: int) -> tuple[list[Role], list[str]]:
    roles: list[Role] = []
    rest: list[str] = []
    for name in names:
        path = name.split("/")
        role = folder_role(path.pop(level))
        assert role is not None
        roles.append(role)
        rest.append("/".join(path))
    return roles, rest


def mixed(source: object, words: Iterable[str], others: Sequence[str], remedy: str) -> UserError:
    """Return the error that some folders or files of the data set `source` are named as splits, and others are not.

    `words` are the names of splits, `others` the other names. `remedy` is advice for the message: how to read the data
    set without named splits.
    """
    return UserError(
        f"{source} holds splits ({', '.join(sorted(words))}) beside others ({_some(others)}); move those into a split, "
        f"or {remedy}"
    )


def check_training_role(roles: Iterable[Role | None], source: object, remedy: str) -> None:
    """Check that a data set with named splits has a training split.

    Args:
        roles: the split of each picture or file; None where no split is named.
        source: name of the data set, for the message.
        remedy: advice for the message: how to read the data set without named splits.

    Raises:
        UserError: the data set has only val or test pictures.
    """
    present: set[Role] = {role for role in roles if role is not None}
    if present and "train" not in present:
        raise UserError(
            f"{source} holds {' and '.join(sorted(present))} pictures, but none named train; {remedy}, or point "
            "data.path at those to train on"
        )


def named_files(names: Iterable[str], source: object) -> dict[str, Role | None]:
    """Map the name of each archive to the split (train, val, test) that the name stands for.

    All splits are None if the names stand for fewer than two splits. Archives of an unused split (test where there is
    val) are left out. `source` is the name of the data set, for messages.

    Raises:
        UserError: some files are named as splits and others are not, or no file holds training pictures.
    """
    roles: dict[str, Role | None] = {name: file_role(name) for name in names}
    present: set[Role] = {role for role in roles.values() if role is not None}
    if len(present) < 2:
        return dict.fromkeys(roles)
    if others := [name for name, role in roles.items() if role is None]:
        raise mixed(source, present, others, ONE_SET)
    check_training_role(present, source, ONE_SET)
    unused = unused_role(present, source)
    return {name: role for name, role in roles.items() if role != unused}


def named_members(names: Sequence[str], source: object) -> list[Role | None]:
    """Return the split of each picture in archives by the folders in its name; all None if these name no splits.

    `names` are the pictures' names in the archives; `source` is the name of the data set, for messages.

    Raises:
        UserError: some folders are named as splits and others are not, or none holds training pictures.
    """
    named = picture_roles(names, source, ONE_SET)
    if named is None:
        return [None] * len(names)
    check_training_role(named.roles, source, ONE_SET)
    unused_role(named.roles, source)
    return [*named.roles]


def unused_role(roles: Iterable[Role | None], source: object) -> Role | None:
    """Return the split that is left out ("test" if there is also "val"), or None; log how the named splits are used.

    `roles` holds the split of each picture or file; None where no split is named. `source` names the data set in logs.
    """
    present: set[Role] = {role for role in roles if role is not None}
    if present <= {"train"}:
        return None
    heldout = _heldout_role(present)
    unused = "test" if {"val", "test"} <= present else None
    _log.warning(
        "%s is split by its names: train is trained on, %s held out%s; data.heldout is not used",
        source,
        heldout,
        f" and {unused} left out" if unused else "",
    )
    return unused


def named_split(pictures: PictureSet, roles: Sequence[Role | None], share: float, source: object) -> Split:
    """Split a picture set into training and held-out pictures by named splits, or by a hash of names if there are none.

    If training pictures are labelled, a held-out picture is left out if no training picture has its class, or if it has
    no class and every training picture has one: no model can have learned it.

    Args:
        pictures: all pictures of the data set.
        roles: the split of each picture, including pictures to leave out; None for all where splits are not named.
        share: approximate share of pictures to hold out, in [0, 1), where named splits give no held-out pictures.
        source: name of the data set, for messages.

    Raises:
        UserError: no picture is left to train on.
    """
    present: set[Role | None] = {*roles}
    held = _heldout_role(present)
    train = [i for i, role in enumerate(roles) if role in (None, "train")]
    heldout = [i for i, role in enumerate(roles) if role == held]
    if not train:
        raise UserError(f"{source} has no usable picture to train on: its {len(heldout)} usable ones are held out")
    labels = labels_of(pictures.records)
    trained = {labels[i] for i in train}
    used = [i for i in heldout if trained <= {None} or labels[i] in trained]
    if len(used) < len(heldout):
        _log.warning(
            "%d of %d held-out pictures in %s are of no class that is trained on, and are left out%s",
            *(
                len(heldout) - len(used),
                len(heldout),
                source,
                "" if used else "; data.heldout is held out instead",
            ),
        )
    if used:
        return Split(subset(pictures, train), subset(pictures, used), None)
    return heldout_split(pictures if len(train) == len(pictures) else subset(pictures, train), share, source)


def _heldout_role(roles: Collection[Role | None]) -> Role:
    return "val" if "val" in roles else "test"


def repeated(split: Split) -> Split:
    """Return a split in which the training pictures in kohya's folders are repeated: those in `10_dog` 10 times.

    A kohya folder's name is a number and the class of its pictures; pictures in other folders count once. The numbers
    are divided by their greatest common divisor, because only their ratio matters.
    """
    classes, records = split.train.classes, split.train.records
    pairs = zip(names_of(records), labels_of(records), strict=True)
    counts = [1 if label is None else _repeats(name, classes[label]) for name, label in pairs]
    divisor = math.gcd(*counts)
    indices = [i for i, count in enumerate(counts) for _ in range(count // divisor)]
    return split if len(indices) == len(counts) else split._replace(train=subset(split.train, indices))


@lru_cache(maxsize=4096)
def _folder_repeats(folder: str, label: str) -> int:
    """Return N (at least 1) if a folder in the path `folder` is named N_LABEL, where LABEL is `label`; else 1."""
    numbers = [name.removesuffix(f"_{label}") for name in folder.split("/") if name.endswith(f"_{label}")]
    return next((max(1, int(number)) for number in numbers if number.isdecimal()), 1)


def _repeats(name: str, label: str) -> int:
    return _folder_repeats(name.rpartition("/")[0], label)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
