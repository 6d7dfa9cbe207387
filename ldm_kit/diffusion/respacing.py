"""Respacing: choose the timesteps, of the T training timesteps, that a sampler visits.

Every function returns falling timesteps that end in -1, which is clean data.
"""

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise, repeat
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

if TYPE_CHECKING:
    from torch import Tensor

Spacing = Literal["trailing", "leading", "linspace"]
T = TypeVar("T", float, "Tensor")
_RESPACING = re.compile(r"ddim[0-9]+|[0-9]+(,[0-9]+)*")


def trailing(total: int, steps: int) -> list[int]:
    """Return `steps` evenly spaced timesteps that fall from T-1 (T = `total`), then -1 (Lin et al. 2024, table 2).

    -1 continues the even spacing: the last step is as long as the others.
    """
    _check_steps(total, steps)
    return [round(total - i * total / steps) - 1 for i in range(steps)] + [-1]


def leading(total: int, steps: int) -> list[int]:
    """Return the `steps` smallest multiples of T // `steps` (T = `total`), falling to 0, then -1."""
    _check_steps(total, steps)
    return [i * (total // steps) for i in reversed(range(steps))] + [-1]


def linspace(total: int, steps: int) -> list[int]:
    """Return `steps` evenly spaced timesteps from T-1 (T = `total`) down to 0, then -1; for one step, T-1 and -1."""
    _check_steps(total, steps)
    if steps == 1:
        return [total - 1, -1]
    return [round((total - 1) * i / (steps - 1)) for i in reversed(range(steps))] + [-1]


def timesteps(total: int, steps: int, spacing: str = "trailing") -> list[int]:
    """Return the falling timesteps of a named spacing, then -1.

    Args:
        total: number of training timesteps T.
        steps: number of sampling steps, 1 to T.
        spacing: trailing, leading or linspace, see the functions of these names.

    Raises:
        ValueError: `spacing` is unknown, or `steps` is outside 1 to T.
    """
    match spacing:
        case "trailing":
            return trailing(total, steps)
        case "leading":
            return leading(total, steps)
        case "linspace":
            return linspace(total, steps)
        case _:
            names = ", ".join(get_args(Spacing))
            raise ValueError(
                f"unknown spacing {spacing!r}; expected {names}, ddimN, or sections such as 90,60,60,20,20"
            )


def respacing_sections(total: int, spec: str) -> list[int]:
    """Return the falling timesteps of guided-diffusion's `timestep_respacing`, then -1 (Nichol & Dhariwal 2021).

    Args:
        total: number of training timesteps T.
        spec: "ddimN": N timesteps 0, k, 2k, ..., where k is the smallest integer stride that gives N timesteps. Or
            "n1,n2,...": the training timesteps are cut into as many equal sections, the first with the least noise;
            section i gives n_i evenly spaced timesteps, from the section's first to its last.

    Raises:
        ValueError: no integer stride gives N timesteps, section i has fewer than n_i timesteps, or `spec` has neither
            of the two forms.
    """
    if _RESPACING.fullmatch(spec) is None:
        raise ValueError(f"cannot read the respacing {spec!r}; expected ddimN, or sections such as 90,60,60,20,20")
    if spec.startswith("ddim"):
        return [*reversed(_strided(total, int(spec[4:]))), -1]
    counts = [int(count) for count in spec.split(",")]
    size, longer = divmod(total, len(counts))
    times: list[int] = []
    for i, count in enumerate(counts):
        start, length = i * size + min(i, longer), size + (i < longer)
        if not 1 <= count <= length:
            raise ValueError(
                f"section {i + 1} of {spec} has {length} of {total} training times and cannot give {count}"
            )
        stride = (length - 1) / max(count - 1, 1)
        times += [start + round(offset) for offset in accumulate(repeat(stride, count - 1), initial=0.0)]
    return [*reversed(times), -1]


def _strided(total: int, steps: int) -> range:
    """Return the timesteps 0, i, 2i, ... below T = `total`, for the smallest stride i that gives `steps` timesteps."""
    strides = {len(range(0, total, stride)): stride for stride in range(total - 1, 0, -1)}
    if steps not in strides:
        near = [max((n for n in strides if n < steps), default=0), min((n for n in strides if n > steps), default=0)]
        names = " and ".join(f"ddim{n}" for n in near if n)
        raise ValueError(f"no integer stride takes {steps} of {total} training times; the nearest that exist: {names}")
    return range(0, total, strides[steps])


def respaced_timesteps(total: int, steps: int, spacing: str) -> list[int]:
    """Return the falling timesteps of a named spacing or of a guided-diffusion respacing, then -1.

    Args:
        total: number of training timesteps T.
        steps: number of sampling steps; ignored for a guided-diffusion respacing, which contains its own number.
        spacing: trailing, leading or linspace, see `timesteps`; or ddimN or n1,n2,..., see `respacing_sections`.

    Raises:
        ValueError: `spacing` is unknown, `steps` is outside 1 to T, or the respacing is impossible with T timesteps.
    """
    if _RESPACING.fullmatch(spacing) is None:
        return timesteps(total, steps, spacing)
    return respacing_sections(total, spacing)


def shifted_time(time: T, shift: float) -> T:
    """Return times t / T in [0, 1] shifted towards noise, shift t / (1 + (shift - 1) t) (Esser et al. 2024, eq. 23).

    The times are those of rectified flow, where they are noise levels. A shift of sqrt(m / n) gives pictures of m
    pixels the signal-to-noise ratio of those of n pixels; 1: unchanged. diffusers' flow schedulers have the same shift.
    """
    return shift * time / (1 + (shift - 1) * time)


def shifted_timesteps(times: Sequence[int], total: int, shift: float) -> list[int]:
    """Return falling timesteps of T = `total` that end in -1, each but the last shifted (`shifted_time`) and rounded.

    Raises:
        ValueError: two of them fall together.
    """
    if shift == 1:
        return list(times)
    shifted = [min(total - 1, round(shifted_time(t / total, shift) * total)) for t in times[:-1]]
    if any(later >= earlier for earlier, later in pairwise(shifted)):
        raise ValueError(f"{len(shifted)} steps of {total} training times fall together; expected fewer steps")
    return [*shifted, -1]


def _check_steps(total: int, steps: int) -> None:
    if not 1 <= steps <= total:
        raise ValueError(f"cannot walk {total} training times in {steps} steps; expected 1 to {total}")
