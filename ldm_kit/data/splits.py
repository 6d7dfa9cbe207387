"""Splits that a data set's folders and files name themselves: train, val and test, as other tools call them.

A set whose folders (or shards) are all named so is split by those names. Validation pictures are held out, or the test
pictures where there are none; the test pictures are left out where there are both.
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
ONE_SET = "say data.named_splits: false"  # how to read archives of any names as one set
_log = logging.getLogger("ldm_kit.data")


def folder_role(name: str) -> Role | None:
    """Return the role in a split that a folder's name stands for, such as "val" for `val2017`; None if for none."""
    match = _FOLDER.fullmatch(name)
    return _ROLES[match[1].lower()] if match else None


def file_role(name: str) -> Role | None:
    """Return the role that a shard has by one of its folders or by its name, as `data/test-00.tar`; None if none."""
    path = PurePosixPath(name)
    for folder in path.parts[:-1]:
        if (role := folder_role(folder)) is not None:
            return role
    match = _FILE.fullmatch(path.stem)
    return _ROLES[match[1].lower()] if match else None


class PictureRoles(NamedTuple):
    """The role of each of N pictures in a split, and its path without the folder that names it."""

    roles: list[Role]
    names: list[str]


def picture_roles(names: Sequence[str], source: object, remedy: str) -> PictureRoles | None:
    """Return the roles of pictures by the folders that they lie in: `train/cat/0.png`, or `cat/train/0.png`.

    Args:
        names: relative posix paths of the pictures.
        source: what the message calls the set.
        remedy: what the message says of how to read all of them otherwise.

    Returns:
        None where the folders name no splits.

    Raises:
        UserError: some folders beside each other name splits and others do not.
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
    """Return how many folders all of some paths begin with."""
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
    """Return the error that a set's splits lie beside what belongs to none of them."""
    return UserError(
        f"{source} holds splits ({', '.join(sorted(words))}) beside others ({_some(others)}); move those into a split, "
        f"or {remedy}"
    )


def check_training_role(roles: Iterable[Role | None], source: object, remedy: str) -> None:
    """Check that a set with named splits has pictures to train on.

    Raises:
        UserError: it has val or test pictures alone.
    """
    present: set[Role] = {role for role in roles if role is not None}
    if present and "train" not in present:
        raise UserError(
            f"{source} holds {' and '.join(sorted(present))} pictures, but none named train; {remedy}, or point "
            "data.path at those to train on"
        )


def named_files(names: Iterable[str], source: object) -> dict[str, Role | None]:
    """Return the files to read, with the role in a split that each one's name stands for (None: of none).

    Raises:
        UserError: some are named as splits and others are not, or none holds training pictures.
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
    """Return the role of each sample of archives, by the folders that they have within those; None for all: no splits.

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
    """Return the role that is neither trained on nor held out, and log a line on what the names were taken for."""
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
    """Split a set into training and held-out pictures by its named roles, or by `heldout_split` where it has none.

    Held-out pictures of a class without training pictures are left out, and those without a label where all training
    pictures have one: no model of the training pictures knows them.

    Args:
        pictures: the whole set.
        roles: of each picture, those that are left out too; None for all where the set names no splits.
        share: about which share to hold out where nothing else is, in [0, 1).
        source: what messages call the set.

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
    """Return a split whose training pictures come several times in an epoch if they lie in kohya's folders, N_class.

    Only the ratio of repeats matters to an epoch, which has no other meaning here: they are divided by what they share.
    """
    classes, records = split.train.classes, split.train.records
    pairs = zip(names_of(records), labels_of(records), strict=True)
    counts = [1 if label is None else _repeats(name, classes[label]) for name, label in pairs]
    divisor = math.gcd(*counts)
    indices = [i for i, count in enumerate(counts) for _ in range(count // divisor)]
    return split if len(indices) == len(counts) else split._replace(train=subset(split.train, indices))


@lru_cache(maxsize=4096)
def _folder_repeats(folder: str, label: str) -> int:
    """Return N where one of a picture's folders is named N_label, else 1; `folder` is a relative path."""
    numbers = [name.removesuffix(f"_{label}") for name in folder.split("/") if name.endswith(f"_{label}")]
    return next((max(1, int(number)) for number in numbers if number.isdecimal()), 1)


def _repeats(name: str, label: str) -> int:
    return _folder_repeats(name.rpartition("/")[0], label)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
