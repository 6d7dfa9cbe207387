"""The two decoders of semantic codes: DiffAE's U-Net, and PDAE's gradient estimator on a frozen model.

Both encode a latent (in pixels: the picture) to its noise x_T, up in time, and decode it down again, under a code z. In
pixels x_0 is clipped to the picture's range at every step, both ways; in latents never.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor

from conditioning.semantic import condition_of
from ldm_kit.config import UserError
from ldm_kit.diffusion.denoiser import Denoiser, NetworkDenoiser
from ldm_kit.diffusion.finite import FiniteCheck
from ldm_kit.diffusion.pdae import (
    InterpolatedDenoiser,
    NetworkEstimator,
    ShiftedDenoiser,
    pdae_decode,
    pdae_encode,
    pdae_grid,
    stochastic_code,
)
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.samplers import State, ddim
from ldm_kit.diffusion.schedule import Schedule, ScheduleConfig, build
from ldm_kit.models.base_model import BaseModel
from ldm_kit.models.decoding import autocast_network, clip_pixels
from ldm_kit.models.prior import strided
from ldm_kit.models.saving import scheduler_entry, scheduler_to_save
from ldm_kit.nets.semantic_unet import SemanticUNet, apply_semantic
from ldm_kit.nets.shift_unet import ShiftUNet

UNET, SHIFT = ("ldm_kit.nets.semantic_unet", "SemanticUNet"), ("ldm_kit.nets.shift_unet", "ShiftUNet")
_BASE = "the base model's U-Net"


class TrajectoryTarget(NamedTuple):
    """Codes towards which every step of a PDAE's trajectories is interpolated."""

    z: Tensor  # [B, D]
    weight: Tensor  # [B], 0: the batch's own code; 1: this one


