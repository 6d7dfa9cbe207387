"""The protocol of a model with a semantic encoder, which editing is written against, and its normalised codes."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_kit.data.images import PictureSet
from ldm_kit.memory import Batch, BatchSize
from ldm_kit.models.codes import CodeStatistics
from ldm_kit.models.decoders import TrajectoryTarget

Progress = Callable[[int, int], object]  # (finished steps, all steps)


class Semantic(Protocol):
    """A model that encodes a picture as (z, x_T) and decodes it: `ldm_kit.models.semantic.SemanticModel`."""

    @property
    def resolution(self) -> int:
        """R, pixels along each side."""
        ...

    @property
    def channels(self) -> int:
        """C: 1 grey, 3 RGB, 4 RGBA."""
        ...

    @property
    def z_width(self) -> int:
        """D, numbers in a code z."""
        ...

    @property
    def mean(self) -> Tensor:
        """Mean [D] of the training set's codes."""
        ...

    @property
    def std(self) -> Tensor:
        """Standard deviation [D] of the training set's codes."""
        ...

    def encode(self, pictures: Tensor, batch: Batch = 64) -> Tensor:
        """Encode pictures uint8 [N, C, R, R] as codes z, float32 [N, D], not normalised."""
        ...

    def invert(
        self, pictures: Tensor, z: Tensor, steps: int = 250, batch: Batch = 32, *, progress: Progress | None = None
    ) -> Tensor:
        """Invert pictures under their codes; return the stochastic codes x_T [N, Z, h, w]."""
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
        """Decode codes as pictures, uint8 [N, C, R, R]."""
        ...


class Code(NamedTuple):
    """Both codes of N pictures: z [N, D], as the encoder returns it, and x_T [N, Z, h, w]."""

    z: Tensor
    x_T: Tensor

    def take(self, indices: Sequence[int]) -> "Code":
        """Return the codes with these indices, in this order."""
        return Code(self.z[list(indices)], self.x_T[list(indices)])


def statistics(model: Semantic) -> tuple[Tensor, Tensor]:
    """Return mean and deviation [D] of the training set's codes, float32 on the CPU, where codes are edited."""
    return model.mean.detach().float().cpu(), model.std.detach().float().cpu()


def normalise(model: Semantic, z: Tensor) -> Tensor:
    """Normalise codes [N, D] to mean 0 and deviation 1 over the training set."""
    return CodeStatistics(*statistics(model)).normalise(z.float().cpu())


def encoder_digest(model: Semantic) -> str:
    """Return the SHA-256 hex digest of the code statistics, which identifies a model's space of codes."""
    digest = hashlib.sha256()
    for value in statistics(model):
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def encode_pictures(model: Semantic, pictures: PictureSet, batch: Batch = 64) -> Tensor:
    """Encode a set of pictures, so many at once, as codes z [N, D], with a progress bar."""
    z, size = [torch.zeros(0, model.z_width)], BatchSize.of(batch)
    with tqdm(total=len(pictures), desc="encoding", unit="picture") as progress_bar:
        for codes in size.batches(len(pictures), lambda indices: model.encode(pictures.pictures(indices), size)):
            z.append(codes.float().cpu())
            progress_bar.update(len(codes))
    return torch.cat(z)


@contextmanager
def step_bar(description: str) -> Iterator[Progress]:
    """Show a progress bar over steps; yields the callback that takes (finished steps, all steps)."""
    with tqdm(desc=description, unit="step") as progress_bar:

        def update(finished: int, total: int) -> None:
            progress_bar.total = total
            progress_bar.update(finished - progress_bar.n)

        yield update
