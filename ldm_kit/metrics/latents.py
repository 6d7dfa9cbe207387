"""Statistics of an autoencoder's latents that tell how hard they are to generate: no decoder, no training is needed.

Reconstruction errors do not rank autoencoders by how well a diffusion model learns their latents. Irreducible variance
and spectral share do so better (arXiv 2606.03578), among latents of one shape: values of different shapes are not
comparable.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

FLIP_FLOPS = 10  # rounds of the estimate of a separable covariance; it changes little after the third
_SINGULAR = 1e-10  # eigenvalues below this share of the largest count as 0


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation of each channel over all pictures and positions."""

    mean: Tensor  # float64 [C]
    deviation: Tensor  # float64 [C]; the mean square is divided by N H W


def channel_statistics(latents: Tensor) -> ChannelStatistics:
    """Return the mean and the standard deviation of each channel of latents [N, C, H, W], float64 on the CPU.

    Raises:
        ValueError: latents are not finite numbers [N, C, H, W].
    """
    values = _checked(latents).transpose(0, 1).flatten(1)
    return ChannelStatistics(values.mean(1), values.std(1, correction=0))


def irreducible_variance(latents: Tensor, groups: Tensor) -> float:
    """Return the velocity irreducible variance (VIV; Zhong et al. 2026, arXiv 2606.03578, eq. 3-5).

    It is the part of a flow model's loss that no network can remove: the variance of the velocity x - eps given the
    noised latent t x + (1 - t) eps, the time t and the class, averaged over t, if the latents x of each class are
    Gaussian. With l_d, d = 1..D, the eigenvalues of the covariance of a class it is (pi / 2) mean_d sqrt(l_d), averaged
    over classes; D = C H W. Less is easier to learn; at most pi / 2.

    Latents are first scaled to mean 0 and deviation 1 in each channel. The covariance of a class is that of its
    latents about their mean, divided by their number, approximated by the product of a covariance of channels and one
    of positions (Kronecker product, estimated by flip-flop: Dutilleul 1999) and scaled to the true total variance.
    Unlike the paper's equation 5 the sum over D is a mean, as in its published values (1.14 for a convolutional
    autoencoder, 0.37 for one aligned with features).

    Args:
        latents: [N, C, H, W].
        groups: int64 [N], the class, or another number of what the model is conditioned on; all the same for a model
            without condition.

    Raises:
        ValueError: latents are not finite numbers [N, C, H, W], groups are not whole numbers [N], or a group has
            C / (H W) + H W / C + 1 latents or fewer, from which its covariance cannot be estimated.
    """
    values = _checked(latents)
    if groups.shape != values.shape[:1] or groups.is_floating_point():
        raise ValueError(
            f"expected a whole number for each of {len(values)} latents, got {groups.dtype} {[*groups.shape]}"
        )
    mean, deviation = (x[:, None, None] for x in channel_statistics(values))
    matrices = ((values - mean) / deviation.clamp_min(1e-8)).flatten(2)
    channels, positions = matrices.shape[1:]
    least = least_latents(channels, positions)
    numbers, counts = groups.cpu().unique(return_counts=True)
    if int(counts.min()) < least:
        raise ValueError(
            f"group {int(numbers[counts.argmin()])} has {int(counts.min())} latents; expected at least {least} in each "
            f"group of latents of {channels} channels and {positions} positions"
        )
    with tqdm(total=len(numbers) * FLIP_FLOPS, desc="VIV", unit="round", leave=False, delay=2.0) as bar:
        variances = [_group_variance(matrices[groups.cpu() == number], bar.update) for number in numbers]
    return sum(variances) / len(numbers)


def least_latents(channels: int, positions: int) -> int:
    """Return the fewest latents of a group from which `irreducible_variance` estimates a covariance.

    Args:
        channels: C, channels of a latent.
        positions: H W, positions of a latent.
    """
    return math.floor(channels / positions + positions / channels) + 2


def _group_variance(matrices: Tensor, progress: Callable[[], object]) -> float:
    """Return the irreducible variance of one group of standardised latents [N, C, S]; see `irreducible_variance`.

    `progress` is called after each of FLIP_FLOPS rounds.
    """
    centred = matrices - matrices.mean(0)
    eigenvalues = _separable_eigenvalues(centred, progress)
    total = centred.square().sum() / len(centred)
    scale = total / eigenvalues.sum().clamp_min(1e-300)
    return math.pi / 2 * (scale * eigenvalues).sqrt().mean().item()