@dataclass(eq=False)
class CodeDecoder:
    """DiffAE's decoder: a U-Net conditioned on the code, its noise schedule and, in latents, the autoencoder."""

    unet: SemanticUNet
    vae: AutoencoderKL | VQModel | None
    schedule_config: ScheduleConfig
    target: PredictionType
    precision: torch.dtype | None = None
    stops: bool = field(init=False, default=False)
    schedule: Schedule = field(init=False)
    finite: FiniteCheck = field(init=False, default_factory=FiniteCheck)  # into which the networks note

    def __post_init__(self) -> None:
        self.schedule = build(self.schedule_config)

    @property
    def z_width(self) -> int:
        """D of the codes."""
        return self.unet.config["z_width"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of the latent that is denoised."""
        config = self.unet.config
        return config["channels"], config["sample_size"], config["sample_size"]

    def denoiser(self) -> Denoiser:
        """Return the denoiser, clipped in pixels; its condition is a `condition_of(z)`."""
        network = self.finite.network("the U-Net", autocast_network(partial(apply_semantic, self.unet), self.precision))
        return clip_pixels(NetworkDenoiser(network, self.schedule, self.target), self.vae)

    @property
    def most_steps(self) -> int:
        """As many steps as a grid can have."""
        return len(self.schedule)

    def grid(self, steps: int) -> list[int]:
        """Return rising times from 0 on (`ddimN` of Preechakul et al. 2022); clean data is a step below the first."""
        return strided(len(self.schedule), steps)[-2::-1]

    def up(self, x: Tensor, z: Tensor, steps: int) -> Iterator[State]:
        """Encode latents x [B, ...] to the stochastic code x_T, step by step (Preechakul et al. 2022, eq. 8)."""
        return stochastic_code(self.denoiser(), x, self.grid(steps), condition_of(z))

    def down(
        self, x: Tensor, z: Tensor, steps: int, stop: float, *, trajectory: TrajectoryTarget | None = None
    ) -> Iterator[State]:
        """Decode noise x [B, ...] to latents; raises UserError for a stop or trajectories, which need a base model."""
        if stop:
            raise UserError(f"stop is {stop}, but this model has no frozen one to leave steps to; expected 0")
        if trajectory is not None:
            raise UserError("trajectories mix a PDAE's gradients, and this model has none; mix the codes themselves")
        return ddim(self.denoiser(), x, [*self.grid(steps)[::-1], -1], condition_of(z))

    def to(self, device: torch.device | str) -> "CodeDecoder":
        """Move all networks."""
        for module in (self.unet, self.vae):
            if module is not None:
                module.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]  (diffusers decorates it)
        self.schedule = self.schedule.to(device)
        return self

    def save(self, folder: Path) -> dict[str, Any]:
        """Write `unet/`, `scheduler/` and `vae/`; return their entries for the index."""
        scheduler = scheduler_to_save(self.schedule_config, self.target, "small", pixels=self.vae is None)
        scheduler.save_pretrained(folder / "scheduler")
        self.unet.save_pretrained(folder / "unet")
        entries: dict[str, Any] = {"unet": UNET, "scheduler": scheduler_entry(scheduler)}
        if self.vae is not None:
            self.vae.save_pretrained(folder / "vae")
            entries["vae"] = ("diffusers", type(self.vae).__name__)
        return entries


@dataclass(eq=False)
class ShiftDecoder:
    """PDAE's decoder: a frozen base model, shifted by a learned gradient that is conditioned on the code."""

    shift: ShiftUNet
    base: BaseModel
    precision: torch.dtype | None = None
    stops: bool = field(init=False, default=True)
    schedule: Schedule = field(init=False)
    finite: FiniteCheck = field(init=False, default_factory=FiniteCheck)  # into which the networks note

    def __post_init__(self) -> None:
        self.schedule = build(self.base.schedule_config)

    @property
    def vae(self) -> AutoencoderKL | VQModel | None:
        """The base model's autoencoder; None: pixels."""
        return self.base.vae

    @property
    def z_width(self) -> int:
        """D of the codes."""
        return self.shift.config["z_width"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of the latent that is denoised."""
        config = self.base.unet.config
        return config["in_channels"], config["sample_size"], config["sample_size"]

    def denoiser(self, trajectory: TrajectoryTarget | None = None) -> Denoiser:
        """Return the shifted denoiser, clipped in pixels; its condition is a `condition_of(z)`.

        Args:
            trajectory: other codes and weights, between which and the condition's every step's gradient lies.
        """

        apply = autocast_network(lambda x, t, cond: self.shift(x, t, cond.vector, self.base.null), self.precision)

        def network(x: Tensor, t: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
            out, gap = apply(x, t, cond)
            return self.finite.note(_BASE, out, t), self.finite.note("the gradient estimator (shift)", gap, t)

        estimator = NetworkEstimator(network, self.schedule, self.base.target, self.base.learned_range)
        shifted: Denoiser = ShiftedDenoiser(estimator, self.schedule)
        if trajectory is not None:
            shifted = InterpolatedDenoiser(shifted, condition_of(trajectory.z), trajectory.weight)
        return clip_pixels(shifted, self.vae)

    def frozen(self) -> Denoiser:
        """Return the base model's denoiser, clipped in pixels."""
        plain = self.base.denoiser(self.schedule)
        network = self.finite.network(_BASE, autocast_network(plain.network, self.precision))
        return clip_pixels(replace(plain, network=network), self.vae)

    @property
    def most_steps(self) -> int:
        """As many steps as a grid can have."""
        return len(self.schedule) - 1

    def grid(self, steps: int) -> list[int]:
        """Return PDAE's steps + 1 rising times, from 0, which stands for clean data, to the last."""
        try:
            return pdae_grid(len(self.schedule), steps)
        except ValueError as error:
            raise UserError(f"steps: {error}") from None

    def up(self, x: Tensor, z: Tensor, steps: int) -> Iterator[State]:
        """Encode latents x [B, ...] to their noise, step by step."""
        return pdae_encode(self.denoiser(), x, self.grid(steps), condition_of(z))

    def down(
        self, x: Tensor, z: Tensor, steps: int, stop: float, *, trajectory: TrajectoryTarget | None = None
    ) -> Iterator[State]:
        """Decode noise x [B, ...] to latents; a share `stop` of the steps, the last ones, is the base model's alone.

        With a trajectory every step takes (1 - w) G(z) + w G(z'): trajectory interpolation (Zhang et al. 2022).
        """
        frozen = self.frozen() if stop else None
        return pdae_decode(self.denoiser(trajectory), x, self.grid(steps), condition_of(z), stop=stop, frozen=frozen)

    def to(self, device: torch.device | str) -> "ShiftDecoder":
        """Move all networks."""
        self.shift.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]  (diffusers decorates it)
        self.base.to(device)
        self.schedule = self.schedule.to(device)
        return self

    def save(self, folder: Path) -> dict[str, Any]:
        """Write `shift/`; return its entry for the index, and the reference to the base."""
        self.shift.save_pretrained(folder / "shift")
        return {"shift": SHIFT, "base": self.base.reference(folder)}


Decoder = CodeDecoder | ShiftDecoder
