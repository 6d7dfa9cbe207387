"""Noise levels, loss weights, and how both change during training, of the methods that train consistency models.

CT is consistency training (Song et al. 2023), iCT its improvement (Song & Dhariwal 2024), ECT the tuning of a trained
diffusion model (Geng et al. 2024). Training steps k count from 0 to K - 1. Noise levels sigma are those of
x = x_0 + sigma eps.
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
    """Return the number of noise levels N(k) that consistency training uses at step k (Song et al. 2023, appendix C).

    N(k) = ceil(sqrt(k / K ((s_1 + 1)^2 - s_0^2) + s_0^2) - 1) + 1.

    Args:
        k: training step, 0 to K - 1.
        total: number of training steps K.
        s_0: number of levels at the start, 2 or more.
        s_1: number of levels at the end, less 1.
    """
    return _ct_intervals(k, total, s_0, s_1) + 1


def _ct_intervals(k: int, total: int, s_0: int, s_1: int) -> int:
    return math.ceil(math.sqrt(k / total * ((s_1 + 1) ** 2 - s_0**2) + s_0**2) - 1)


def ct_decay(k: int, total: int, s_0: int = 2, s_1: int = 150, mu_0: float = 0.95) -> float:
    """Return the EMA decay of consistency training's target network at step k (Song et al. 2023, appendix C).

    The decay is mu(k) = exp(s_0 ln(mu_0) / N(k)). As in the published code, N(k) is here the number of intervals
    between noise levels, which is one less than `ct_levels` returns.

    Args:
        k: training step, 0 to K - 1.
        total: number of training steps K.
        s_0: number of noise levels at the start.
        s_1: number of noise levels at the end, less 1.
        mu_0: decay while there are s_0 intervals, above 0 and below 1.
    """
    return math.exp(s_0 * math.log(mu_0) / _ct_intervals(k, total, s_0, s_1))


def ict_levels(k: int, total: int, s_0: int = 10, s_1: int = 1280) -> int:
    """Return the number of noise levels N(k) that iCT uses at step k (Song & Dhariwal 2024, eq. 8).

    N(k) = min(s_0 2^floor(k / K'), s_1) + 1 with K' = floor(K / (floor(log2(s_1 / s_0)) + 1)): the number of intervals
    between noise levels doubles every K' steps.

    Args:
        k: training step, 0 to K - 1.
        total: number of training steps K.
        s_0: number of intervals at the start.
        s_1: greatest number of intervals, s_0 or more.
    """
    stage = max(1, total // (math.floor(math.log2(s_1 / s_0)) + 1))
    return min(s_0 * 2 ** (k // stage), s_1) + 1


def level_probabilities(sigmas: Tensor, mean: float = -1.1, std: float = 2.0) -> Tensor:
    """Return iCT's probabilities of drawing each interval between noise levels (Song & Dhariwal 2024, eq. 10).

    They are a log-normal density of sigma, discretised:

    p_i is proportional to erf((ln sigma_{i+1} - mean) / (sqrt(2) std)) - erf((ln sigma_i - mean) / (sqrt(2) std)).

    Args:
        sigmas: N rising noise levels [N]; the first may be 0, the last infinite.
        mean: mean of ln sigma.
        std: standard deviation of ln sigma.

    Returns:
        Probabilities p_i of the intervals sigma_i .. sigma_{i+1}, [N - 1], with sum 1.
    """
    cumulative = torch.erf((sigmas.double().log() - mean) / (math.sqrt(2) * std))
    return cumulative.diff() / (cumulative[-1] - cumulative[0])


def inverse_gaps(sigma: Tensor, sigma_next: Tensor, sigma_max: float = SIGMA_MAX) -> Tensor:
    """Return the loss weights 1 / (sigma - sigma_next) of iCT and ECT, [B] (Song & Dhariwal 2024, section 3.5).

    So that no sample has weight 0 or dominates, levels above `sigma_max` (pure noise has an infinite level) count as
    `sigma_max`, and a gap sigma - sigma_next below sigma / 100 counts as sigma / 100.

    Args:
        sigma: noise levels [B] at which the student is evaluated.
        sigma_next: lower noise levels [B] at which the target is evaluated.
        sigma_max: greatest noise level.
    """
    high, low = sigma.clamp_max(sigma_max), sigma_next.clamp_max(sigma_max)
    return 1 / (high - low).maximum(high / 100)


def ect_mapping(sigma: Tensor, stage: int, q: float = 2.0, k: float = 8.0, b: float = 1.0) -> Tensor:
    """Return the noise levels r(sigma) at which ECT evaluates the target (Geng et al. 2024, section 3).

    r = sigma (1 - q^-(stage + 1) (1 + k sigmoid(-b sigma))), and 0 where that is below 0. In the first stages r is 0
    for many levels: there the target is clean data, as in training of a denoiser. r nears sigma as the stage rises.

    Args:
        sigma: noise levels [B] at which the student is evaluated.
        stage: number of the training stage, 0, 1, ...
        q: factor by which the gap sigma - r shrinks with each stage, above 1.
        k: how much wider, relative to sigma, the gap is at low noise levels.
        b: how fast this widening fades as sigma rises.

    Returns:
        Noise levels r [B].
    """
    gap = q ** -(stage + 1) * (1 + k * torch.sigmoid(-b * sigma))
    return torch.where(gap < 1, sigma * (1 - gap), torch.zeros_like(sigma))


def ect_stage(k: int, total: int, stages: int) -> int:
    """Return the stage, 0 to `stages` - 1, of training step k out of K = `total`; all stages have equal length."""
    return min(k * stages // total, stages - 1)


def schedule_sigmas(schedule: Schedule) -> Tensor:
    """Return the noise level sigma_t = s_t / a_t of each timestep of a schedule, float64 [T]; infinite for pure noise.

    x_t = a_t x_0 + s_t eps is a_t (x_0 + sigma_t eps).
    """
    return schedule.s / schedule.a


def timesteps_at(schedule: Schedule, sigma: Tensor) -> Tensor:
    """Return, for each noise level sigma [B], the noisiest timestep whose s_t / a_t is at most sigma, int64 [B].

    The result is -1 (clean data) where there is no such timestep.
    """
    table = schedule_sigmas(schedule).to(sigma.device)
    return torch.searchsorted(table, sigma.double(), right=True) - 1


def even_levels(total: int, count: int) -> Tensor:
    """Return `count` timesteps out of T = `total`, evenly spaced from 0 to T - 1 and rounded, int64 [count].

    Raises:
        ValueError: `count` is below 2 or above T.
    """
    if not 2 <= count <= total:
        raise ValueError(f"cannot choose {count} noise levels out of {total} training timesteps; expected 2 to {total}")
    return torch.linspace(0, total - 1, count, dtype=torch.float64).round().long()
