"""The two decoders of semantic codes: DiffAE's U-Net, and PDAE's gradient estimator on a frozen base model.

Conditioned on a code z, both encode a latent (in pixel models: the picture) to its noise x_T over rising timesteps, and
decode x_T to the latent over falling ones. Pixel models clip x_0 to [-1, 1] at every step of both; latent models never.
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
from ldm_kit.nets.code_unets import CodeUNet
from ldm_kit.nets.semantic_unet import apply_semantic
from ldm_kit.nets.shift_unet import ShiftUNet

UNETS = {"SemanticUNet": "ldm_kit.nets.semantic_unet", "TokenUNet": "ldm_kit.nets.token_unet"}  # class: its module
SHIFT = ("ldm_kit.nets.shift_unet", "ShiftUNet")
_BASE = "the base model's U-Net"


class TrajectoryTarget(NamedTuple):
    """Second codes for PDAE's trajectory interpolation, which mixes the gradients of two codes at every step."""

    z: Tensor  # second codes [B, D]
    weight: Tensor  # weight of the second code's gradient, [B]; the first code's gradient has 1 - weight


@dataclass(eq=False)
class CodeDecoder:
    """DiffAE's decoder: a U-Net conditioned on the code, its noise schedule and, if it is latent, the autoencoder."""

    unet: CodeUNet  # maps x_t, timesteps and codes z to a prediction of type `target`
    vae: AutoencoderKL | VQModel | None  # None: a pixel model
    schedule_config: ScheduleConfig  # settings from which `schedule` is built
    target: PredictionType  # what the U-Net predicts
    precision: torch.dtype | None = None  # dtype of autocast; None: no autocast
    stops: bool = field(init=False, default=False)  # whether `down` can leave its last steps to a base model
    schedule: Schedule = field(init=False)
    finite: FiniteCheck = field(init=False, default_factory=FiniteCheck)  # finds NaN and infinity in networks' outputs

    def __post_init__(self) -> None:
        self.schedule = build(self.schedule_config)

    @property
    def z_width(self) -> int:
        """D, dimensions of a code z."""
        return self.unet.config["z_width"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of the latent that is denoised."""
        config = self.unet.config
        return config["channels"], config["sample_size"], config["sample_size"]

    def denoiser(self) -> Denoiser:
        """Return the U-Net as a denoiser, with x_0 clipped in a pixel model; call it with cond=`condition_of(z)`."""
        network = self.finite.network("the U-Net", autocast_network(partial(apply_semantic, self.unet), self.precision))
        return clip_pixels(NetworkDenoiser(network, self.schedule, self.target), self.vae)

    @property
    def most_steps(self) -> int:
        """Greatest `steps` that `grid` accepts: the number of training timesteps."""
        return len(self.schedule)

    def grid(self, steps: int) -> list[int]:
        """Return the `steps` timesteps of DiffAE's DDIM in rising order, see `models.prior.strided`, without -1."""
        return strided(len(self.schedule), steps)[-2::-1]

    def up(self, x: Tensor, z: Tensor, steps: int) -> Iterator[State]:
        """Encode latents x [B, ...] with codes z [B, D] to the stochastic code x_T, by DDIM over `grid(steps)`.

        This is eq. 8 of Preechakul et al. 2022.

        Yields:
            The state after each step; x of the last state is x_T.
        """
        return stochastic_code(self.denoiser(), x, self.grid(steps), condition_of(z))

    def down(
        self, x: Tensor, z: Tensor, steps: int, stop: float, *, trajectory: TrajectoryTarget | None = None
    ) -> Iterator[State]:
        """Decode noise x [B, ...] with codes z [B, D] to latents by DDIM.

        Args:
            x: noise x_T [B, ...].
            z: codes [B, D].
            steps: number of DDIM steps.
            stop: 0, as only PDAE has a base model that could take the last steps.
            trajectory: None, as only PDAE has gradients to interpolate.

        Yields:
            The state after each step; x of the last state is the latents.

        Raises:
            UserError: `stop` is not 0, or a trajectory is given.
        """
        if stop:
            raise UserError(f"stop is {stop}, but this model has no frozen one to leave steps to; expected 0")
        if trajectory is not None:
            raise UserError("trajectories mix a PDAE's gradients, and this model has none; mix the codes themselves")
        return ddim(self.denoiser(), x, [*self.grid(steps)[::-1], -1], condition_of(z))

    def to(self, device: torch.device | str) -> "CodeDecoder":
        """Move all networks to a device, in place; return this object."""
        for module in (self.unet, self.vae):
            if module is not None:
                module.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]  (diffusers decorates it)
        self.schedule = self.schedule.to(device)
        return self

    def save(self, folder: Path) -> dict[str, Any]:
        """Write `unet/`, `scheduler/` and `vae/` to a model's folder; return their entries for model_index.json."""
        scheduler = scheduler_to_save(self.schedule_config, self.target, "small", pixels=self.vae is None)
        scheduler.save_pretrained(folder / "scheduler")
        self.unet.save_pretrained(folder / "unet")
        kind = type(self.unet).__name__
        entries: dict[str, Any] = {"unet": (UNETS[kind], kind), "scheduler": scheduler_entry(scheduler)}
        if self.vae is not None:
            self.vae.save_pretrained(folder / "vae")
            entries["vae"] = ("diffusers", type(self.vae).__name__)
        return entries


