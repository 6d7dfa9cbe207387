"""Levels of noise, curricula and weights of the methods that train consistency models.

CT is consistency training (Song et al. 2023), iCT its improvement (Song & Dhariwal 2024), ECT the tuning of a trained
diffusion model (Geng et al. 2024). Steps k count from 0 to K - 1. Noise levels sigma are those of x = x_0 + sigma eps.
"""

import math

import torch
from torch import Tensor

from ldm_kit.diffusion.consistency import SIGMA_MAX, SIGMA_MIN
from ldm_kit.diffusion.schedule import Schedule


def karras_levels(count: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = 7.0) -> Tensor:
    """Return the rising noise levels of Karras et al. 2022, eq. 5: their 1/rho-th powers are evenly spaced.

    Args:
        count: number of levels N, 2 or more.
        sigma_min: first level.
        sigma_max: last level.
        rho: exponent; the larger, the more of the levels are low.

    Returns:
        float64 [N].
    """
    ramp = torch.linspace(0, 1, count, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (low + ramp * (high - low)) ** rho


def ct_levels(k: int, total: int, s_0: int = 2, s_1: int = 150) -> int:
    """Return the number of noise levels N(k) of consistency training (Song et al. 2023, appendix C).

    N(k) = ceil(sqrt(k / K ((s_1 + 1)^2 - s_0^2) + s_0^2) - 1) + 1.

    Args:
        k: step, 0 to K - 1.
        total: number of steps K.
        s_0: number of levels at the start, 2 or more.
        s_1: number of levels at the end, less 1.
    """
    return _ct_intervals(k, total, s_0, s_1) + 1


def _ct_intervals(k: int, total: int, s_0: int, s_1: int) -> int:
    return math.ceil(math.sqrt(k / total * ((s_1 + 1) ** 2 - s_0**2) + s_0**2) - 1)


def ct_decay(k: int, total: int, s_0: int = 2, s_1: int = 150, mu_0: float = 0.95) -> float:
    """Return the decay mu(k) = exp(s_0 ln(mu_0) / N(k)) of the target network's average (Song et al. 2023, appendix C).

    As in the published code, the N(k) of this formula is that of `ct_levels` less 1.

    Args:
        k: step, 0 to K - 1.
        total: number of steps K.
        s_0: number of levels at the start, as in `ct_levels`.
        s_1: number of levels at the end, less 1.
        mu_0: decay while there are s_0 intervals, above 0 and below 1.
    """
    return math.exp(s_0 * math.log(mu_0) / _ct_intervals(k, total, s_0, s_1))


def ict_levels(k: int, total: int, s_0: int = 10, s_1: int = 1280) -> int:
    """Return the number of noise levels of iCT, whose intervals double at equal times (Song & Dhariwal 2024, eq. 8).

    N(k) = min(s_0 2^floor(k / K'), s_1) + 1 with K' = floor(K / (floor(log2(s_1 / s_0)) + 1)).

    Args:
        k: step, 0 to K - 1.
        total: number of steps K.
        s_0: number of intervals at the start.
        s_1: most intervals, s_0 or more.
    """
    stage = max(1, total // (math.floor(math.log2(s_1 / s_0)) + 1))
    return min(s_0 * 2 ** (k // stage), s_1) + 1


def level_probabilities(sigmas: Tensor, mean: float = -1.1, std: float = 2.0) -> Tensor:
    """Return the probability of each interval of noise levels: a discretised log-normal (Song & Dhariwal 2024, eq. 10).

    p_i is proportional to erf((ln sigma_{i+1} - mean) / (sqrt(2) std)) - erf((ln sigma_i - mean) / (sqrt(2) std)).

    Args:
        sigmas: N rising noise levels [N]; the first may be 0, the last infinite.
        mean: mean of ln sigma.
        std: standard deviation of ln sigma.

    Returns:
        Probabilities [N - 1] of the upper ends of the intervals, with sum 1.
    """
    cumulative = torch.erf((sigmas.double().log() - mean) / (math.sqrt(2) * std))
    return cumulative.diff() / (cumulative[-1] - cumulative[0])


def inverse_gaps(sigma: Tensor, sigma_next: Tensor, sigma_max: float = SIGMA_MAX) -> Tensor:
    """Return the weights 1 / (sigma - sigma_next) of iCT and ECT (Song & Dhariwal 2024, section 3.5).

    Levels above `sigma_max` (pure noise is infinite) count as `sigma_max`, and a gap as a hundredth of its level at
    least, so that no sample is left out or dominates.

    Args:
        sigma: noise levels [B] of the student.
        sigma_next: lower noise levels [B] of the target.
        sigma_max: greatest level; those above it count as equal to it.
    """
    high, low = sigma.clamp_max(sigma_max), sigma_next.clamp_max(sigma_max)
    return 1 / (high - low).maximum(high / 100)


def ect_mapping(sigma: Tensor, stage: int, q: float = 2.0, k: float = 8.0, b: float = 1.0) -> Tensor:
    """Return the target's noise levels r(sigma) of easy consistency tuning (Geng et al. 2024, section 3).

    r = sigma (1 - q^-(stage + 1) (1 + k sigmoid(-b sigma))), and 0 where that is below 0. In the first stages r is 0
    for many levels, which is training of a denoiser; r nears sigma as the stage rises.

    Args:
        sigma: noise levels [B].
        stage: 0, 1, ...
        q: factor by which the gap shrinks with each stage, above 1.
        k: how much wider the gap is at low levels.
        b: how fast that ends as levels rise.
    """
    gap = q ** -(stage + 1) * (1 + k * torch.sigmoid(-b * sigma))
    return torch.where(gap < 1, sigma * (1 - gap), torch.zeros_like(sigma))


def ect_stage(k: int, total: int, stages: int) -> int:
    """Return the stage of step k out of K = `total`, when `stages` stages of equal length follow each other."""
    return min(k * stages // total, stages - 1)


def schedule_sigmas(schedule: Schedule) -> Tensor:
    """Return the noise levels sigma = s / a of a schedule's timesteps, float64 [T]; pure noise has an infinite one."""
    return schedule.s / schedule.a


def timesteps_at(schedule: Schedule, sigma: Tensor) -> Tensor:
    """Return the noisiest timesteps [B] whose noise level is at most sigma [B]; -1 (clean data) if there are none."""
    table = schedule_sigmas(schedule).to(sigma.device)
    return torch.searchsorted(table, sigma.double(), right=True) - 1


def even_levels(total: int, count: int) -> Tensor:
    """Return `count` timesteps out of T = `total`, evenly spaced from 0 to T - 1 and rounded, int64 [count].

    Raises:
        ValueError: there are more levels than timesteps, or fewer than 2.
    """
    if not 2 <= count <= total:
        raise ValueError(f"cannot choose {count} noise levels out of {total} training timesteps; expected 2 to {total}")
    return torch.linspace(0, total - 1, count, dtype=torch.float64).round().long()