def _separable_eigenvalues(centred: Tensor, progress: Callable[[], object]) -> Tensor:
    """Return the eigenvalues [C S] of the separable covariance of centred [N, C, S], up to a common factor.

    Flip-flop: the covariance of channels from latents whose positions are whitened, then that of positions from
    latents whose channels are whitened, and so on. `progress` is called after each round.
    """
    rows = centred.transpose(1, 2)
    channels = torch.linalg.eigh(_second_moment(centred))
    positions = torch.linalg.eigh(_second_moment(rows @ _whitening(*channels)))
    progress()
    for _ in range(FLIP_FLOPS - 1):
        channels = torch.linalg.eigh(_second_moment(centred @ _whitening(*positions)))
        positions = torch.linalg.eigh(_second_moment(rows @ _whitening(*channels)))
        progress()
    return torch.outer(channels[0].clamp_min(0), positions[0].clamp_min(0)).flatten()


def _second_moment(x: Tensor) -> Tensor:
    """Return the mean of x_n x_n^T over the N matrices x [N, A, B], divided by B: [A, A]."""
    columns = x.transpose(0, 1).flatten(1)
    return columns @ columns.T / columns.shape[1]


def _whitening(values: Tensor, vectors: Tensor) -> Tensor:
    """Return U L^-1/2 for eigenvectors U and eigenvalues L, 0 in directions without variance."""
    varied = values > _SINGULAR * values.max()
    return vectors * torch.where(varied, values.clamp_min(1e-300).rsqrt(), 0.0)


def spectral_share(latents: Tensor, threshold: float = 0.5) -> float:
    """Return the share of the latents' energy at high spatial frequencies (SEC; arXiv 2606.03578, eq. 7-9).

    With E_uv the mean over pictures and channels of the squared orthonormal 2-D discrete cosine transform (DCT-II) it
    is the sum of E_uv over u + v > threshold (H - 1 + W - 1), divided by the sum over all u, v. The mean of a channel
    counts at u = v = 0: subtract it first to compare autoencoders whose latents are not centred.

    Args:
        latents: [N, C, H, W], at least 2 positions.
        threshold: share of the highest frequency from which on a frequency is high, in [0, 1]. With 0.5 it is the upper
            half of the band. A published share compares only if its threshold is stated.

    Raises:
        ValueError: latents are not finite numbers [N, C, H, W] with at least 2 positions, or all are 0, or the
            threshold is out of range.
    """
    low, high = spectral_energy(latents, threshold).sum(0).tolist()
    if not low + high > 0:
        raise ValueError("expected latents that are not all 0")
    return high / (low + high)


def spectral_energy(latents: Tensor, threshold: float = 0.5) -> Tensor:
    """Return each picture's energy at low and at high spatial frequencies, float64 [N, 2], as `spectral_share` sums it.

    Args:
        latents: [N, C, H, W], at least 2 positions.
        threshold: share of the highest frequency from which on a frequency is high, in [0, 1].

    Raises:
        ValueError: latents are not finite numbers [N, C, H, W] with at least 2 positions, or the threshold is out of
            range.
    """
    values = _checked(latents)
    height, width = values.shape[2:]
    if height * width < 2 or not 0 <= threshold <= 1:
        raise ValueError(f"expected 2 positions and a threshold in [0, 1], got {height} x {width} and {threshold}")
    energy = (_cosines(height) @ values @ _cosines(width).T).square().sum(1)
    frequency = torch.arange(height)[:, None] + torch.arange(width)
    high = frequency > threshold * (height + width - 2)
    return torch.stack([energy[:, ~high].sum(1), energy[:, high].sum(1)], 1)


def _cosines(size: int) -> Tensor:
    """Return the matrix of the orthonormal DCT-II, float64 [size, size]: row u is cos(pi u (2 i + 1) / (2 size))."""
    u, i = torch.arange(size)[:, None].double(), torch.arange(size).double()
    rows = (math.pi * u * (2 * i + 1) / (2 * size)).cos() * math.sqrt(2 / size)
    return torch.where(u == 0, rows / math.sqrt(2), rows)


def _checked(latents: Tensor) -> Tensor:
    """Return latents as float64 on the CPU; raise ValueError if they are not finite numbers [N, C, H, W]."""
    if latents.dim() != 4 or not latents.numel():
        raise ValueError(f"expected latents [N, C, H, W], got {[*latents.shape]}")
    values = latents.detach().cpu().double()
    if not values.isfinite().all():
        raise ValueError("expected finite latents, got NaN or infinity")
    return values
