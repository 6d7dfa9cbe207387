"""Training timesteps: densities over 0..T-1, fixed or learned from the losses of earlier steps."""

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

HISTORY = 10  # losses stored for each timestep
UNIFORM_SHARE = 1e-3  # of the density that never depends on losses

_Recorded = tuple[Tensor, Tensor, Tensor]  # positions, timesteps, losses of a micro-batch


class TimestepSamplingConfig(Config):
    """Density from which training timesteps are drawn."""

    density: Literal["uniform", "logit_normal", "loss_second_moment"] = Field(
        default="uniform",
        description="density of t / T; loss_second_moment: more where losses are large, with weights that undo the "
        "bias, for a loss that is the bound alone (vlb)",
    )
    mean: float = Field(default=0.0, description="logit_normal: mean of logit(t / T); below 0 draws less noise")
    std: float = Field(default=1.0, gt=0, description="logit_normal: deviation of logit(t / T)")
    stratified: bool = Field(default=True, description="one stratum of the density for each sample of the global batch")


def sample_timesteps(
    config: TimestepSamplingConfig, seed: int, positions: Tensor, global_batch: int, total: int
) -> Tensor:
    """Draw training timesteps, the same for any split of the global batch.

    Args:
        config: the density.
        seed: of the run.
        positions: positions of the samples in the run, int64 [B].
        global_batch: number of samples in a step on all ranks.
        total: number of training timesteps T.

    Returns:
        Timesteps, int64 [B], 0 to T-1.

    Raises:
        ValueError: a density that depends on losses, which only `TimestepSampler` can draw from.
    """
    if config.density == "loss_second_moment":
        raise ValueError(
            "density loss_second_moment needs the losses of earlier steps, which this training does not store"
        )
    u = _quantiles(config, seed, exact(positions), global_batch)
    if config.density == "logit_normal":
        u = torch.sigmoid(config.mean + config.std * math.sqrt(2) * torch.erfinv(2 * u - 1))
    return (u * total).long().clamp(0, total - 1).to(positions.device)


def _quantiles(config: TimestepSamplingConfig, seed: int, positions: Tensor, global_batch: int) -> Tensor:
    u = rng.uniform(seed, "time", positions)
    return (positions % global_batch + u) / global_batch if config.stratified else u


def timesteps_at_quantiles(u: Tensor, probabilities: Tensor) -> Tensor:
    """Return the timesteps at quantiles of a density.

    Args:
        u: quantiles [B] in [0, 1).
        probabilities: density over timesteps [T], with sum 1.

    Returns:
        int64 [B], 0 to T-1.
    """
    edges = probabilities.to(u).cumsum(0)
    return torch.searchsorted(edges / edges[-1], u, right=True).clamp_max(len(edges) - 1)


@dataclass(eq=False)
class LossHistory:
    """The newest losses at each timestep, and the density that follows from them (Nichol & Dhariwal 2021, section 3.3).

    Args:
        losses: a ring buffer for each timestep, [T, HISTORY] float64.
        seen: number of losses that each timestep ever had, [T] int64.
    """

    losses: Tensor
    seen: Tensor

    @classmethod
    def empty(cls, total: int) -> "LossHistory":
        """Return a history without losses for `total` timesteps."""
        return cls(torch.zeros(total, HISTORY, dtype=torch.float64), torch.zeros(total, dtype=torch.long))

    def probabilities(self) -> Tensor:
        """Return the density [T] float64: by the root mean square (eq. 18), or uniform until every buffer is full."""
        total = len(self.seen)
        if bool((self.seen < HISTORY).any()):
            return torch.full((total,), 1 / total, dtype=torch.float64)
        root = self.losses.square().mean(1).sqrt().clamp_min(1e-30)  # all zero: uniform
        return (1 - UNIFORM_SHARE) * root / root.sum() + UNIFORM_SHARE / total

    def add(self, t: Tensor, losses: Tensor) -> None:
        """Store losses [N] at timesteps t [N], in their order; the oldest ones of a full buffer are overwritten."""
        t, order = t.sort(stable=True)
        count = torch.bincount(t, minlength=len(self.seen))
        rank = torch.arange(len(t)) - (count.cumsum(0) - count)[t]  # 0, 1, ... among those of the same timestep
        slot = (self.seen[t] + rank) % HISTORY
        newest = rank >= count[t] - HISTORY
        self.losses[t[newest], slot[newest]] = losses.double()[order][newest]
        self.seen += count


@dataclass(eq=False)
class TimestepSampler:
    """Training timesteps of a run and their importance weights, the same on every rank and for every split of a batch.

    A loss-aware density changes in `after_step` alone, once an optimiser step, by the losses of the whole global batch
    in the order of their positions; until then timesteps are drawn from the density of the step before.

    Args:
        config: the density.
        seed: of the run.
        global_batch: number of samples in a step on all ranks.
        total: number of training timesteps T.
    """

    config: TimestepSamplingConfig
    seed: int
    global_batch: int
    total: int
    history: LossHistory | None = field(init=False)
    met: list[_Recorded] = field(init=False, default_factory=list[_Recorded])

    def __post_init__(self) -> None:
        aware = self.config.density == "loss_second_moment"
        self.history = LossHistory.empty(self.total) if aware else None

    def draw(self, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Draw timesteps for the samples at the given positions.

        Args:
            positions: positions of the samples in the run, int64 [B].

        Returns:
            Timesteps int64 [B], and importance weights 1 / (T p_t), float64 [B], see `exact`; None: all are 1.
        """
        if self.history is None:
            return sample_timesteps(self.config, self.seed, positions, self.global_batch, self.total), None
        where = exact(positions)
        p = self.history.probabilities().to(where.device)
        t = timesteps_at_quantiles(_quantiles(self.config, self.seed, where, self.global_batch), p)
        return t.to(positions.device), 1 / (self.total * p[t])

    def meet(self, positions: Tensor, t: Tensor, losses: Tensor) -> None:
        """Record a micro-batch's losses [B], without importance weights, until `after_step` or `discard_step`."""
        if self.history is not None:
            self.met.append((positions, t, losses.detach()))

    def discard_step(self) -> None:
        """Discard the losses recorded since the last `after_step`, for a step that is not applied."""
        self.met = []

    def after_step(self, across: Callable[[Tensor], Tensor]) -> None:
        """Update a loss-aware density by the losses recorded in a step.

        Args:
            across: sums a tensor over the ranks, all of which must call it.
        """
        if self.history is None:
            return
        positions, t, losses = (torch.cat(column) for column in zip(*self.met, strict=True))
        dtype = torch.float64 if has_float64(losses.device) else torch.float32  # which holds times and losses exactly
        batch = torch.zeros(2, self.global_batch, dtype=dtype, device=losses.device)
        batch[:, positions % self.global_batch] = torch.stack([t.to(batch), losses.to(batch)])
        all_times, all_losses = across(batch).cpu()  # one rank fills each column, so that sums are exact
        self.history.add(all_times.long(), all_losses)
        self.discard_step()

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint must hold, between steps."""
        if self.history is None:
            return {}
        return {"times.losses": self.history.losses.clone(), "times.seen": self.history.seen.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        if self.history is not None:
            self.history = LossHistory(state["times.losses"].clone(), state["times.seen"].clone())
