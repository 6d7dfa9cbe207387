"""Random numbers with an address: a draw is a function of (seed, name, position), never of earlier draws.

A resumed run is then exact, and neither batch size, accumulation nor the number of processes changes a sample's noise.
The generator is counter-based: SplitMix64's finaliser (Steele et al. 2014) over a hashed key and a counter, computed
for a whole batch at once on any device. Integers agree bit for bit across devices; normals to float32 rounding.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm_kit.diffusion.float64 import has_float64

_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)  # as signed 64-bit
_MUL1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MUL2 = 0x94D049BB133111EB - (1 << 64)


def derive_seed(seed: int, *address: str | int) -> int:
    """Return a 63-bit seed for an address such as (seed, "order", epoch)."""
    text = "/".join([str(seed), *map(str, address)])
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


def _mix(z: Tensor) -> Tensor:
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * _MUL1
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * _MUL2
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


def bits(seed: int, name: str, positions: Tensor, count: int) -> Tensor:
    """Return `count` random 64-bit integers for each position, int64 [B] to int64 [B, count]."""
    key = _mix(positions * _GAMMA + derive_seed(seed, name))
    counter = torch.arange(1, count + 1, device=positions.device) * _GAMMA
    return _mix(_mix(key[:, None] + counter) + derive_seed(seed, name, "whiten"))


def uniform(seed: int, name: str, positions: Tensor) -> Tensor:
    """Return a number in [0, 1) for each position int64 [B], float64 [B] with 53 random bits.

    On a device without float64 they are float32 with the first 24 of these bits; give positions on the CPU, such as
    `exact(positions)`, for the same numbers everywhere.
    """
    raw, count = bits(seed, name, positions, 1)[:, 0], 53 if has_float64(positions.device) else 24
    top = (raw >> (64 - count)) & ((1 << count) - 1)
    return (top.double() if count == 53 else top.float()) / (1 << count)


def normal(seed: int, name: str, positions: Tensor, shape: Sequence[int]) -> Tensor:
    """Return standard normal numbers (Box & Muller 1958).

    Args:
        seed: of the run.
        name: what they are for; other names give independent numbers.
        positions: int64 [B].
        shape: of the numbers of one position.

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


def initial_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return the noise from which samples with these seeds start, float32 [B, *shape] on the CPU.

    It is what diffusers draws from `[torch.Generator("cpu").manual_seed(seed) for seed in seeds]`.

    Args:
        seeds: one for each of B samples.
        shape: of one sample.
    """
    return torch.stack([torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def step_generators(seeds: Sequence[int], step: int) -> list[torch.Generator]:
    """Return a CPU generator for each of the samples' seeds at a sampling step."""
    return [torch.Generator().manual_seed(derive_seed(seed, "sampling step", step)) for seed in seeds]


def step_noise(seeds: Sequence[int], step: int, shape: Sequence[int]) -> Tensor:
    """Return the noise that a sampler adds at a step, which for each sample depends on its own seed alone.

    Args:
        seeds: one for each of B samples.
        step: index of the sampling step.
        shape: of one sample.

    Returns:
        float32 [B, *shape] on the CPU.
    """
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in step_generators(seeds, step)])
