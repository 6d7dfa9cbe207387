"""Counter-based random numbers: each is a function of (seed, name, position), never of the numbers drawn before.

So a resumed run equals an uninterrupted one, and neither batch size, gradient accumulation nor the number of processes
changes a sample's noise. The generator is SplitMix64's finaliser (Steele et al. 2014) of a hashed key and a counter. It
computes a whole batch at once on any device. Integers agree bit for bit across devices, normal numbers to float32
rounding.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_kit.diffusion.float64 import has_float64

_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)  # SplitMix64's constants, as signed 64-bit integers
_MUL1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MUL2 = 0x94D049BB133111EB - (1 << 64)


def derive_seed(seed: int, *address: str | int) -> int:
    """Return a 63-bit seed hashed from `seed` and an address, which says what the new seed is for.

    For example, derive_seed(seed, "order", epoch) is the seed of an epoch's order of the training samples.
    """
    text = "/".join([str(seed), *map(str, address)])
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


def _mix(z: Tensor) -> Tensor:
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * _MUL1
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * _MUL2
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


def bits(seed: int, name: str, positions: Tensor, count: int) -> Tensor:
    """Return `count` random 64-bit integers for each position, a function of seed, name and position alone.

    Args:
        seed: seed of the run.
        name: what the integers are for, such as "noise"; integers of different names are independent.
        positions: index of each sample in the run, int64 [B].
        count: number of integers for each position.

    Returns:
        int64 [B, count] on the device of `positions`.
    """
    key = _mix(positions * _GAMMA + derive_seed(seed, name))
    counter = torch.arange(1, count + 1, device=positions.device) * _GAMMA
    return _mix(_mix(key[:, None] + counter) + derive_seed(seed, name, "whiten"))


def uniform(seed: int, name: str, positions: Tensor) -> Tensor:
    """Return a uniform random number in [0, 1) for each position, a function of seed, name and position alone.

    Args:
        seed: seed of the run.
        name: what the numbers are for, such as "time"; numbers of different names are independent.
        positions: index of each sample in the run, int64 [B].

    Returns:
        float64 [B] with 53 random bits; on a device without float64, float32 [B] with the first 24 of these bits. For
        the same numbers on every device, pass `exact(positions)`.
    """
    return uniforms(seed, name, positions, 1)[:, 0]


def uniforms(seed: int, name: str, positions: Tensor, count: int) -> Tensor:
    """Return `count` uniform random numbers in [0, 1) for each position, [B, count]; otherwise as `uniform`."""
    raw, digits = bits(seed, name, positions, count), 53 if has_float64(positions.device) else 24
    top = (raw >> (64 - digits)) & ((1 << digits) - 1)
    return (top.double() if digits == 53 else top.float()) / (1 << digits)


def permuted(seed: int, name: str, positions: Tensor, size: int) -> Tensor:
    """Return p(i) for each position i, where p is a random permutation of the numbers 0 to size - 1.

    Only the p(i) asked for are computed, for instance which training sample comes at position i of an epoch. p is a
    Feistel network of four rounds on the smallest square domain that holds `size` (Luby & Rackoff 1988); a result
    outside the range is permuted again (cycle walking, Black & Rogaway 2002).

    Args:
        seed: seed of the permutation.
        name: what the permutation is for; permutations of different names are independent.
        positions: the i, int64 [B] on the CPU, each in 0 to size - 1.
        size: number of values that are permuted, at least 1.

    Returns:
        The p(i), int64 [B]; different positions have different p(i).
    """
    side = math.isqrt(size - 1) + 1
    images = _feistel(seed, name, positions, side)
    while (outside := images >= size).any():
        images[outside] = _feistel(seed, name, images[outside], side)
    return images


def _feistel(seed: int, name: str, values: Tensor, side: int) -> Tensor:
    left, right = values // side, values % side
    for turn in range(4):
        shift = uniform(seed, f"{name} {turn}", right).mul(side).long()
        left, right = right, (left + shift) % side
    return left * side + right


def normal(seed: int, name: str, positions: Tensor, shape: Sequence[int]) -> Tensor:
    """Return standard normal numbers for each position, a function of seed, name and position (Box & Muller 1958).

    Args:
        seed: seed of the run.
        name: what the numbers are for, such as "noise"; numbers of different names are independent.
        positions: index of each sample in the run, int64 [B].
        shape: shape of the numbers of one position.

    Returns:
        float32 [B, *shape] on the device of `positions`.
    """
    size = math.prod(shape)
    raw = bits(seed, name, positions, (size + 1) // 2)
    high, low = (raw >> 32) & 0xFFFFFFFF, raw & 0xFFFFFFFF
    radius = ((high.float() + 0.5) / 2**32).log().mul(-2).sqrt()
    angle = low.float() * (2 * math.pi / 2**32)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return pairs.reshape(len(positions), -1)[:, :size].reshape(len(positions), *shape)


@dataclass(frozen=True, eq=False)
class PositionDraws:
    """Random numbers for the samples of a training batch, functions of the run's seed, a name and each position.

    Args:
        seed: seed of the run.
        positions: index of each sample in the run, int64 [B].
    """

    seed: int
    positions: Tensor

    def uniform(self, name: str, count: int) -> Tensor:
        """Return `count` uniform numbers in [0, 1) for each sample, float64 [B, count] (see `uniform`)."""
        return uniforms(self.seed, name, self.positions, count)

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return standard normal numbers for each sample, float32 [B, *shape]."""
        return normal(self.seed, name, self.positions, shape)


@dataclass(frozen=True, eq=False)
class SeedDraws:
    """Random numbers for samples that have a seed each, on the CPU; functions of that seed and a name.

    Args:
        seeds: a seed for each of the B samples.
    """

    seeds: Sequence[int]

    def uniform(self, name: str, count: int) -> Tensor:
        """Return `count` uniform numbers in [0, 1) for each sample, float64 [B, count]."""
        return torch.stack([torch.rand(count, generator=g, dtype=torch.float64) for g in self._generators(name)])

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return standard normal numbers for each sample, float32 [B, *shape]."""
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self._generators(name)])

    def _generators(self, name: str) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(derive_seed(seed, name)) for seed in self.seeds]


def initial_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return the standard normal noise from which sampling starts, float32 [B, *shape] on the CPU.

    diffusers draws the same noise from `[torch.Generator("cpu").manual_seed(seed) for seed in seeds]`.

    Args:
        seeds: a seed for each of the B samples.
        shape: shape of one sample.
    """
    return torch.stack([torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def step_generators(seeds: Sequence[int], step: int) -> list[torch.Generator]:
    """Return, for each of the samples' seeds, a CPU generator seeded by a hash of this seed and the sampling step."""
    return [torch.Generator().manual_seed(derive_seed(seed, "sampling step", step)) for seed in seeds]


def step_noise(seeds: Sequence[int], step: int, shape: Sequence[int]) -> Tensor:
    """Return the standard normal noise that a sampler adds at a step; a sample's noise depends on its own seed only.

    Args:
        seeds: a seed for each of the B samples.
        step: index of the sampling step.
        shape: shape of one sample.

    Returns:
        float32 [B, *shape] on the CPU.
    """
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in step_generators(seeds, step)])