@dataclass(eq=False)
class ShiftDecoder:
    """PDAE's decoder: a frozen base model whose predicted eps is shifted by a learned gradient G(x_t, t, z)."""

    shift: ShiftUNet  # estimates G, for noised latents x_t at timestep t and a semantic code z
    base: BaseModel  # the frozen diffusion model
    precision: torch.dtype | None = None  # dtype of autocast; None: no autocast
    stops: bool = field(init=False, default=True)  # whether `down` can leave its last steps to the base model
    schedule: Schedule = field(init=False)  # the base model's noise schedule
    finite: FiniteCheck = field(init=False, default_factory=FiniteCheck)  # finds NaN and infinity in networks' outputs

    def __post_init__(self) -> None:
        self.schedule = build(self.base.schedule_config)

    @property
    def vae(self) -> AutoencoderKL | VQModel | None:
        """Autoencoder of the base model; None: a pixel model."""
        return self.base.vae

    @property
    def z_width(self) -> int:
        """D, dimensions of a code z."""
        return self.shift.config["z_width"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of the latent that is denoised."""
        config = self.base.unet.config
        return config["in_channels"], config["sample_size"], config["sample_size"]

    def denoiser(self, trajectory: TrajectoryTarget | None = None) -> Denoiser:
        """Return the base model shifted by G, with x_0 clipped in a pixel model; call it with cond=`condition_of(z)`.

        Args:
            trajectory: second codes z' with weights w: the gradient is (1 - w) G(z) + w G(z'); None: G(z).
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
        """Return the base model's own denoiser, without the shift, with x_0 clipped in a pixel model."""
        plain = self.base.denoiser(self.schedule)
        network = self.finite.network(_BASE, autocast_network(plain.network, self.precision))
        return clip_pixels(replace(plain, network=network), self.vae)

    @property
    def most_steps(self) -> int:
        """Greatest `steps` that `grid` accepts: T-1, for T training timesteps."""
        return len(self.schedule) - 1

    def grid(self, steps: int) -> list[int]:
        """Return PDAE's `steps + 1` rising timesteps from 0 to T-1; PDAE treats x_t at t = 0 as clean data."""
        try:
            return pdae_grid(len(self.schedule), steps)
        except ValueError as error:
            raise UserError(f"steps: {error}") from None

    def up(self, x: Tensor, z: Tensor, steps: int) -> Iterator[State]:
        """Encode latents x [B, ...] with codes z [B, D] to noise x_T, by DDIM over `grid(steps)`.

        Yields:
            The state after each step; x of the last state is x_T.
        """
        return pdae_encode(self.denoiser(), x, self.grid(steps), condition_of(z))

    def down(
        self, x: Tensor, z: Tensor, steps: int, stop: float, *, trajectory: TrajectoryTarget | None = None
    ) -> Iterator[State]:
        """Decode noise x [B, ...] with codes z [B, D] to latents by DDIM; yield the state after each step.

        Args:
            x: noise x_T [B, ...].
            z: codes [B, D].
            steps: number of DDIM steps.
            stop: fraction of the steps, at the end, that the base model takes without the shift; 0: none.
            trajectory: second codes z' with weights w; every step then takes the gradient (1 - w) G(z) + w G(z'), which
                is trajectory interpolation (Zhang et al. 2022).
        """
        frozen = self.frozen() if stop else None
        return pdae_decode(self.denoiser(trajectory), x, self.grid(steps), condition_of(z), stop=stop, frozen=frozen)

    def to(self, device: torch.device | str) -> "ShiftDecoder":
        """Move all networks to a device, in place; return this object."""
        self.shift.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]  (diffusers decorates it)
        self.base.to(device)
        self.schedule = self.schedule.to(device)
        return self

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the network to `shift/` in a model's folder; return the entries of model_index.json, by name.

        The base model is not written; its entry says in which folder, or where on the Hub, it is.
        """
        self.shift.save_pretrained(folder / "shift")
        return {"shift": SHIFT, "base": self.base.reference(folder)}


Decoder = CodeDecoder | ShiftDecoder
