"""Sampling of training timesteps from a density over 0..T-1, which is fixed or follows the losses of earlier steps."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ldm_kit.config import Config
from ldm_kit.diffusion import rng
from ldm_kit.diffusion.float64 import exact, has_float64
from ldm_kit.diffusion.respacing import shifted_time

HISTORY = 10  # number of newest losses that are stored for each timestep
UNIFORM_SHARE = 1e-3  # weight of the uniform density that is mixed into the density by losses

_Recorded = tuple[Tensor, Tensor, Tensor]  # a micro-batch's positions in the run, timesteps and losses


class TimestepSamplingConfig(Config):
    """Settings of the probability density over 0..T-1 from which training timesteps are drawn."""

    density: Literal["uniform", "logit_normal", "loss_second_moment"] = Field(
        default="uniform",
        description="density of t / T; loss_second_moment: more where losses are large, with weights that undo the "
        "bias, for a loss that is the bound alone (vlb)",
    )
    mean: float = Field(default=0.0, description="logit_normal: mean of logit(t / T); below 0 draws less noise")
    std: float = Field(default=1.0, gt=0, description="logit_normal: deviation of logit(t / T)")
    shift: float = Field(
        default=1.0,
        gt=0,
        description="flow: the times drawn are shifted towards noise (Esser et al. 2024, eq. 23); 1: not",
    )
    stratified: bool = Field(default=True, description="one stratum of the density for each sample of the global batch")


def sample_timesteps(
    config: TimestepSamplingConfig, seed: int, positions: Tensor, global_batch: int, total: int
) -> Tensor:
    """Draw training timesteps from a density that does not depend on losses.

    A sample's timestep depends on seed and position, not on how the global batch is split over ranks and micro-batches.

    Args:
        config: settings of the density.
        seed: seed of the training run.
        positions: position of each sample in the sequence of all training samples of the run, int64 [B].
        global_batch: number of samples in an optimiser step, summed over all ranks.
        total: number of training timesteps T.

    Returns:
        Timesteps, int64 [B], 0 to T-1.

    Raises:
        ValueError: the density depends on losses; only `TimestepSampler` can draw from it.
    """
    if config.density == "loss_second_moment":
        raise ValueError(
            "density loss_second_moment needs the losses of earlier steps, which this training does not store"
        )
    u = _quantiles(config, seed, exact(positions), global_batch)
    if config.density == "logit_normal":
        u = torch.sigmoid(config.mean + config.std * math.sqrt(2) * torch.erfinv(2 * u - 1))
    u = u if config.shift == 1 else shifted_time(u, config.shift)
    return (u * total).long().clamp(0, total - 1).to(positions.device)


def _quantiles(config: TimestepSamplingConfig, seed: int, positions: Tensor, global_batch: int) -> Tensor:
    u = rng.uniform(seed, "time", positions)
    return (positions % global_batch + u) / global_batch if config.stratified else u


def timesteps_at_quantiles(u: Tensor, probabilities: Tensor) -> Tensor:
    """Return the timesteps at quantiles of a density over timesteps (inverse transform sampling).

    Uniformly distributed quantiles give timesteps that are distributed by the density.

    Args:
        u: quantiles [B] in [0, 1).
        probabilities: probability of each timestep, [T], with sum 1.

    Returns:
        Timesteps, int64 [B], 0 to T-1.
    """
    edges = probabilities.to("cpu", u.dtype).cumsum(0).to(u.device)  # CUDA's cumulative sum does not repeat its bits
    return torch.searchsorted(edges / edges[-1], u, right=True).clamp_max(len(edges) - 1)


@dataclass(eq=False)
class LossHistory:
    """The newest losses at each timestep, which give a density over timesteps (Nichol & Dhariwal 2021, section 3.3).

    Args:
        losses: ring buffers of the newest HISTORY (10) losses of each timestep, float64 [T, HISTORY].
        seen: number of losses ever stored for each timestep, int64 [T].
    """

    losses: Tensor
    seen: Tensor

    @classmethod
    def empty(cls, total: int) -> "LossHistory":
        """Return a history without losses for T = `total` timesteps."""
        return cls(torch.zeros(total, HISTORY, dtype=torch.float64), torch.zeros(total, dtype=torch.long))

    def probabilities(self) -> Tensor:
        """Return the probability of each timestep, float64 [T].

        The density is 99.9 % proportional to the root mean square of each timestep's stored losses (Nichol &
        Dhariwal 2021, eq. 18) and 0.1 % uniform. Until HISTORY (10) losses of every timestep are stored, it is uniform.
        """
        total = len(self.seen)
        if bool((self.seen < HISTORY).any()):
            return torch.full((total,), 1 / total, dtype=torch.float64)
        root = self.losses.square().mean(1).sqrt().clamp_min(1e-30)  # all zero: uniform
        return (1 - UNIFORM_SHARE) * root / root.sum() + UNIFORM_SHARE / total

    def add(self, t: Tensor, losses: Tensor) -> None:
        """Store the losses [N] of N samples with timesteps t [N], in the order given.

        The newest HISTORY (10) losses of each timestep are kept.
        """
        t, order = t.sort(stable=True)
        count = torch.bincount(t, minlength=len(self.seen))
        rank = torch.arange(len(t)) - (count.cumsum(0) - count)[t]  # 0, 1, ... among the losses of the same timestep
        slot = (self.seen[t] + rank) % HISTORY
        newest = rank >= count[t] - HISTORY
        self.losses[t[newest], slot[newest]] = losses.double()[order][newest]
        self.seen += count


@dataclass(eq=False)
class TimestepSampler:
    """Draws the training timesteps of a run, with their importance weights.

    A sample's timestep does not depend on how the global batch is split over ranks and micro-batches. If the density
    follows the losses, call `draw` and `meet` for each micro-batch, and `after_step` once per optimiser step: only
    then does the density change, by the losses of the whole global batch.

    Args:
        config: settings of the density.
        seed: seed of the training run.
        global_batch: number of samples in an optimiser step, summed over all ranks.
        total: number of training timesteps T.
    """

    config: TimestepSamplingConfig
    seed: int
    global_batch: int
    total: int
    history: LossHistory | None = field(init=False)  # None: the density does not depend on losses
    met: list[_Recorded] = field(init=False, default_factory=list[_Recorded])  # micro-batches since last `after_step`

    def __post_init__(self) -> None:
        aware = self.config.density == "loss_second_moment"
        self.history = LossHistory.empty(self.total) if aware else None

    def draw(self, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Draw timesteps for training samples.

        Args:
            positions: position of each sample in the sequence of all training samples of the run, int64 [B].

        Returns:
            Timesteps t, int64 [B], and importance weights 1 / (T p_t), float64 [B] (on the CPU if the device of
            `positions` has no float64), where p_t is the probability of t. The weights are None for a density that
            does not depend on losses: such a density needs none.
        """
        if self.history is None:
            return sample_timesteps(self.config, self.seed, positions, self.global_batch, self.total), None
        where = exact(positions)
        p = self.history.probabilities().to(where.device)
        t = timesteps_at_quantiles(_quantiles(self.config, self.seed, where, self.global_batch), p)
        return t.to(positions.device), 1 / (self.total * p[t])

    def meet(self, positions: Tensor, t: Tensor, losses: Tensor) -> None:
        """Record the losses of a micro-batch, by which `after_step` updates the density.

        Args:
            positions: the samples' positions [B], as given to `draw`.
            t: the samples' timesteps [B], as `draw` returned them.
            losses: the samples' losses [B], not multiplied by importance weights.
        """
        if self.history is not None:
            self.met.append((positions, t, losses.detach()))

    def discard_step(self) -> None:
        """Discard the losses recorded since the last `after_step`, because the optimiser step is not applied."""
        self.met = []

    def after_step(self, across: Callable[[Tensor], Tensor]) -> None:
        """Update a density that follows the losses with the losses that `meet` recorded since the last step.

        Args:
            across: function that sums a tensor over all ranks; every rank must call `after_step`.
        """
        if self.history is None:
            return
        positions, t, losses = (torch.cat(column) for column in zip(*self.met, strict=True))
        dtype = torch.float64 if has_float64(losses.device) else torch.float32  # either holds t and the losses exactly
        batch = torch.zeros(2, self.global_batch, dtype=dtype, device=losses.device)
        batch[:, positions % self.global_batch] = torch.stack([t.to(batch), losses.to(batch)])
        all_times, all_losses = across(batch).cpu()  # exact: each column is nonzero on one rank only
        self.history.add(all_times.long(), all_losses)
        self.discard_step()

    def state(self) -> dict[str, Tensor]:
        """Return the stored losses of each timestep for a checkpoint; {} if the density does not depend on losses.

        It is to be called between two optimiser steps.
        """
        if self.history is None:
            return {}
        return {"times.losses": self.history.losses.clone(), "times.seen": self.history.seen.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the stored losses from what `state` returned."""
        if self.history is not None:
            self.history = LossHistory(state["times.losses"].clone(), state["times.seen"].clone())
