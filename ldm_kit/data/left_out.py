"""Log messages about the files of a folder that are not read as pictures."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from ldm_kit.data.image_kinds import is_picture, package_for

SHOWN = 5  # most names in a message
_TEXTS = frozenset({".txt", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".md", ".yaml", ".yml", ".html", ".py"})
_log = logging.getLogger("ldm_kit.data")


def listed(names: Sequence[str]) -> str:
    """Return a text that lists the first SHOWN (5) names, and says how many more there are."""
    more = f", and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def log_unread(root: Path, names: Iterable[str]) -> None:
    """Log, for each suffix, how many files of a folder cannot be read as pictures; text files are not counted.

    Args:
        root: the folder.
        names: paths of all files in the folder but hidden ones.
    """
    suffixes = Counter(PurePosixPath(name).suffix.lower() for name in names if not is_picture(name))
    kinds = [(suffix, count) for suffix, count in suffixes.most_common() if suffix not in _TEXTS]
    if not kinds:
        return
    counted = listed([f"{count:,} {suffix or 'without a suffix'}" for suffix, count in kinds])
    packages = sorted({package for suffix, _ in kinds if (package := package_for(suffix)) is not None})
    advice = f" (install {' and '.join(packages)} for them)" if packages else ""
    total = sum(count for _, count in kinds)
    _log.warning("%s: %d files of kinds that are not read are left out: %s%s", root, total, counted, advice)


def log_unlisted(root: Path, table: str, pictures: Iterable[str], entries: Iterable[str]) -> None:
    """Log how many pictures of a folder are not listed in the folder's metadata file, and which.

    Args:
        root: the folder.
        table: name of the metadata file, metadata.jsonl.
        pictures: relative posix paths of all pictures in the folder.
        entries: relative posix paths of the pictures that the metadata file lists.
    """
    if unlisted := sorted(set(pictures) - set(entries)):
        _log.warning(
            "%s: %d pictures are not listed in %s and are left out: %s", root, len(unlisted), table, listed(unlisted)
        )
