"""New codes that have an attribute: drawn from a prior until a direction reads it in them.

Preechakul et al. 2022 (section 5.3) condition their generator so on an attribute that a few examples taught.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.diffusion import rng

BLOCK = 256  # codes drawn at a time, at most, where a single picture waits


@dataclass(frozen=True)
class AttributeThreshold:
    """What a code must pass."""

    attribute: str
    threshold: float = 0.5
    tries: int = 1000

    def refuse(self) -> None:
        """Refuse numbers out of range; raises UserError."""
        if not (math.isfinite(self.threshold) and 0 <= self.threshold < 1):
            raise UserError(f"--threshold is {self.threshold:g}; expected a probability from 0 to below 1, such as 0.5")
        if self.tries < 1:
            raise UserError(f"--tries is {self.tries}; expected 1 or more")


def attribute_threshold(attribute: str | None, threshold: float | None, tries: int) -> AttributeThreshold | None:
    """What was wished; a threshold left out is 0.5. Raises UserError for a threshold of nothing."""
    if attribute is not None:
        return AttributeThreshold(attribute, 0.5 if threshold is None else threshold, tries)
    if threshold is not None:
        raise UserError("--threshold is for --attribute NAME, whose probability it limits; give both, or leave it out")
    return None


class AcceptedCodes(NamedTuple):
    """Codes that passed, and how many were drawn for them."""

    z: Tensor  # [N, D]
    probability: Tensor  # [N]
    tried: int  # for each seed, all up to the one that passed

    @property
    def rate(self) -> float:
        """The share of codes that passed."""
        return len(self.z) / self.tried


def try_seed(seed: int, number: int) -> int:
    """The seed of a picture's try 0, 1, ...; the first is that of the picture itself."""
    return seed if number == 0 else rng.derive_seed(seed, "try", number)


def sample_accepted(
    draw: Callable[[Sequence[int]], Tensor],
    read: Callable[[Tensor], Tensor],
    seeds: Sequence[int],
    bar: AttributeThreshold,
) -> AcceptedCodes:
    """For each seed the first of its tries that passes, whatever the other seeds are.

    Args:
        draw: seeds to codes [K, D], each from its own.
        read: codes [K, D] to log-odds [K] that they have the attribute.
        seeds: of the pictures.
        bar: what must be passed.

    Raises:
        UserError: a seed without a code that passes among its tries.
    """
    waiting, done, found = list(range(len(seeds))), 0, dict[int, tuple[Tensor, Tensor, int]]()
    while waiting and done < bar.tries:
        block = min(max(1, BLOCK // len(waiting)), bar.tries - done)
        z = draw([try_seed(seeds[i], done + k) for i in waiting for k in range(block)])
        odds = read(z).sigmoid().view(len(waiting), block)
        passed = odds > bar.threshold
        for row, i in enumerate(waiting):
            if bool(passed[row].any()):
                k = int(passed[row].int().argmax())
                found[i] = z[row * block + k], odds[row, k], done + k + 1
        waiting, done = [i for i in waiting if i not in found], done + block
    if waiting:
        raise UserError(
            f"{len(waiting)} of {len(seeds)} pictures found no code with a probability of {bar.attribute!r:.80} over "
            f"{bar.threshold:g} within --tries {bar.tries} each; lower --threshold, or raise --tries"
        )
    z, odds, tried = zip(*(found[i] for i in range(len(seeds))), strict=True)
    return AcceptedCodes(torch.stack(z), torch.stack(odds), sum(tried))
