"""What editing asks of a model with a semantic encoder, and its codes in the normalised space."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_kit.data.images import PictureSet
from ldm_kit.models.decoders import TrajectoryTarget

Progress = Callable[[int, int], object]  # (steps done, steps in all)


class Semantic(Protocol):
    """A model that reads a picture as (z, x_T) and draws it again: `ldm_kit.models.semantic.SemanticModel`."""

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
        """D of a code z."""
        ...

    @property
    def mean(self) -> Tensor:
        """Of the training set's codes, [D]."""
        ...

    @property
    def std(self) -> Tensor:
        """Likewise, [D]."""
        ...

    def encode(self, pictures: Tensor, batch: int = 64) -> Tensor:
        """Pictures uint8 [N, C, R, R] to codes z, float32 [N, D], not normalised."""
        ...

    def invert(
        self, pictures: Tensor, z: Tensor, steps: int = 250, batch: int = 32, *, progress: Progress | None = None
    ) -> Tensor:
        """Stochastic codes x_T [N, Z, h, w] of pictures under their codes."""
        ...

    def decode(
        self,
        z: Tensor,
        x_T: Tensor,
        steps: int = 100,
        batch: int = 32,
        stop: float = 0.0,
        *,
        towards: TrajectoryTarget | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Codes to pictures, uint8 [N, C, R, R]."""
        ...


class Code(NamedTuple):
    """What pictures are to a semantic model: z [N, D], as the encoder gives it, and x_T [N, Z, h, w]."""

    z: Tensor
    x_T: Tensor

    def take(self, indices: Sequence[int]) -> "Code":
        """The codes at these places, in this order."""
        return Code(self.z[list(indices)], self.x_T[list(indices)])


def statistics(model: Semantic) -> tuple[Tensor, Tensor]:
    """Mean and deviation [D] of the training set's codes, float32 on the CPU, where all editing of codes is done."""
    return model.mean.detach().float().cpu(), model.std.detach().float().cpu()


def normalise(model: Semantic, z: Tensor) -> Tensor:
    """Codes [N, D] with mean 0 and deviation 1 over the training set."""
    mean, std = statistics(model)
    return (z.float().cpu() - mean) / std


def encoder_digest(model: Semantic) -> str:
    """What tells the spaces of two models' codes apart: Sha256 hex of the statistics of their training sets' codes."""
    state = hashlib.sha256()
    for value in statistics(model):
        state.update(value.contiguous().numpy().tobytes())
    return state.hexdigest()


def encode_pictures(model: Semantic, pictures: PictureSet, batch: int = 64) -> Tensor:
    """The codes z [N, D] of a set of pictures, with a progress bar."""
    found: list[Tensor] = []
    with tqdm(total=len(pictures), desc="reading pictures", unit="picture") as bar:
        for start in range(0, len(pictures), batch):
            part = range(start, min(start + batch, len(pictures)))
            found.append(model.encode(pictures.pictures(part), batch).float().cpu())
            bar.update(len(part))
    return torch.cat(found)


@contextmanager
def step_bar(what: str) -> Iterator[Progress]:
    """A progress bar over the steps of a walk, for those who tell (done, all)."""
    with tqdm(desc=what, unit="step") as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell
