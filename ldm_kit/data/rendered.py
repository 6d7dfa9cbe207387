"""Picture sets rendered from the values of known factors (such as hair); each picture is rendered once and cached."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import cache_dir
from ldm_kit.data import atomic, peers
from ldm_kit.data.caption_templates import CaptionedConfig
from ldm_kit.data.factors import Values, check_edit
from ldm_kit.data.images import Record, digest
from ldm_kit.data.tensor_cache import key_of

CHUNK = 256  # pictures in a file of the cache
_BLOCK = 32  # pictures that a thread renders at once
_log = logging.getLogger("ldm_kit.data")


class RenderedConfig(CaptionedConfig):
    """Options shared by the data sets whose pictures are rendered: faces and shapes."""

    resolution: int = Field(default=64, ge=8, le=1024, description="pixels along each side")
    seed: int = Field(default=0, ge=0, description="which pictures are drawn")
    heldout: float = Field(default=0.05, ge=0, lt=1, description="share held out, by a hash of each picture's name")
    cache: Path | None = Field(
        default=None, description="folder for the rendered set; default: LDM_KIT_CACHE, else ~/.cache/ldm_kit"
    )

    @property
    def channels(self) -> int:
        """Channels of a picture: 3, RGB."""
        return 3

    @property
    def folder(self) -> Path:
        """Folder in which the rendered pictures are cached."""
        return (self.cache or cache_dir()).expanduser() / "rendered"


@dataclass(frozen=True)
class Renderer:
    """Renderer of pictures from the values of their factors, such as {"hair": "bun", "mouth": "smiling"}.

    Args:
        name: name of the data source, such as "faces".
        key: texts of all that pixels depend on beside the values: resolution, versions of code and packages.
        factors: the values that each factor can have, by the factor's name.
        render: function from the values of N pictures to uint8 [N, C, R, R] (C channels, R x R pixels).
        hidden: function from a picture's values to the factors whose value cannot be seen in the picture.
    """

    name: str
    key: Sequence[str]
    factors: Mapping[str, tuple[str, ...]]
    render: Callable[[Sequence[Values]], Tensor]
    hidden: Callable[[Values], frozenset[str]] = lambda values: frozenset()


@dataclass(frozen=True, eq=False)
class RenderedSet:
    """Rendered pictures with known factors (a `FactorSet`): `Record.fields` of each picture is {factor: value}."""

    records: Sequence[Record]  # name, caption, class and factors' values of each picture
    classes: Sequence[str]  # class names that `Record.label` indexes
    chunks: Sequence[Tensor]  # uint8 [CHUNK, C, R, R] each, the last one shorter; mapped from the cache's files
    fingerprint: str  # sha256 (hex) that identifies the set
    renderer: Renderer  # renders pictures after an edit, from their factors' values

    @property
    def factors(self) -> Mapping[str, tuple[str, ...]]:
        """All values that each factor can have, {factor: values}, such as {"hair": ("bun", "spiky")}."""
        return self.renderer.factors

    @property
    def resolution(self) -> int:
        """Pixels along each side of a picture, R."""
        return self.chunks[0].shape[-1]

    @property
    def channels(self) -> int:
        """Channels of a picture, C: 1 grey, 3 RGB, 4 RGBA."""
        return self.chunks[0].shape[1]

    def __len__(self) -> int:
        return len(self.records)

    def picture(self, index: int) -> Tensor:
        """Return the picture at `index`, uint8 [C, R, R]: C channels, R x R pixels."""
        chunk, row = divmod(range(len(self))[index], CHUNK)
        return self.chunks[chunk][row]

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Return the N pictures at `indices`, uint8 [N, C, R, R]: C channels, R x R pixels."""
        if not len(indices):
            return self.chunks[0][:0]
        return torch.stack([self.picture(int(i)) for i in indices])

    def values(self, index: int) -> dict[str, str]:
        """Return {factor: value} for the picture at `index`."""
        return dict(self.records[index].fields)

    def counterpart(self, index: int, factor: str, value: str) -> Tensor:
        """Render the picture at `index` with `factor` changed to `value`, all else unchanged, uint8 [C, R, R].

        Raises:
            UserError: there is no such factor, or it cannot have this value.
        """
        check_edit(self.factors, factor, value)
        return self.renderer.render([{**self.values(index), factor: value}])[0]

    def hidden(self, values: Values) -> frozenset[str]:
        """Return the factors whose value cannot be seen in a picture with these `values`, {factor: value}."""
        return self.renderer.hidden(values)


