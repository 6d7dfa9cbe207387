"""Rejection sampling: codes are sampled from a prior until the classifier of an attribute accepts one.

Preechakul et al. 2022 (section 5.3) condition their generator in this way on an attribute learned from a few examples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.diffusion import rng

MAX_BLOCK = 256  # codes sampled at a time, shared by the pictures that have none accepted yet


@dataclass(frozen=True)
class AttributeThreshold:
    """The condition under which a code is accepted: the probability of an attribute is above a threshold."""

    attribute: str  # name of the attribute
    threshold: float = 0.5  # a code is accepted if the attribute's probability is above this, 0 to 1
    tries: int = 1000  # most codes that are tried for each picture


class AcceptedCodes(NamedTuple):
    """The accepted codes of N pictures, their attribute's probabilities, and the number of codes tried for them."""

    z: Tensor  # accepted codes [N, D], in the form in which the sampling function returned them
    probability: Tensor  # [N], probability that each code has the attribute
    tried: int  # codes tried for a picture, up to and with the accepted one; summed over the pictures

    @property
    def rate(self) -> float:
        """The fraction of the tried codes that was accepted."""
        return len(self.z) / self.tried


def try_seed(seed: int, number: int) -> int:
    """Return the seed of try `number`, from 0, of a picture: the picture's `seed` for try 0, else a hash of both."""
    return seed if number == 0 else rng.derive_seed(seed, "try", number)


def sample_accepted(
    sample: Callable[[Sequence[int]], Tensor],
    logit: Callable[[Tensor], Tensor],
    seeds: Sequence[int],
    acceptance: AttributeThreshold,
) -> AcceptedCodes:
    """Sample codes for each seed until one is accepted. The result for a seed does not depend on the other seeds.

    Args:
        sample: function from K seeds to K codes [K, D], each code from its own seed.
        logit: function from codes [K, D] to the log-odds [K] that they have the attribute.
        seeds: one for each picture.
        acceptance: the attribute, the threshold of its probability, and the most tries for each seed.

    Raises:
        UserError: for one of the seeds, no code was accepted within the tries.
    """
    waiting, finished = list(range(len(seeds))), 0
    accepted: dict[int, tuple[Tensor, Tensor, int]] = {}  # index of the seed -> code, probability, tries
    while waiting and finished < acceptance.tries:
        block = min(max(1, MAX_BLOCK // len(waiting)), acceptance.tries - finished)
        z = sample([try_seed(seeds[i], finished + k) for i in waiting for k in range(block)])
        probability = logit(z).sigmoid().view(len(waiting), block)
        passed = probability > acceptance.threshold
        for row, i in enumerate(waiting):
            if bool(passed[row].any()):
                k = int(passed[row].int().argmax())
                accepted[i] = z[row * block + k], probability[row, k], finished + k + 1
        waiting, finished = [i for i in waiting if i not in accepted], finished + block
    if waiting:
        raise UserError(
            f"{len(waiting)} of {len(seeds)} pictures found no code with a probability of {acceptance.attribute!r:.80} "
            f"over {acceptance.threshold:g} within --tries {acceptance.tries} each; lower --threshold, or raise --tries"
        )
    z, probability, tried = zip(*(accepted[i] for i in range(len(seeds))), strict=True)
    return AcceptedCodes(torch.stack(z), torch.stack(probability), sum(tried))
