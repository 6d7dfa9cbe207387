"""Tar shards in the layout of webdataset: members that share a name up to its first dot are one sample.

A sample is a picture with, if there are any, a caption (.txt), a class (.cls) and a .json with text (or caption),
label and further values. Nothing is ever extracted, and only plain files are read: members that are links or devices,
lead outside, are far too large or cut off are counted and named as bad pictures are.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

from pydantic import Field

from ldm_kit.config import UserError
from ldm_kit.data import archives
from ldm_kit.data.archives import Offer, PackedConfig
from ldm_kit.data.folder_index import Entry, as_text
from ldm_kit.data.image_files import SUFFIXES
from ldm_kit.data.images import Split

PICTURE_LIMIT = 256 * 2**20  # bytes of a picture's file
TEXT_LIMIT = 2**20  # bytes of a caption, class or .json
MEMBER_LIMIT = 2_000_000  # members of one shard
HEADER_LIMIT = 2**20  # bytes of a long name, or of another extended header
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_KINDS = {suffix[1:] for suffix in SUFFIXES}
_TOLD = {"text", "caption", "label"}

Span = tuple[int, int]  # offset in the shard, bytes
Groups = dict[str, dict[str, Span]]  # key -> kind of member -> where


class WebDatasetConfig(PackedConfig):
    """Tar shards of pictures."""

    source: Literal["webdataset"] = Field(default="webdataset", description="which data: tar shards")


@dataclass(frozen=True)
class TarReader:
    """Reads samples out of plain tar files; `fields` are the values of a .json to keep."""

    fields: Sequence[str] = ()

    @property
    def key(self) -> Sequence[str]:
        """What an index depends on beside the file."""
        return ["tar", *self.fields]

    def scan(self, path: Path) -> Iterator[Offer | str]:
        """Every sample in the order of the shard, and a complaint for each member that cannot be used."""
        groups, bad = members(path)
        yield from bad
        with path.open("rb") as file:
            for key, kinds in groups.items():
                kind = next((kind for kind in kinds if kind in _KINDS), None)
                if kind is None:
                    yield f"{key!r:.120}: has no picture, only {', '.join(sorted(kinds)):.60}"
                    continue
                try:
                    entry = self._entry(f"{key}.{kind}", _told(file, kinds))
                except (ValueError, RecursionError) as error:
                    yield f"{key!r:.120}: its text cannot be read ({error!s:.120})"
                else:
                    yield Offer(entry, kinds[kind], _bytes(file, kinds[kind]))

    def _entry(self, name: str, told: Mapping[str, Any]) -> Entry:
        text, label = told.get("text") or told.get("caption") or "", told.get("label")
        if not isinstance(text, str) or not isinstance(label, str | int | None):
            raise ValueError("text or label is neither text nor a number")
        fields = {field: as_text(told[field]) for field in self.fields if field in told}
        return Entry(name, text, None if label is None else str(label), fields)

    def read(self, path: Path, place: Span) -> bytes:
        """The picture's file at a place that `scan` told."""
        with path.open("rb") as file:
            return _bytes(file, place)


def load(config: WebDatasetConfig) -> Split:
    """Train and heldout parts of tar shards.

    Raises:
        UserError: no shards, a file that is no plain tar, nothing usable, or more bad pictures than allowed.
    """
    return archives.load(config, TarReader(config.fields), ".tar")


def members(path: Path) -> tuple[Groups, list[str]]:
    """Where the members of a tar lie, by sample and kind, and complaints about those that are refused.

    Raises:
        UserError: the file is no plain tar, or has too many members.
    """
    groups: Groups = {}
    bad: list[str] = []
    with path.open("rb") as file:
        end = file.seek(0, io.SEEK_END)
        file.seek(0)
        try:
            for number, member in enumerate(_walk(file)):
                if number >= MEMBER_LIMIT:
                    raise UserError(f"{path} has more than {MEMBER_LIMIT:,} members; split it into smaller shards")
                if complaint := _sort(member, end, groups):
                    bad.append(f"{member.name!r:.120}: {complaint}")
        except tarfile.TarError as error:
            if not groups and not bad:
                raise UserError(
                    f"{path} is no plain tar file ({error}); compressed ones must be unpacked to .tar first, so that "
                    "any picture can be read at random"
                ) from None
            bad.append(f"the shard is damaged or cut off ({error})")
    return groups, bad


class _Capped(io.RawIOBase):
    """A file whose reads are small: of a tar only headers are read here, whatever size they claim to have."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= HEADER_LIMIT:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def _walk(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The members of a tar; raises tarfile.TarError where it is damaged or stops without its end mark."""
    with tarfile.open(fileobj=_Capped(file), mode="r:") as tar:
        yield from tar
        file.seek(tar.offset)
        rest = file.read(tarfile.BLOCKSIZE)
        if not rest or any(rest):
            raise tarfile.ReadError(f"no end mark at byte {tar.offset:,}")


def _sort(member: tarfile.TarInfo, end: int, groups: Groups) -> str | None:
    """Put a member where it belongs, or say why it is refused; folders, hidden files and the nameless are left out."""
    if complaint := _refused(member, end):
        return complaint
    match = _NAME.fullmatch(member.name)
    if member.isdir() or match is None:
        return None
    kind = match[2].lower()
    if member.size > (PICTURE_LIMIT if kind in _KINDS else TEXT_LIMIT) and kind in {*_KINDS, "txt", "cls", "json"}:
        return f"has {member.size:,} bytes, more than any picture or text needs"
    kinds = groups.setdefault(match[1], {})
    if kind in kinds:
        return "comes a second time"
    kinds[kind] = (member.offset_data, member.size)
    return None


def _refused(member: tarfile.TarInfo, end: int) -> str | None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\0" in member.name:
        return "leads outside; expected a relative name without .."
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        return "is a link, a device or a sparse file; expected a plain one"
    return "is cut off by the end of the shard" if member.offset_data + member.size > end else None


def _told(file: BinaryIO, kinds: Mapping[str, Span]) -> dict[str, Any]:
    """Text, label and further values of a sample; raises ValueError for what is no UTF-8 or JSON."""
    told = json.loads(_bytes(file, kinds["json"])) if "json" in kinds else {}
    if not isinstance(told, dict):
        raise ValueError(f"its .json holds a {type(told).__name__}, expected an object")
    for kind, name in (("txt", "text"), ("cls", "label")):
        if kind in kinds:
            told[name] = _bytes(file, kinds[kind]).decode().strip()
    return told


def _bytes(file: BinaryIO, place: Span) -> bytes:
    file.seek(place[0])
    return file.read(place[1])
