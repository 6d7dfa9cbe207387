"""A linear model used like a semantic model: the code z is the principal components of pixels, x_T the remainder."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.images import PictureSet, to_bytes, to_unit
from ldm_kit.models.decoders import TrajectoryTarget
from ldm_kit.models.protocol import Progress

CHUNK = 1024  # pictures whose pixels are float64 at a time


@dataclass(frozen=True, eq=False)
class Linear:
    """Principal components with the methods of a semantic model (`ldm_kit.models.protocol.Semantic`).

    Decoding inverts encoding exactly. The arguments `steps`, `batch` and `stop` change nothing.
    """

    centre: Tensor  # [C, R, R] float64, the mean training picture in [-1, 1]
    components: Tensor  # [D, C * R * R] float64, orthonormal, the most varied first
    mean: Tensor  # [D] float32, mean of the training pictures' codes (0 but for rounding)
    std: Tensor  # [D] float32, standard deviation of the training pictures' codes

    @classmethod
    def fit(cls, pictures: PictureSet, width: int) -> "Linear":
        """Compute the first `width` principal components of a set's pixels from the covariance's eigenvectors.

        The number of largest magnitude in each component is made positive, so that the result is unique.

        Raises:
            UserError: more components asked for than the pictures can have, or none.
        """
        most = min(len(pictures) - 1, pictures.channels * pictures.resolution**2)
        if not 1 <= width <= most:
            raise UserError(f"width is {width}; expected 1 to {most}, the components that these pictures have")
        total, squares = _moments(pictures)
        centre = total / len(pictures)
        covariance = squares / len(pictures) - torch.outer(centre, centre)
        components = torch.linalg.eigh(covariance).eigenvectors.T.flip(0)[:width]
        signs = components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
        components = components * signs
        codes = torch.cat([(_flat(pictures.pictures(part)) - centre) @ components.T for part in _parts(len(pictures))])
        shape = (pictures.channels, pictures.resolution, pictures.resolution)
        return cls(centre.view(shape), components, codes.mean(0).float(), codes.std(0).float())

    @property
    def resolution(self) -> int:
        """Pixels R along each side."""
        return self.centre.shape[-1]

    @property
    def channels(self) -> int:
        """Channels C: 1 grey, 3 RGB, 4 RGBA."""
        return self.centre.shape[0]

    @property
    def z_width(self) -> int:
        """Width D of a code z."""
        return len(self.components)

    def encode(self, pictures: Tensor, batch: int = 64) -> Tensor:
        """Encode pictures uint8 [N, C, R, R] as codes z, float32 [N, D], not normalised."""
        return ((_flat(pictures) - self.centre.flatten()) @ self.components.T).float()

    def invert(
        self, pictures: Tensor, z: Tensor, steps: int = 250, batch: int = 32, *, progress: Progress | None = None
    ) -> Tensor:
        """Return x_T: pictures, uint8 [N, C, R, R], scaled to [-1, 1], minus the decoded z [N, D]; float32."""
        if progress is not None:
            progress(steps, steps)
        return to_unit(pictures) - self._decode(z)

    def decode(
        self,
        z: Tensor,
        x_T: Tensor,
        steps: int = 100,
        batch: int = 32,
        stop: float = 0.0,
        *,
        trajectory: TrajectoryTarget | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Decode codes z [N, D] and remainders [N, C, R, R] as pictures uint8 [N, C, R, R].

        With a `trajectory`, which has a target code and a weight for each picture, z is interpolated linearly to the
        target code by that weight.
        """
        if progress is not None:
            progress(steps, steps)
        if trajectory is not None:
            z = torch.lerp(z, trajectory.z, trajectory.weight[:, None])
        return to_bytes(self._decode(z) + x_T)

    def _decode(self, z: Tensor) -> Tensor:
        return (self.centre + (z.double() @ self.components).view(-1, *self.centre.shape)).float()


def _flat(pictures: Tensor) -> Tensor:
    return to_unit(pictures.cpu()).flatten(1).double()


def _parts(count: int) -> list[range]:
    return [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def _moments(pictures: PictureSet) -> tuple[Tensor, Tensor]:
    """Return the sum over pictures of x [P] and of the outer product x x^T [P, P], where x has P pixel values."""
    numbers = pictures.channels * pictures.resolution**2
    total, squares = torch.zeros(numbers).double(), torch.zeros(numbers, numbers).double()
    for part in _parts(len(pictures)):
        x = _flat(pictures.pictures(part))
        total += x.sum(0)
        squares += x.T @ x
    return total, squares
