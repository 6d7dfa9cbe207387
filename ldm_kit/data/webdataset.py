"""Tar shards in the layout of webdataset: files in a tar whose names are equal up to the first dot are one sample.

A sample is a picture with an optional caption (.txt), class (.cls), and .json with text (or caption), label and further
values. Nothing is ever extracted to disk, and only regular files are read. Members of a tar that are links or devices,
whose path leads outside, or that are far too large or truncated, are logged and counted as bad pictures.
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
from ldm_kit.data.archive_rows import ArchiveSample
from ldm_kit.data.archives import ArchiveConfig
from ldm_kit.data.captions import Captions, in_lines
from ldm_kit.data.image_kinds import SUFFIXES
from ldm_kit.data.images import Split
from ldm_kit.data.metadata import BAD_CAPTION, CAPTION_LINES, BadCaption, Entry, as_text

PICTURE_LIMIT = 256 * 2**20  # most bytes of a picture's file
TEXT_LIMIT = 2**20  # most bytes of a caption, class or .json file
MEMBER_LIMIT = 2_000_000  # most members (files, folders, links) of one shard
HEADER_LIMIT = 2**20  # most bytes of a long name, or of another extended header
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_IMAGE_KINDS = {suffix[1:] for suffix in SUFFIXES}

Span = tuple[int, int]  # offset in the shard, number of bytes
Samples = dict[str, dict[str, Span]]  # name up to the first dot -> suffix of a file -> the file's span in the shard


class WebDatasetConfig(ArchiveConfig):
    """Options of a data source that is a set of tar shards."""

    source: Literal["webdataset"] = Field(default="webdataset", description="which data: tar shards")
    on_bad_caption: BadCaption = BAD_CAPTION
    caption_lines: bool = CAPTION_LINES


@dataclass(frozen=True)
class TarReader:
    """Reader of the pictures, captions and classes in uncompressed tar files."""

    fields: Sequence[str] = ()  # names of the further values in a sample's .json file to keep
    on_bad_caption: BadCaption = "skip"  # skip: leave out a picture whose texts cannot be read; ignore: use none
    lines: bool = False  # whether each line of a .txt is a caption

    @property
    def key(self) -> Sequence[str]:
        """Texts for all settings: part of the key under which a tar's list of pictures is cached."""
        ignore = ["", "ignore"] if self.on_bad_caption == "ignore" else []
        return ["tar", *self.fields, *ignore, *(["", "lines"] if self.lines else [])]

    def scan(self, path: Path) -> Iterator[ArchiveSample | str]:
        """Yield a message for each file in the tar `path` that cannot be used, then each picture with its metadata.

        Pictures come in order. A message takes the place of a sample without a picture or, if `on_bad_caption` is
        "skip", with unreadable texts; else ("ignore") such a sample is a picture without texts.
        """
        samples, complaints = members(path)
        yield from complaints
        with path.open("rb") as file:
            for key, spans in samples.items():
                kind = next((kind for kind in spans if kind in _IMAGE_KINDS), None)
                if kind is None:
                    yield f"{key!r:.120}: has no picture, only {', '.join(sorted(spans)):.60}"
                    continue
                try:
                    entry = self._entry(f"{key}.{kind}", _metadata(file, spans, self.lines))
                except (ValueError, RecursionError) as error:
                    entry = Entry(f"{key}.{kind}", problem=f"its text cannot be read ({error!s:.120})")
                if entry.problem and self.on_bad_caption == "skip":
                    yield f"{key!r:.120}: {entry.problem}"
                else:
                    yield ArchiveSample(entry, spans[kind], _bytes(file, spans[kind]))

    def _entry(self, name: str, metadata: Mapping[str, Any]) -> Entry:
        captions, label = Captions.of(metadata.get("text") or metadata.get("caption")), metadata.get("label")
        if not isinstance(label, str | int | None):
            raise ValueError(f"label is {label!r:.60}; expected a text or a number")
        fields = {field: as_text(metadata[field]) for field in self.fields if field in metadata}
        label = None if label is None else str(label)
        return Entry(name, captions.text, label, fields, others=captions.others)

    def read(self, path: Path, location: Span) -> bytes:
        """Return the bytes of the image file at `location` (offset, number of bytes) in the tar file `path`."""
        with path.open("rb") as file:
            return _bytes(file, location)


