"""Stage 2 of latent diffusion (and, with pixels as their own latents, DDPM).

Paper:    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", sections 3.2 and 3.3.
Idea:     diffuse the latents of a frozen autoencoder; a U-Net attends to a text or class encoder tau_theta(y). It may
          also learn the variance of its way down (Nichol & Dhariwal 2021, section 3.1).
Parts:    cached latents, a conditioner (trained jointly, frozen and cached, or none), a U-Net.
Run:      accelerate launch train_ldm.py configs/openmoji/ldm_text.yaml
Expected: see the header of that config.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import AliasChoices, Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from conditioning.base import Conditioner, Inputs, drop
from conditioning.factory import ConditioningConfig
from conditioning.none import NoConfig
from ldm_kit.config import Config
from ldm_kit.data.images import PictureSet
from ldm_kit.data.latents import Latents
from ldm_kit.diffusion import rng, schedule
from ldm_kit.diffusion.loss import Errors, LossName, Objective
from ldm_kit.diffusion.posterior import VarianceType
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.timesteps import TimestepSampler
from ldm_kit.methods.base import Collectives, NoisedRun
from ldm_kit.methods.inputs import noise_batch
from ldm_kit.nets.apply import apply_unet
from ldm_kit.nets.unet import UNetConfig
from ldm_kit.solvers.table import SamplerName
from ldm_kit.training.optim import OptimConfig
from ldm_kit.training.task import LossTerm


class SampleConfig(Config):
    """The pictures that a run draws while it trains, always from the same seeds."""

    prompts: tuple[str, ...] = Field(
        default=(), description="what to draw; empty: the first captions or classes of the set"
    )
    steps: int = Field(default=20, gt=0, description="sampling steps")
    solver: SamplerName = Field(default="dpm++", description="how the noise is walked down")
    guidance_scale: float = Field(default=3.0, ge=0, description="classifier-free guidance; 1 is none")


class LatentRun(NoisedRun):
    """A denoiser of latents (or pixels) under a condition."""

    method: Literal["latent"] = Field(default="latent", description="diffusion of latents, or of pixels")
    condition: ConditioningConfig = NoConfig()
    condition_dropout: float = Field(
        validation_alias=AliasChoices("condition_dropout", "condition_drop"),
        default=0.1,
        ge=0,
        lt=1,
        description="share of samples trained on the null condition",
    )
    unet: UNetConfig
    prediction_type: PredictionType = Field(
        validation_alias=AliasChoices("prediction_type", "target"), default="v", description="what the network predicts"
    )
    min_snr: float | None = Field(default=None, gt=0, description="gamma of min-SNR weighting; null: plain")
    variance: VarianceType = Field(
        default="small",
        description="of the ancestral steps (ddpm): small, the posterior's; large, beta; learned_range, where the "
        "network says between the two, with twice the output channels",
    )
    loss: LossName = Field(
        default="simple",
        description="simple: squared error of the target; vlb: the variational bound alone; hybrid: both, the bound "
        "training the variance alone (the default for learned_range)",
    )
    vb_weight: float = Field(
        default=1e-3,
        gt=0,
        description="hybrid: weight of the whole bound, a sum of T terms; a step draws one of them and multiplies by T",
    )
    sample: SampleConfig = SampleConfig()

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, given: Any) -> Any:
        """A learned variance is trained by the hybrid loss unless another is asked for."""
        if isinstance(given, Mapping) and given.get("variance") == "learned_range":
            return {"loss": "hybrid", **given}
        return given

    @model_validator(mode="after")
    def _fits(self) -> "LatentRun":
        if (self.prediction_type == "flow") != (self.schedule.kind == "flow"):
            raise ValueError(
                f"prediction_type {self.prediction_type!r} does not go with the {self.schedule.kind} schedule; prediction_type flow goes with the "
                "flow schedule, and eps, x0 and v with all others"
            )
        if self.sample.steps > self.schedule.num_train_timesteps:
            raise ValueError(
                f"sample.steps is {self.sample.steps}, but schedule.num_train_timesteps only {self.schedule.num_train_timesteps}"
            )
        betas = self.schedule.betas
        if self.prediction_type == "eps" and (self.schedule.zero_terminal or (betas is not None and betas[-1] == 1)):
            raise ValueError("prediction_type 'eps' is undefined where the schedule ends in pure noise; take v or x0")
        return self

    @model_validator(mode="after")
    def _has_a_bound(self) -> "LatentRun":
        learned = self.variance == "learned_range"
        if self.prediction_type == "flow" and (learned or self.loss != "simple"):
            asked = "variance learned_range" if learned else f"loss {self.loss}"
            raise ValueError(
                f"{asked} needs the variational bound of a variance-preserving schedule; the flow schedule has none"
            )
        if learned and self.loss == "simple":
            raise ValueError("loss simple never trains the variance that learned_range learns; expected hybrid or vlb")
        if self.loss == "hybrid" and not learned:
            raise ValueError(f"loss hybrid trains a learned variance, but variance is {self.variance}, which is fixed")
        if self.loss == "vlb" and self.min_snr is not None:
            raise ValueError("min_snr weighs the squared error, which loss vlb has not; leave it out")
        return self


class LatentDiffusion(nn.Module):
    """U-Net and conditioner as one module, so that DDP around it sees every gradient."""

    def __init__(self, unet: nn.Module, conditioner: Conditioner) -> None:
        super().__init__()
        self.unet, self.conditioner = unet, conditioner

    def forward(self, x: Tensor, t: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Noisy latents [B, Z, h, w], times [B] and the conditioner's prepared inputs to the network's output."""
        return apply_unet(self.unet, x, t, self.conditioner(**inputs))  # pyright: ignore[reportArgumentType]


