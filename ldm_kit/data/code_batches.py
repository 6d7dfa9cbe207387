"""Training batches for semantic models such as DiffAE: latents with their pictures, or semantic codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ldm_kit.data.batches import flipped
from ldm_kit.data.caption_rows import CaptionRows
from ldm_kit.data.images import PictureSet, digest, to_unit
from ldm_kit.data.latents import LatentBatches, Latents
from ldm_kit.data.readable import replacements, sources
from ldm_kit.data.records import names_of


@dataclass(frozen=True, eq=False)
class PicturedLatents:
    """Training batches of cached latents with their pictures; a picture is mirrored where its latent is.

    Args:
        latents: mean and log-variance of the latent of each picture, in the order of `pictures`.
        pictures: the picture set.
        seed: seed of the random mirroring.
    """

    latents: Latents
    pictures: PictureSet
    seed: int
    plain: LatentBatches = field(init=False)  # batches of the latents alone

    def __post_init__(self) -> None:
        names = names_of(self.pictures.records)
        object.__setattr__(self, "plain", LatentBatches(self.latents, {}, names, self.seed))

    @property
    def fingerprint(self) -> str:
        """Hash that identifies the training data: latents and pictures."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return digest([self.plain.fingerprint, self.pictures.fingerprint])

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, samples: Sequence[tuple[int, int]], /) -> dict[str, object]:
        """Return the batch of B samples, each given as (position in training, index of a picture).

        The position is the number of samples that training has seen before this one.

        Returns:
            {"mean", "logvar": mean and log-variance of the latents' posterior, [B, Z, h, w] each (Z channels),
            "inputs": {} (there are no conditions), "position": int64 [B], "picture": [B, C, R, R] in [-1, 1]}.
        """
        rows = sources(torch.tensor([index for _, index in samples]), self.latents.replaced)
        picture = to_unit(self.pictures.pictures(rows.tolist()))
        rows = sources(rows, replacements(self.pictures))  # broken since their latents were cached
        positions = [position for position, _ in samples]
        batch = self.plain.__getitems__([*zip(positions, rows.tolist(), strict=True)])
        if self.latents.mean.shape[1] > 1:
            picture = flipped(picture, self.seed, torch.tensor(positions))
        return {**batch, "picture": picture}


@dataclass(frozen=True, eq=False)
class CodeBatches:
    """Training batches of normalised semantic codes, with captions or classes as tensors, for a prior over codes."""

    codes: Tensor  # float32 [N, D]: N codes of D dimensions
    inputs: Mapping[str, Tensor]  # inputs of the conditioner by name, [N, ...] each; [M, ...] for M `captions`
    fingerprint: str  # hash of all that codes and inputs depend on
    captions: CaptionRows | None = None  # rows of `inputs` of pictures with several captions; None: each has one

    def __len__(self) -> int:
        return len(self.codes)

    def __getitems__(self, samples: Sequence[tuple[int, int]], /) -> dict[str, object]:
        """Return the batch of B samples, each given as (position in training, index of a code).

        The position is the number of samples that training has seen before this one.

        Returns:
            {"z": codes [B, D] of D dimensions, "inputs": the conditioner's inputs {name: [B, ...]}, such as class
            indices, "position": int64 [B]}.
        """
        position, index = torch.tensor(samples).unbind(1)
        rows = index if self.captions is None else self.captions.drawn(index, position)
        inputs = {name: value[rows] for name, value in self.inputs.items()}
        return {"z": self.codes[index], "inputs": inputs, "position": position}
