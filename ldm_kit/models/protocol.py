"""`Semantic`, the protocol of a model with a semantic encoder, through which all editing works, and its helpers."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_kit.data.images import PictureSet
from ldm_kit.data.peers import divided
from ldm_kit.memory import Batch, BatchSize
from ldm_kit.models.codes import CodeStatistics
from ldm_kit.models.decoders import TrajectoryTarget
from ldm_kit.progress import Progress


class Semantic(Protocol):
    """A model that encodes a picture as a semantic code z and noise x_T, and decodes both to the picture.

    `ldm_kit.models.semantic.SemanticModel` implements it.
    """

    @property
    def resolution(self) -> int:
        """R, pixels along each side of a picture."""
        ...

    @property
    def channels(self) -> int:
        """C, channels of a picture: 1 grey, 3 RGB, 4 RGBA."""
        ...

    @property
    def z_width(self) -> int:
        """D, dimensions of a semantic code z."""
        ...

    @property
    def mean(self) -> Tensor:
        """Mean [D] of the training pictures' codes."""
        ...

    @property
    def std(self) -> Tensor:
        """Standard deviation [D] of the training pictures' codes."""
        ...

    def encode(self, pictures: Tensor, batch: Batch = 64) -> Tensor:
        """Encode pictures uint8 [N, C, R, R], at most `batch` at once, as codes z, float32 [N, D], not normalised."""
        ...

    def invert(
        self, pictures: Tensor, z: Tensor, steps: int = 250, batch: Batch = 32, *, progress: Progress | None = None
    ) -> Tensor:
        """Invert pictures to the noise x_T [N, Z, h, w] from which `decode` gives them back, by DDIM.

        Args:
            pictures: uint8 [N, C, R, R].
            z: the pictures' codes [N, D], not normalised.
            steps: number of DDIM steps.
            batch: most pictures at once.
            progress: called with the finished and the total number of steps; None: not called.
        """
        ...

    def decode(
        self,
        z: Tensor,
        x_T: Tensor,
        steps: int = 100,
        batch: Batch = 32,
        stop: float = 0.0,
        *,
        trajectory: TrajectoryTarget | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Decode codes and noise to pictures, uint8 [N, C, R, R], by DDIM.

        Args:
            z: semantic codes [N, D], not normalised.
            x_T: noise [N, Z, h, w].
            steps: number of DDIM steps.
            batch: most pictures at once.
            stop: PDAE only: fraction of the steps, at the end, that the base model takes without z; 0: none.
            trajectory: PDAE only: second codes and weights, N each, for trajectory interpolation from z.
            progress: called with the finished and the total number of steps; None: not called.
        """
        ...


class Code(NamedTuple):
    """Semantic codes z [N, D], not normalised, and stochastic codes (noise) x_T [N, Z, h, w] of N pictures."""

    z: Tensor
    x_T: Tensor

    def take(self, indices: Sequence[int]) -> "Code":
        """Return the codes of the pictures with these indices, in the order of `indices`."""
        return Code(self.z[list(indices)], self.x_T[list(indices)])


def statistics(model: Semantic) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [D] of the codes of the model's training pictures, float32 on the CPU."""
    return model.mean.detach().float().cpu(), model.std.detach().float().cpu()


def normalise(model: Semantic, z: Tensor) -> Tensor:
    """Return (z - mean) / std of codes z [N, D], on the CPU; `model.mean` and `model.std` are used."""
    return CodeStatistics(*statistics(model)).normalise(z.float().cpu())


def encoder_digest(model: Semantic) -> str:
    """Return the sha256 (hex) of the mean and deviation of a model's codes.

    Saved attribute directions and code files store this digest, so that they are not used with a model of other codes.
    """
    digest = hashlib.sha256()
    for value in statistics(model):
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def encode_pictures(model: Semantic, pictures: PictureSet, batch: Batch = 64) -> Tensor:
    """Encode a set of N pictures, at most `batch` at once, by `model`; show a progress bar.

    Several processes encode a share each.

    Returns:
        Codes z [N, D], not normalised, on the CPU.
    """
    size = BatchSize.of(batch)

    def own(rows: Sequence[int]) -> Tensor:
        z = [torch.zeros(0, model.z_width)]
        with tqdm(total=len(rows), desc="encoding", unit="picture") as progress_bar:
            for codes in size.batches(
                len(rows), lambda indices: model.encode(pictures.pictures([rows[i] for i in indices]), size)
            ):
                z.append(codes.float().cpu())
                progress_bar.update(len(codes))
        return torch.cat(z)

    return divided(len(pictures), own)