@dataclass(frozen=True)
class DrawnSet:
    """A picture set that can be rendered: what each picture shows is chosen, but no pixels are computed.

    Args:
        renderer: renders the pictures.
        records: records of the pictures; `Record.fields` is {factor: value}, from which a picture is rendered.
        classes: class names that `Record.label` indexes.
        folder: folder in which rendered pictures are cached.
    """

    renderer: Renderer
    records: Sequence[Record]
    classes: Sequence[str]
    folder: Path

    @property
    def fingerprint(self) -> str:
        """Sha256 (hex) of all that the pictures depend on: the renderer's key and the pictures' names."""
        return digest([*self.renderer.key, *(record.name for record in self.records)])

    def render(self) -> RenderedSet:
        """Return the set of rendered pictures; those that are not cached are rendered by all processes of the run.

        A cache file holds CHUNK (256) pictures and is named by what they show. So if the number of pictures grows, only
        new pictures are rendered, and those of the last file again if it was not full.
        """
        records, folder = self.records, self.folder
        chunks = [_Chunk.make(self.renderer, records[i : i + CHUNK], folder) for i in range(0, len(records), CHUNK)]
        missing = partial(_missing, chunks)
        total = sum(len(chunks[i].values) for i in missing()) // peers.everyone().size
        with tqdm(total=total, desc=f"rendering {self.renderer.name}", disable=None if total else True) as bar:
            peers.make_missing(missing, lambda i: chunks[i].store(bar.update))
        loaded = [chunk.load() for chunk in chunks]
        return RenderedSet(records, self.classes, loaded, self.fingerprint, self.renderer)


@dataclass(frozen=True)
class _Chunk:
    """The pictures (at most CHUNK, 256) of one file of the cache of rendered pictures."""

    renderer: Renderer
    values: Sequence[Values]  # {factor: value} of each picture
    path: Path  # the cache file
    made: list[Tensor]  # the pictures, if this process has rendered them and could not store them

    @classmethod
    def make(cls, renderer: Renderer, records: Sequence[Record], folder: Path) -> "_Chunk":
        values = [record.fields for record in records]
        key = key_of(renderer.name, *renderer.key, *(list(one.values()) for one in values))
        return cls(renderer, values, folder / f"{renderer.name}-{key[:32]}.safetensors", [])

    def store(self, report: Callable[[int], object] = int) -> Tensor:
        """Render, cache and return the pictures; after each batch, call `report` with its number of pictures."""
        pictures = self.render(report)
        try:
            atomic.write(self.path, safetensors.torch.save({"pictures": pictures, "sha256": _sha256(pictures)}))
        except OSError as error:
            _log.warning("cannot cache %s (%s); they will be rendered again", self.path, error.strerror)
            self.made.append(pictures)
        return pictures

    def load(self) -> Tensor:
        if self.made:
            return self.made[0]
        try:
            stored = safetensors.torch.load_file(self.path)
            if torch.equal(_sha256(stored["pictures"]), stored["sha256"]):
                return stored["pictures"]
            reason = "its contents have changed"
        except (OSError, KeyError, SafetensorError) as error:
            reason = str(error)
        _log.warning("the cache %s is damaged (%s) and is built again", self.path, reason)
        return self.store()

    def render(self, report: Callable[[int], object]) -> Tensor:
        blocks: list[Tensor] = []
        parts = [self.values[i : i + _BLOCK] for i in range(0, len(self.values), _BLOCK)]
        for block in peers.in_threads(self.renderer.render, parts):
            blocks.append(block)
            report(len(block))
        return torch.cat(blocks)


def _missing(chunks: Sequence[_Chunk]) -> list[int]:
    return [i for i, chunk in enumerate(chunks) if not chunk.made and not chunk.path.exists()]


def _sha256(pictures: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(hashlib.sha256(pictures.numpy().data).digest()), dtype=torch.uint8)
