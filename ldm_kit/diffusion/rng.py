"""Randomness with an address: a draw is a function of (seed, name, position), never of history.

Resume is then exact, and neither batch size, accumulation nor the number of processes changes what a position draws.
The generator is counter-based: SplitMix64's finaliser (Steele et al. 2014) over a hashed key and a counter, computed
for a whole batch at once on any device. Integers agree bit for bit across devices; normals to float32 rounding.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)  # as signed 64-bit
_MUL1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MUL2 = 0x94D049BB133111EB - (1 << 64)


def derive_seed(seed: int, *parts: str | int) -> int:
    """A 63-bit number for an address such as (seed, "order", epoch); good as a seed of any generator."""
    text = "/".join([str(seed), *(str(part) for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def _mix(z: Tensor) -> Tensor:
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * _MUL1
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * _MUL2
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


def bits(seed: int, name: str, positions: Tensor, count: int) -> Tensor:
    """`count` random 64-bit integers for each position [B] (int64), as [B, count]."""
    key = _mix(positions * _GAMMA + derive_seed(seed, name))
    counter = torch.arange(1, count + 1, device=positions.device) * _GAMMA
    return _mix(_mix(key[:, None] + counter) + derive_seed(seed, name, "whiten"))


def uniform(seed: int, name: str, positions: Tensor) -> Tensor:
    """One number in [0, 1) for each position [B], float64 with 53 random bits."""
    top = (bits(seed, name, positions, 1)[:, 0] >> 11) & ((1 << 53) - 1)
    return top.double() / (1 << 53)


def normal(seed: int, name: str, positions: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal float32 [B, *shape], one block for each position [B] (Box & Muller 1958)."""
    size = math.prod(shape)
    raw = bits(seed, name, positions, (size + 1) // 2)
    high, low = (raw >> 32) & 0xFFFFFFFF, raw & 0xFFFFFFFF
    radius = ((high.float() + 0.5) / 2**32).log().mul(-2).sqrt()
    angle = low.float() * (2 * math.pi / 2**32)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return pairs.reshape(len(positions), -1)[:, :size].reshape(len(positions), *shape)


def initial_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The noise that pictures with these seeds start from, float32 [B, *shape] on the CPU.

    It is what diffusers draws from `[torch.Generator("cpu").manual_seed(seed) for seed in seeds]`.
    """
    return torch.stack([torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def step_generators(seeds: Sequence[int], step: int) -> list[torch.Generator]:
    """One CPU generator for each picture at one sampling step, addressed by (picture's seed, step)."""
    return [torch.Generator().manual_seed(derive_seed(seed, "sampling step", step)) for seed in seeds]


def step_noise(seeds: Sequence[int], step: int, shape: Sequence[int]) -> Tensor:
    """Noise that a stochastic sampler adds at one step, [B, *shape] on the CPU; a batch mate changes none of it."""
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in step_generators(seeds, step)])
