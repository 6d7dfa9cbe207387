"""Noise levels of the method `consistency`: which timesteps student and target see at which step, and their weights.

A curriculum changes the timesteps during training. Each choice is a function of config, step and a sample's position
(its number among all samples of the run), so that a resumed run continues the curriculum as if it had never stopped.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.diffusion import consistency_curricula as curricula
from ldm_kit.diffusion import rng
from ldm_kit.diffusion.float64 import exact
from ldm_kit.diffusion.schedule import Schedule, ScheduleConfig
from ldm_kit.diffusion.timesteps import TimestepSamplingConfig, sample_timesteps, timesteps_at_quantiles
from ldm_kit.methods.consistency_config import ConsistencyRun

MU_0 = 0.95  # decay of CT's target network at the start (Song et al. 2023)


@dataclass(frozen=True, eq=False)
class Levels:
    """Choice of timesteps, loss weights and guidance scales for a run's samples, and of the target network's decay.

    Args:
        config: the run's config.
        schedule: the noise schedule of the student.
    """

    config: ConsistencyRun
    schedule: Schedule

    def target_decay(self, step: int) -> float:
        """Return the decay of the target network's average at a step (0 is the first)."""
        config = self.config
        if config.decay is not None:
            return config.decay
        return curricula.ct_decay(step, config.train.steps, *config.intervals, MU_0)

    def level_count(self, step: int) -> int:
        """Return the number N(k) of discrete noise levels in step k = `step` (0 is the first) of mode train."""
        count = curricula.ct_levels if self.config.curriculum == "ct" else curricula.ict_levels
        return count(step, self.config.train.steps, *self.config.intervals)

    def student_timesteps(self, position: Tensor, step: int) -> Tensor:
        """Draw the student's timesteps [B] at step `step`, for samples at these positions [B] in the run."""
        config, size, total = self.config, self.config.train.batch_size, len(self.schedule)
        if config.mode != "train":
            return sample_timesteps(config.timestep_sampling, config.seed, position, size, total)
        grid = curricula.even_levels(total, self.level_count(step)).to(position.device)
        if config.curriculum == "ct":
            uniform = TimestepSamplingConfig()
            return grid[1 + sample_timesteps(uniform, config.seed, position, size, len(grid) - 1)]
        where = exact(position)
        sigmas = curricula.schedule_sigmas(self.schedule).to(where.device)[grid.to(where.device)]
        u = rng.uniform(config.seed, "time", where)
        chosen = timesteps_at_quantiles(u, curricula.level_probabilities(sigmas, *config.log_sigma))
        return grid[1 + chosen.to(position.device)]

    def target_timesteps(self, t: Tensor, step: int) -> Tensor:
        """Return the target network's timesteps [B] at step `step`, each below the student's, t [B]; -1: clean data."""
        config, total = self.config, len(self.schedule)
        match config.mode:
            case "distill":
                return (t - total // config.levels).clamp_min(-1)
            case "train":
                grid = curricula.even_levels(total, self.level_count(step)).to(t.device)
                below = torch.searchsorted(grid, t) - 1
                return torch.where(below >= 0, grid[below.clamp_min(0)], -1)
            case "tune":
                stage = curricula.ect_stage(step, config.train.steps, config.stages)
                where = exact(t)
                sigma = curricula.schedule_sigmas(self.schedule).to(where.device)[where]
                r = curricula.timesteps_at(self.schedule, curricula.ect_mapping(sigma, stage, config.q))
                return r.minimum(where - 1).to(t.device)

    def scales(self, position: Tensor, seed: int) -> Tensor | None:
        """Return the guidance scales [B] that samples are trained with; None: no guidance.

        If the config gives a range, `seed` and a sample's position [B] in the run determine the scale that is drawn.
        """
        match self.config.guidance:
            case (low, high):
                u = rng.uniform(seed, "guidance", exact(position))
                return (low + (high - low) * u).float().to(position.device)
            case scale if scale != 1:
                return torch.full((len(position),), float(scale), device=position.device)  # pyright: ignore[reportArgumentType]
            case _:
                return None

    def weight(self, t: Tensor, r: Tensor) -> Tensor:
        """Return the loss weights [B] of samples for timesteps t [B] of the student and r [B] of the target network."""
        if not self.config.weighted:
            return torch.ones_like(t, dtype=torch.float32)
        high, low = ((s / a) for a, s in (self.schedule.alpha_sigma(exact(time)) for time in (t, r)))
        return curricula.inverse_gaps(high, low)


def check_levels(config: ConsistencyRun, schedule: ScheduleConfig) -> None:
    """Raise UserError if a config states another schedule than the student's, or more levels or steps than it has.

    `schedule` is the student's noise schedule; steps are those of sampling, levels those of distillation.
    """
    total = schedule.num_train_timesteps
    if config.schedule not in (ScheduleConfig(), schedule):
        raise UserError(
            f"schedule is {config.schedule.kind} with {config.schedule.num_train_timesteps} training timesteps, but "
            f"that of base {config.base} is {schedule.kind} with {total}; leave schedule out"
        )
    counts = {"levels": config.levels if config.mode == "distill" else 1, "sample.steps": config.sample.steps}
    for name, count in counts.items():
        if count > total:
            raise UserError(
                f"{name} is {count}, but the model has {total} training timesteps; expected at most as many"
            )
