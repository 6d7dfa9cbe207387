"""Pictures with several captions: which rows of a conditioner's inputs belong to each picture, and which is drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_kit.diffusion import rng


@dataclass(frozen=True, eq=False)
class CaptionRows:
    """The rows, in tensors of prepared captions, that belong to each of N pictures; each time training draws one."""

    first: Tensor  # int64 [N], each picture's first row; its further rows follow
    count: Tensor  # int64 [N], number of each picture's rows, 1 or more
    seed: int  # seed of the draws

    @classmethod
    def of(cls, counts: Sequence[int], seed: int) -> "CaptionRows":
        """Return the rows of pictures with `counts` captions each, which lie one picture after the other."""
        count = torch.tensor(counts, dtype=torch.long)
        return cls(count.cumsum(0) - count, count, seed)

    def drawn(self, index: Tensor, position: Tensor) -> Tensor:
        """Return a row, int64 [B], for each of B samples: each caption of a picture is as likely as the others.

        Args:
            index: indices [B] of the pictures.
            position: numbers [B] of the samples among all samples of the run, which with the seed fix the draws.
        """
        count = self.count[index]
        number = (rng.uniform(self.seed, "caption", position) * count).long()
        return self.first[index] + number.clamp(max=count - 1)

    def take(self, index: Tensor) -> "CaptionRows":
        """Return the rows of the pictures with the indices `index` [M] alone; rows keep their numbers."""
        return CaptionRows(self.first[index], self.count[index], self.seed)

    def texts(self) -> Iterator[str]:
        """Yield texts that, with the captions, identify the rows, for a fingerprint."""
        yield "captions"
        yield from map(str, self.count.tolist())
