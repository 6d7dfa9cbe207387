"""Training batches around semantic codes: latents beside the pictures that they are of, and codes themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ldm_kit.data.batches import flipped
from ldm_kit.data.images import PictureSet, digest, to_unit
from ldm_kit.data.latents import LatentBatches, Latents


@dataclass(frozen=True, eq=False)
class PicturedLatents:
    """Latents, each with its picture, which is mirrored where the latents' view is."""

    latents: Latents
    pictures: PictureSet
    seed: int
    plain: LatentBatches = field(init=False)

    def __post_init__(self) -> None:
        names = [record.name for record in self.pictures.records]
        object.__setattr__(self, "plain", LatentBatches(self.latents, {}, names, self.seed))

    @property
    def fingerprint(self) -> str:
        """Of latents and pictures."""
        return digest([self.plain.fingerprint, self.pictures.fingerprint])

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> dict[str, object]:
        """What `LatentBatches` gives, and "picture": [B, C, R, R] in [-1, 1]."""
        batch = self.plain.__getitems__(places)
        picture = to_unit(self.pictures.pictures([index for _, index in places]))
        if self.latents.mean.shape[1] > 1:
            picture = flipped(picture, self.seed, torch.tensor([position for position, _ in places]))
        return {**batch, "picture": picture}


@dataclass(frozen=True, eq=False)
class CodeBatches:
    """Normalised codes with their conditions as a source of training batches."""

    codes: Tensor  # [N, D] float32
    inputs: Mapping[str, Tensor]  # [N, ...] each: what the conditioner prepared
    fingerprint: str  # of all that they depend on

    def __len__(self) -> int:
        return len(self.codes)

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> dict[str, object]:
        """{"z": [B, D], "inputs": {...}, "position": [B]} for (position, index) pairs."""
        position, index = torch.tensor(places).unbind(1)
        inputs = {name: value[index] for name, value in self.inputs.items()}
        return {"z": self.codes[index], "inputs": inputs, "position": position}