def load(config: WebDatasetConfig) -> Split:
    """Load the training and held-out pictures of tar shards.

    Raises:
        UserError: there are no shards, a file is no uncompressed tar, no picture is usable, more pictures are bad than
            allowed, or no picture is left to train on.
    """
    return archives.load(config, TarReader(config.fields, config.on_bad_caption, config.caption_lines), ".tar")


def members(path: Path) -> tuple[Samples, list[str]]:
    """Return the samples of a tar file, and a message for each member of the tar that cannot be used.

    A sample consists of the members whose names are equal up to the first dot. Samples are returned as {common name:
    {suffix: (offset of the member's contents in the tar, number of bytes)}}.

    Raises:
        UserError: the file is no uncompressed tar, or has too many members.
    """
    samples: Samples = {}
    complaints: list[str] = []
    with path.open("rb") as file:
        end = file.seek(0, io.SEEK_END)
        file.seek(0)
        try:
            for number, member in enumerate(_walk(file)):
                if number >= MEMBER_LIMIT:
                    raise UserError(f"{path} has more than {MEMBER_LIMIT:,} members; split it into smaller shards")
                if complaint := _add_member(member, end, samples):
                    complaints.append(f"{member.name!r:.120}: {complaint}")
        except tarfile.TarError as error:
            if not samples and not complaints:
                raise UserError(
                    f"{path} is no plain tar file ({error}); compressed ones must be unpacked to .tar first, so that "
                    "any picture can be read at random"
                ) from None
            complaints.append(f"the shard is damaged or cut off ({error})")
    return samples, complaints


class _LimitedReads(io.RawIOBase):
    """File wrapper that refuses reads of over HEADER_LIMIT (2^20) bytes, because a tar's header may claim any size."""

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
    """Yield the header of each member of a tar file.

    Raises:
        tarfile.TarError: the tar is damaged, or has no end mark.
    """
    with tarfile.open(fileobj=_LimitedReads(file), mode="r:") as tar:
        yield from tar
        file.seek(tar.offset)
        end_mark = file.read(tarfile.BLOCKSIZE)
        if not end_mark or any(end_mark):
            raise tarfile.ReadError(f"no end mark at byte {tar.offset:,}")


def _add_member(member: tarfile.TarInfo, end: int, samples: Samples) -> str | None:
    """Add a member of a tar to its sample in `samples`, or return a complaint if it cannot be used.

    Folders, hidden files and files without a suffix are skipped. `end` is the size of the tar in bytes.
    """
    if complaint := _complaint(member, end):
        return complaint
    match = _NAME.fullmatch(member.name)
    if member.isdir() or match is None:
        return None
    kind = match[2].lower()
    limit = PICTURE_LIMIT if kind in _IMAGE_KINDS else TEXT_LIMIT
    if member.size > limit and kind in {*_IMAGE_KINDS, "txt", "cls", "json"}:
        return f"has {member.size:,} bytes, more than any picture or text needs"
    spans = samples.setdefault(match[1], {})
    if kind in spans:
        return "comes a second time"
    spans[kind] = (member.offset_data, member.size)
    return None


def _complaint(member: tarfile.TarInfo, end: int) -> str | None:
    """Return why a member of a tar must not be read, None if it may; `end` is the size of the tar in bytes."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\0" in member.name:
        return "leads outside; expected a relative name without .."
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        return "is a link, a device or a sparse file; expected a plain one"
    return "is cut off by the end of the shard" if member.offset_data + member.size > end else None


def _metadata(file: BinaryIO, spans: Mapping[str, Span], lines: bool) -> dict[str, Any]:
    """Return the metadata of a sample: text, label and further values from its .json, .txt and .cls files.

    `spans` maps the suffix of each of the sample's files to the file's offset and size in the open tar `file`. If
    `lines`, the text is a list of the lines of the .txt.

    Raises:
        ValueError: a file is not valid UTF-8 or JSON.
    """
    metadata = json.loads(_bytes(file, spans["json"])) if "json" in spans else {}
    if not isinstance(metadata, dict):
        raise ValueError(f"its .json holds a {type(metadata).__name__}, expected an object")
    for kind, name in (("txt", "text"), ("cls", "label")):
        if kind in spans:
            metadata[name] = _bytes(file, spans[kind]).decode().strip()
    if lines and "txt" in spans:
        first, others = in_lines(metadata["text"], lines)
        metadata["text"] = [first, *others]
    return metadata


def _bytes(file: BinaryIO, span: Span) -> bytes:
    offset, size = span
    file.seek(offset)
    return file.read(size)
