"""The noisy classifier p(y | x_t, t), which guides a denoiser by its gradient.

Paper:    Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 4 and appendix G.
Idea:     name the class of a picture at every level of the generator's noise; in latents as in pixels.
Parts:    cached latents (or pixels), the pictures' labels, half a U-Net with attention pooling.
Run:      accelerate launch train_ldm.py configs/openmoji/classifier.yaml
Expected: see the header of that config.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ldm_kit.data.batches import spread
from ldm_kit.data.latents import Latents
from ldm_kit.diffusion import rng, schedule, timesteps
from ldm_kit.methods.base import NoisedRun, eval_mode
from ldm_kit.methods.inputs import noise_batch
from ldm_kit.nets.half_unet import HalfUNet, HalfUNetConfig
from ldm_kit.training.ema import EmaConfig
from ldm_kit.training.optim import OptimConfig
from ldm_kit.training.task import LossTerm

QUARTILES = 4
LEVELS = 8  # of noise, at which every held-out picture is classified: two a quartile
MOST = 2048  # held-out pictures
TOP = 5  # accuracy is also that of the five likeliest classes, where there are more
HELDOUT_SEED = 20210511  # fixed, so that held-out figures of different runs compare


class ClassifierRun(NoisedRun):
    """A classifier of noised latents (or pixels)."""

    method: Literal["classifier"] = Field(description="a classifier of noised latents, or of noised pixels")
    net: HalfUNetConfig = HalfUNetConfig()
    ema: EmaConfig = EmaConfig(kind="none")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of a label's weight that is spread over all classes"
    )
    shift: int = Field(
        default=0, ge=0, description="move pictures by up to so many pixels each way, edges repeated; pixels only"
    )

    @model_validator(mode="after")
    def _fits(self) -> "ClassifierRun":
        if self.shift and self.autoencoder is not None:
            raise ValueError("shift moves pixels, but latents are cached as they are; leave it 0, or autoencoder out")
        if self.shift >= self.data.resolution:
            raise ValueError(f"shift {self.shift} moves a picture of {self.data.resolution} pixels out of itself")
        if self.timestep_sampling.density == "loss_second_moment":
            raise ValueError(
                "timestep_sampling.density loss_second_moment is for a bound; expected uniform or logit_normal"
            )
        return self


@dataclass(frozen=True)
class Heldout:
    """What a classifier knows of held-out pictures, by level of noise, from least to most."""

    losses: tuple[float, ...]
    first: tuple[float, ...]  # how often the likeliest class is right
    top: tuple[float, ...] | None  # how often it is among the likeliest five; None: there are no more than five

    def figures(self) -> dict[str, float]:
        """By name, overall and for each quartile of noise."""
        each = LEVELS // QUARTILES
        quartiles = [_mean(self.first[q * each : (q + 1) * each]) for q in range(QUARTILES)]
        more = {} if self.top is None else {f"heldout_accuracy{TOP}": _mean(self.top)}
        return {
            "heldout_loss": _mean(self.losses),
            "heldout_accuracy": _mean(self.first),
            **more,
            **{f"heldout_accuracy_q{q}": value for q, value in enumerate(quartiles, 1)},
        }


class Classifying:
    """The classification of noised latents, for the training loop."""

    def __init__(self, config: ClassifierRun, net: HalfUNet) -> None:
        self.config, self.net = config, net
        self.schedule = schedule.build(config.schedule)
        self.shares = self._shares()
        self.wrapped: nn.Module = net

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The network."""
        return {"classifier": self.net}

    @property
    def ema_modules(self) -> dict[str, nn.Module]:
        """By component folder of the saved model."""
        return {"classifier": self.net}

    @property
    def optim(self) -> dict[str, OptimConfig]:
        """The run's."""
        return {"classifier": self.config.optim}

    def set_ddp_modules(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Take the module that DDP wrapped, and bring the tables to its device."""
        self.wrapped = wrapped["classifier"]
        device = next(self.net.parameters()).device
        self.schedule, self.shares = self.schedule.to(device), self.shares.to(device)

    def state(self) -> dict[str, Tensor]:
        """Nothing beside weights."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take back."""

    def losses(self, batch: Mapping[str, Any], step: int) -> Iterator[LossTerm]:
        """Cross-entropy at times, with noise and shifts, that belong to the position; accuracy beside it."""
        seed, position, label = self.config.seed, batch["position"], batch["inputs"]["label"]
        t = self._times(seed, position, self.config.train.batch_size)
        if self.config.shift:
            batch = {**batch, "mean": shifted(batch["mean"], self.config.shift, seed, position)}
        logits = self.logits(batch, t, seed, self.wrapped)
        error = cross_entropy(logits, label, label_smoothing=self.config.label_smoothing)
        yield "classifier", error, self._accuracies(logits, label, t)

    def logits(
        self, batch: Mapping[str, Any], t: Tensor, seed: int, network: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Float32 logits [B, K] of a batch at times t [B], with noise addressed by `seed` and the batch's positions."""
        return network(noise_batch(batch, t, seed, self.schedule).x_t, t).float()

    @torch.no_grad()
    def heldout(self, latents: Latents, labels: Tensor, batch: int = 64) -> Heldout:
        """Figures over held-out latents, each at `LEVELS` fixed times, with fixed noise."""
        chosen = torch.tensor(spread(len(latents), MOST))
        with eval_mode(self.net):
            rows = [self._level(level, latents, labels, chosen.split(batch)) for level in range(LEVELS)]
        losses, first, top = zip(*rows, strict=True)
        return Heldout(losses, first, top if len(self.net.config["classes"]) > TOP else None)

    def _level(
        self, level: int, latents: Latents, labels: Tensor, parts: Sequence[Tensor]
    ) -> tuple[float, float, float]:
        """Mean loss and accuracies at one level; a picture's own time lies somewhere within it."""
        found: list[Tensor] = []
        for place in parts:
            position = place * LEVELS + level
            u = (level + rng.uniform(HELDOUT_SEED, "time", position)) / LEVELS
            logits, label = self.guess(latents, place, position, u), labels[place]
            errors = cross_entropy(logits, label, reduction="none")
            found.append(torch.stack([errors, hits(logits, label, 1), hits(logits, label, TOP)]))
        error, first, top = torch.cat(found, dim=1).double().mean(1).tolist()
        return error, first, top

    @torch.no_grad()
    def guess(self, latents: Latents, place: Tensor, position: Tensor, u: Tensor) -> Tensor:
        """Logits [B, K] on the CPU of the latents at `place` [B], at times u [B] of 0 to 1, noise by `position` [B]."""
        device = next(self.net.parameters()).device
        mean, logvar = (moment[place, 0].float().to(device) for moment in (latents.mean, latents.logvar))
        batch = {"mean": mean, "logvar": logvar, "position": position.to(device)}
        t = (u * len(self.schedule)).long().clamp_max(len(self.schedule) - 1).to(device)
        return self.logits(batch, t, HELDOUT_SEED, self.net).cpu()

    def _times(self, seed: int, position: Tensor, batch: int) -> Tensor:
        return timesteps.sample_timesteps(self.config.timestep_sampling, seed, position, batch, len(self.schedule))

    def _shares(self) -> Tensor:
        """The share [4] of training times that each quartile of noise gets, by a fine stratified draw."""
        count, even = 4096, self.config.timestep_sampling.model_copy(update={"stratified": True})
        t = timesteps.sample_timesteps(even, 0, torch.arange(count), count, len(self.schedule))
        return self._quartile(t).bincount(minlength=QUARTILES) / count

    def _quartile(self, t: Tensor) -> Tensor:
        return t * QUARTILES // len(self.schedule)

    def _accuracies(self, logits: Tensor, label: Tensor, t: Tensor) -> dict[str, Tensor]:
        """How often the class is right, overall and by quartile of noise.

        A quartile's hits are divided by how many pictures it gets on average, so that means over micro-batches,
        processes and steps are right although some hold none of it; one step's number may thus exceed 1.
        """
        right, quartile = hits(logits, label, 1), self._quartile(t)
        found = {"accuracy": right.mean()}
        if logits.shape[1] > TOP:
            found[f"accuracy{TOP}"] = hits(logits, label, TOP).mean()
        for q in range(QUARTILES):
            inside = (right * (quartile == q)).mean()
            found[f"accuracy_q{q + 1}"] = inside / self.shares[q].clamp_min(1e-6)
        return found


def hits(logits: Tensor, label: Tensor, count: int) -> Tensor:
    """Whether the label [B] is among the `count` likeliest classes of logits [B, K], float32 [B] of 0 and 1."""
    likeliest = logits.topk(min(count, logits.shape[1]), dim=1).indices
    return (likeliest == label[:, None]).any(1).float()


def shifted(x: Tensor, most: int, seed: int, position: Tensor) -> Tensor:
    """Pictures [B, C, H, W], each moved by whole pixels in -most..most both ways, its edges repeated."""
    rows, columns = (_moved(x.shape[i], most, rng.uniform(seed, f"shift {i}", position)) for i in (2, 3))
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return x[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _moved(side: int, most: int, u: Tensor) -> Tensor:
    """Which line [B, side] of a picture each line shows, for uniform numbers u [B]."""
    offset = (u * (2 * most + 1)).long() - most
    return (torch.arange(side, device=u.device) + offset[:, None]).clamp(0, side - 1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