class Latent:
    """The denoising task, for the training loop."""

    def __init__(
        self, config: LatentRun, unet: nn.Module, conditioner: Conditioner, ranks: Collectives | None = None
    ) -> None:
        self.config, self.ranks = config, ranks or Collectives()
        self.module = LatentDiffusion(unet, conditioner)
        self.null = conditioner.null_inputs()
        self.schedule = schedule.build(config.schedule)
        self.times = TimestepSampler(config.timestep_sampling, config.seed, config.train.batch_size, len(self.schedule))
        self.objective = Objective(
            config.prediction_type,
            config.loss,
            config.variance,
            config.vb_weight,
            config.min_snr,
            levels=config.autoencoder is None,
        )
        self.wrapped: nn.Module = self.module

    @property
    def modules(self) -> dict[str, nn.Module]:
        """U-Net and trained conditioner share one optimiser."""
        return {"denoiser": self.module}

    @property
    def ema_modules(self) -> dict[str, nn.Module]:
        """By component folder of the saved model."""
        return {"unet": self.module.unet, **self.module.conditioner.trainable}

    @property
    def optim(self) -> dict[str, OptimConfig]:
        """The run's."""
        return {"denoiser": self.config.optim}

    def set_ddp_modules(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Take the module that DDP wrapped, and bring the tables to its device."""
        self.wrapped = wrapped["denoiser"]
        device = next(self.module.parameters()).device
        self.schedule = self.schedule.to(device)
        self.null = {name: value.to(device) for name, value in self.null.items()}

    def state(self) -> dict[str, Tensor]:
        """The losses that a loss-aware density of times goes by."""
        return self.times.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self.times.load_state(state)

    def after_step(self, step: int, optimisers: Mapping[str, Optimizer]) -> None:
        """A step stands: a loss-aware density of times follows its losses."""
        self.times.after_step(self.ranks.total)

    def discard_step(self) -> None:
        """A step is void: so are its losses."""
        self.times.discard_step()

    def losses(self, batch: Mapping[str, Any], step: int) -> Iterator[LossTerm]:
        """The configured loss; noise, times and drops belong to the position. Logs the bound's mean term as `vb`."""
        position = batch["position"]
        t, weight = self.times.draw(position)
        dropped = dropped_at(self.config.seed, position, self.config.condition_dropout)
        errors = self.errors(batch, t, self.config.seed, drop(batch["inputs"], self.null, dropped), self.wrapped)
        each = self.objective.combined(self.objective.weighted(errors, t, self.schedule), len(self.schedule))
        self.times.meet(position, t, each)
        weight = torch.ones_like(each) if weight is None else weight.to(each)
        logs = {} if errors.bits is None else {"vb": (errors.bits * weight).mean()}
        yield "denoiser", (each * weight).mean(), logs

    def errors(
        self, batch: Mapping[str, Any], t: Tensor, seed: int, inputs: Inputs, network: Callable[..., Tensor]
    ) -> Errors:
        """Unweighted errors of a batch at times t [B], with noise addressed by `seed` and the batch's positions."""
        x_0, eps, x_t, _ = noise_batch(batch, t, seed, self.schedule)
        return self.objective.errors(network(x_t, t, inputs), x_0, eps, t, self.schedule)

    @torch.no_grad()
    def heldout_loss(self, latents: Latents, inputs: Inputs, batch: int = 64) -> float:
        """Mean unweighted loss over held-out latents, each at its own fixed time and noise, with the full condition."""
        device = next(self.module.parameters()).device
        total = torch.zeros((), dtype=torch.float64, device=device)
        was = self.module.training
        self.module.eval()
        for start in range(0, len(latents), batch):
            place = torch.arange(start, min(start + batch, len(latents)))
            t = ((place + 0.5) / len(latents) * len(self.schedule)).long().to(device)
            part = {
                "mean": latents.mean[place, 0].float().to(device),
                "logvar": latents.logvar[place, 0].float().to(device),
                "position": place.to(device),
            }
            chosen = {name: value[place].to(device) for name, value in inputs.items()}
            errors = self.errors(part, t, HELDOUT_SEED, chosen, self.module)
            total += self.objective.combined(errors, len(self.schedule)).double().sum()
        self.module.train(was)
        return float(total / len(latents))


HELDOUT_SEED = 20220420  # fixed, so that held-out losses of different runs compare


def dropped_at(seed: int, position: Tensor, share: float) -> Tensor:
    """Which positions [B] train on the null condition, bool [B]."""
    return rng.uniform(seed, "drop", position) < share


def raw_conditions(config: ConditioningConfig, pictures: PictureSet) -> list[str | int]:
    """Return what a conditioner prepares for a set: captions, or labels.

    Raises:
        ConditioningError: class conditioning over pictures without labels, or text conditioning where all captions are
            empty.
    """
    records = pictures.records
    return config.raw_values([record.text for record in records], [record.label for record in records])
