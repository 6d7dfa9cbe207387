"""Which times a network trains on: densities over 0..T-1, given beforehand or learned from the losses met so far."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ldm_kit.config import Config
from ldm_kit.diffusion import rng

KEPT = 10  # losses remembered for each time
UNIFORM_SHARE = 1e-3  # of the density that never depends on losses

_Met = tuple[Tensor, Tensor, Tensor]  # positions, times, losses of a micro-batch


class TimestepSamplingConfig(Config):
    """How training times are drawn."""

    density: Literal["uniform", "logit_normal", "loss_second_moment"] = Field(
        default="uniform",
        description="density of t / T; loss_second_moment: more where losses are large, with weights that undo the "
        "bias, for a loss that is the bound alone (vlb)",
    )
    mean: float = Field(default=0.0, description="logit_normal: mean of logit(t / T); below 0 draws less noise")
    std: float = Field(default=1.0, gt=0, description="logit_normal: deviation of logit(t / T)")
    stratified: bool = Field(default=True, description="one stratum of the density for each place in the global batch")


def sample_timesteps(
    config: TimestepSamplingConfig, seed: int, positions: Tensor, global_batch: int, total: int
) -> Tensor:
    """Integer training times [B] for sample positions [B], the same for any split of the global batch.

    Raises:
        ValueError: a density that depends on losses, which only `TimestepSampler` can draw from.
    """
    if config.density == "loss_second_moment":
        raise ValueError("density loss_second_moment needs the losses met so far; this training keeps none of them")
    u = _places(config, seed, positions, global_batch)
    if config.density == "logit_normal":
        u = torch.sigmoid(config.mean + config.std * math.sqrt(2) * torch.erfinv(2 * u - 1))
    return (u * total).long().clamp(0, total - 1)


def _places(config: TimestepSamplingConfig, seed: int, positions: Tensor, global_batch: int) -> Tensor:
    u = rng.uniform(seed, "time", positions)
    return (positions % global_batch + u) / global_batch if config.stratified else u


def timesteps_at_quantiles(u: Tensor, probabilities: Tensor) -> Tensor:
    """The times [B] at quantiles u [B] in [0, 1) of a density [T] over times that sums to 1."""
    edges = probabilities.to(u).cumsum(0)
    return torch.searchsorted(edges / edges[-1], u, right=True).clamp_max(len(edges) - 1)


@dataclass(eq=False)
class LossHistory:
    """The newest losses at each time, and the density that they ask for (Nichol & Dhariwal 2021, section 3.3)."""

    losses: Tensor  # [T, KEPT] float64, each row a ring
    seen: Tensor  # [T] int64: how many losses a time ever had

    @classmethod
    def empty(cls, total: int) -> "LossHistory":
        """No loss yet at any of `total` times."""
        return cls(torch.zeros(total, KEPT, dtype=torch.float64), torch.zeros(total, dtype=torch.long))

    def probabilities(self) -> Tensor:
        """Density [T] float64: uniform until every row is full, then by the root of the mean squared loss (eq. 18)."""
        total = len(self.seen)
        if bool((self.seen < KEPT).any()):
            return torch.full((total,), 1 / total, dtype=torch.float64)
        root = self.losses.square().mean(1).sqrt().clamp_min(1e-30)  # all zero: uniform
        return (1 - UNIFORM_SHARE) * root / root.sum() + UNIFORM_SHARE / total

    def add(self, t: Tensor, losses: Tensor) -> None:
        """Take in losses [N] at times [N], the later ones counting as newer; each row forgets its oldest."""
        t, order = t.sort(stable=True)
        count = torch.bincount(t, minlength=len(self.seen))
        rank = torch.arange(len(t)) - (count.cumsum(0) - count)[t]  # 0, 1, ... among those of the same time
        slot = (self.seen[t] + rank) % KEPT
        newest = rank >= count[t] - KEPT
        self.losses[t[newest], slot[newest]] = losses.double()[order][newest]
        self.seen += count


@dataclass(eq=False)
class TimestepSampler:
    """The times of a run and the weights that undo their density, the same on every rank and for every split.

    A loss-aware density changes in `settle` alone, once per optimiser step, by the losses of the whole global batch in
    the order of their places in it; until then all draw from the density of the step before.
    """

    config: TimestepSamplingConfig
    seed: int
    global_batch: int
    total: int
    history: LossHistory | None = field(init=False)
    met: list[_Met] = field(init=False, default_factory=list[_Met])

    def __post_init__(self) -> None:
        aware = self.config.density == "loss_second_moment"
        self.history = LossHistory.empty(self.total) if aware else None

    def draw(self, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Times [B] for positions [B], and their importance weights 1 / (T p_t) [B] float64; None: all are 1."""
        if self.history is None:
            return sample_timesteps(self.config, self.seed, positions, self.global_batch, self.total), None
        p = self.history.probabilities().to(positions.device)
        t = timesteps_at_quantiles(_places(self.config, self.seed, positions, self.global_batch), p)
        return t, 1 / (self.total * p[t])

    def meet(self, positions: Tensor, t: Tensor, losses: Tensor) -> None:
        """Remember a micro-batch's losses [B], without importance weights, until `settle` or `discard`."""
        if self.history is not None:
            self.met.append((positions, t, losses.detach()))

    def discard_step(self) -> None:
        """Forget what was met since the last step that stands."""
        self.met = []

    def after_step(self, across: Callable[[Tensor], Tensor]) -> None:
        """Let the density follow what was met in a step; `across` sums a tensor over the ranks, all of which call."""
        if self.history is None:
            return
        positions, t, losses = (torch.cat(parts) for parts in zip(*self.met, strict=True))
        places = torch.zeros(2, self.global_batch, dtype=torch.float64, device=losses.device)
        places[:, positions % self.global_batch] = torch.stack([t.to(places), losses.to(places)])
        times, found = across(places).cpu()  # each place is filled by one rank, so that sums are exact
        self.history.add(times.long(), found)
        self.discard_step()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold, between steps."""
        if self.history is None:
            return {}
        return {"times.losses": self.history.losses.clone(), "times.seen": self.history.seen.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        if self.history is not None:
            self.history = LossHistory(state["times.losses"].clone(), state["times.seen"].clone())
