"""A diffusion model of semantic codes, which makes a generator of DiffAE or PDAE.

Paper:    Preechakul et al. 2022, "Diffusion Autoencoders", section 3.4 and appendix A.1; Zhang et al. 2022.
Idea:     diffuse the codes of the training set, normalised per dimension; draw a code, then a picture under it. A class
          or a caption, pooled to one vector, is told beside the time (ours).
Parts:    a trained semantic model's averaged encoder, whose codes are computed once; an MLP with skips.
Run:      accelerate launch train_ldm.py configs/semantic/prior.yaml
Expected: see the header of that config.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import AliasChoices, Field, model_validator
from torch import Tensor, nn

from conditioning.base import Conditioner, Inputs, drop
from conditioning.factory import ConditioningConfig
from conditioning.labels import ClassConfig
from conditioning.none import NoConfig
from ldm_kit.config import Config
from ldm_kit.diffusion import rng, schedule
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.diffusion.timesteps import TimestepSamplingConfig, sample_timesteps
from ldm_kit.methods.base import RunConfig, eval_mode
from ldm_kit.methods.latent import dropped_at
from ldm_kit.methods.semantic import HELDOUT_SEED, refuse_aware
from ldm_kit.models.prior import apply_mlp
from ldm_kit.nets.mlp_skip import SkipMLP, SkipMLPConfig
from ldm_kit.training.optim import OptimConfig
from ldm_kit.training.task import LossTerm

PLAYER = "prior"


class DrawConfig(Config):
    """The pictures that a run draws while it trains, always from the same seeds."""

    steps: int = Field(default=50, ge=1, description="DDIM steps of the code")
    guidance_scale: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="classifier-free guidance of the code; 1 is none"
    )
    decode_steps: int = Field(default=20, ge=1, description="DDIM steps of the picture")
    stop: float = Field(
        default=0.0, ge=0, le=1, description="PDAE: share of the last steps that is left to the frozen model (0.3)"
    )


class PriorRun(RunConfig):
    """A diffusion model of a semantic model's codes."""

    method: Literal["prior"] = Field(description="a diffusion model of codes")
    model: str = Field(min_length=1, description="folder of a trained semantic model, or of its run; never changed")
    net: SkipMLPConfig = SkipMLPConfig()
    schedule: ScheduleConfig = ScheduleConfig(kind="constant")
    timestep_sampling: TimestepSamplingConfig = Field(
        default=TimestepSamplingConfig(),
        validation_alias=AliasChoices("timestep_sampling", "times"),
        description="density of training times",
    )
    condition: ConditioningConfig = NoConfig()
    condition_dropout: float = Field(
        validation_alias=AliasChoices("condition_dropout", "condition_drop"),
        default=0.1,
        ge=0,
        lt=1,
        description="share of samples trained on the null condition",
    )
    sample: DrawConfig = DrawConfig()

    @model_validator(mode="after")
    def _fits(self) -> "PriorRun":
        refuse_aware(self.timestep_sampling)
        if self.flip:
            raise ValueError("flip must be false: codes are those of the pictures as they are")
        if isinstance(self.condition, ClassConfig) and self.condition.form != "vector":
            raise ValueError("condition.form must be vector: a prior over codes does not attend to tokens")
        if self.schedule.kind == "flow" or self.schedule.zero_terminal:
            raise ValueError("schedule must be one of betas that does not end in pure noise, such as constant")
        if self.sample.steps > self.schedule.num_train_timesteps:
            raise ValueError(
                f"sample.steps is {self.sample.steps}, but schedule.num_train_timesteps only {self.schedule.num_train_timesteps}"
            )
        if isinstance(self.condition, NoConfig) and self.sample.guidance_scale != 1:
            raise ValueError("sample.guidance_scale needs a condition to guide to; leave it out, or give a condition")
        return self


class ConditionedMLP(nn.Module):
    """MLP and conditioner as one module, so that DDP around it sees every gradient."""

    def __init__(self, mlp: SkipMLP, conditioner: Conditioner) -> None:
        super().__init__()
        self.mlp, self.conditioner = mlp, conditioner

    def forward(self, z: Tensor, t: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Noisy normalised codes [B, D], times [B] and the conditioner's prepared inputs to eps [B, D]."""
        return apply_mlp(self.mlp, z, t, self.conditioner(**inputs))


class PriorTask:
    """The denoising of codes, for the training loop."""

    def __init__(self, config: PriorRun, mlp: SkipMLP, conditioner: Conditioner) -> None:
        self.config, self.module = config, ConditionedMLP(mlp, conditioner)
        self.null = conditioner.null_inputs()
        self.schedule = schedule.build(config.schedule)
        self.wrapped: nn.Module = self.module

    @property
    def modules(self) -> dict[str, nn.Module]:
        """MLP and conditioner share one optimiser."""
        return {PLAYER: self.module}

    @property
    def ema_modules(self) -> dict[str, nn.Module]:
        """By component folder of the saved prior."""
        return {"mlp": self.module.mlp, **self.module.conditioner.trainable}

    @property
    def optim(self) -> dict[str, OptimConfig]:
        """The run's."""
        return {PLAYER: self.config.optim}

    def set_ddp_modules(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Take the module that DDP wrapped, and bring the tables to its device."""
        self.wrapped, device = wrapped[PLAYER], self._device
        self.schedule = self.schedule.to(device)
        self.null = {name: value.to(device) for name, value in self.null.items()}

    def state(self) -> dict[str, Tensor]:
        """Nothing beside weights."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take back."""

    def losses(self, batch: Mapping[str, Any], step: int) -> Iterator[LossTerm]:
        """Mean absolute error of eps; noise, times and drops belong to the position."""
        config, position = self.config, batch["position"]
        t = sample_timesteps(
            config.timestep_sampling, config.seed, position, config.train.batch_size, len(self.schedule)
        )
        dropped = dropped_at(config.seed, position, config.condition_dropout)
        inputs = drop(batch["inputs"], self.null, dropped)
        yield PLAYER, self.errors(batch, t, config.seed, inputs, self.wrapped).mean(), {}

    def errors(self, batch: Mapping[str, Any], t: Tensor, seed: int, inputs: Inputs, module: nn.Module) -> Tensor:
        """Absolute errors [B] of eps at times t [B], with noise addressed by `seed` and the batch's positions."""
        z = batch["z"]
        eps = rng.normal(seed, "noise", batch["position"], z.shape[1:])
        out = module(self.schedule.add_noise(z, eps, t).to(z.dtype), t, inputs)
        return (out.float() - eps).abs().mean(1)

    @torch.no_grad()
    def heldout_loss(self, codes: Tensor, inputs: Inputs) -> float:
        """Mean error over held-out normalised codes [N, D], each at its own fixed time and noise."""
        place = torch.arange(len(codes))
        t = ((place + 0.5) / len(codes) * len(self.schedule)).long().to(self._device)
        batch = {"z": codes.to(self._device), "position": place.to(self._device)}
        chosen = {name: value.to(self._device) for name, value in inputs.items()}
        with eval_mode(self.module):
            return float(self.errors(batch, t, HELDOUT_SEED, chosen, self.module).double().mean())

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device
