"""`Measured`: what a training method gives to the measures that its run takes while it trains."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.methods.autoencoder_metrics import reconstruct_levels
from ldm_kit.methods.measures import Measures


class Judged(NamedTuple):
    """Kind of pictures of a run that measures compare with held-out pictures."""

    reconstructions: bool = False  # whether they are the held-out pictures, reconstructed; else they are sampled
    captions: bool = False  # whether they are sampled with the captions of held-out pictures
    semantic: bool = False  # whether a semantic model reconstructs them, from inferred and from random noise x_T


class Measured:
    """A method whose run can take the measures of `log.measures`; by default it has no pictures to measure.

    Attributes:
        measures: the measures of the run, ready to be taken; None: the run takes none.
    """

    measures: Measures | None = None

    @classmethod
    def judged(cls, config: Any) -> Judged:
        """Return the kind of pictures that measures judge in a run with this config.

        Raises:
            UserError: the run makes no pictures that could be measured.
        """
        name = config.model_dump(include={"method"})["method"]
        raise UserError(f"log.measures compares samples with held-out pictures, but method {name} samples no pictures")

    def measured_pictures(self, rows: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Make the pictures that are measured, with the present weights.

        Args:
            rows: index, in the held-out set, of the picture whose caption or class each has, or that it reconstructs.
            seeds: seed of each picture that is sampled.

        Returns:
            Pictures, uint8 [N, C, R, R].

        Raises:
            NonFiniteError: sampling gives a NaN or an infinity.
        """
        raise NotImplementedError(f"{type(self).__name__} has no pictures to measure")

    def random_pictures(self, rows: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Decode the codes of the held-out pictures `rows` with random noise x_T: uint8 [N, C, R, R].

        Only semantic models do so. `seeds` has the seed of each picture's noise.

        Raises:
            NonFiniteError: decoding gives a NaN or an infinity.
        """
        raise NotImplementedError(f"{type(self).__name__} decodes no codes")

    def take_measures(self) -> dict[str, float]:
        """Take the run's measures; return their values by name, such as heldout_fd, on the main process alone."""
        return {} if self.measures is None else self.measures.take(self.measured_pictures, self.random_pictures)


class MeasuredReconstructions(Measured):
    """A method that trains an autoencoder: measures judge reconstructions of held-out pictures."""

    vae: Any  # the autoencoder
    data: Any  # pictures of the run, a `Split`

    @classmethod
    def judged(cls, config: Any) -> Judged:
        """Return that measures judge reconstructions."""
        return Judged(reconstructions=True)

    @torch.no_grad()
    def measured_pictures(self, rows: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Return the held-out pictures `rows`, encoded to posterior means and decoded, uint8; `seeds` is not used."""
        return reconstruct_levels(self.vae, self.data.heldout.pictures(rows))
