"""The two decoders of semantic codes: DiffAE's U-Net, and PDAE's gradient estimator on a frozen model.

Both walk a latent (in pixels: the picture) up to its noise x_T and down again under a code. In pixels x_0 is clipped to
the picture's range at every step, both ways; in latents never.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor

from conditioning.semantic import condition_of
from ldm_kit.config import UserError
from ldm_kit.diffusion.denoiser import Clipped, Denoiser, NetworkDenoiser
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
from ldm_kit.models import codes
from ldm_kit.models import folder as parts
from ldm_kit.models.base_model import BaseModel, reopen_base
from ldm_kit.models.prior import strided
from ldm_kit.nets.execution import prepare_loaded
from ldm_kit.nets.semantic_unet import SemanticUNet, apply_semantic
from ldm_kit.nets.shift_unet import ShiftUNet

Vae = AutoencoderKL | VQModel
_UNET, _SHIFT = ("ldm_kit.nets.semantic_unet", "SemanticUNet"), ("ldm_kit.nets.shift_unet", "ShiftUNet")


class TrajectoryTarget(NamedTuple):
    """Where PDAE's trajectories of a batch lead, beside its own codes."""

    z: Tensor  # [B, D]
    weight: Tensor  # [B], 0: the batch's own code; 1: this one


@dataclass(eq=False)
class CodeDecoder:
    """DiffAE's: a U-Net told the code, with its own noise schedule and, in latents, autoencoder."""

    unet: SemanticUNet
    vae: Vae | None
    schedule_config: ScheduleConfig
    target: PredictionType
    precision: torch.dtype | None = None
    stops: bool = field(init=False, default=False)
    schedule: Schedule = field(init=False)

    def __post_init__(self) -> None:
        self.schedule = build(self.schedule_config)

    @property
    def z_width(self) -> int:
        """D of the codes."""
        return self.unet.config["z_width"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, h, w) of what is walked."""
        about = self.unet.config
        return about["channels"], about["sample_size"], about["sample_size"]

    def denoiser(self) -> Denoiser:
        """What predicts under a `condition_of(z)`, clipped in pixels."""
        network = autocast_network(partial(apply_semantic, self.unet), self.precision)
        return clip_pixels(NetworkDenoiser(network, self.schedule, self.target), self.vae)

    def grid(self, steps: int) -> list[int]:
        """Rising times from 0 on (Preechakul et al. 2022's code: `ddimN`); clean data is a step below the first."""
        return strided(len(self.schedule), steps)[-2::-1]

    def up(self, x: Tensor, z: Tensor, steps: int) -> Iterator[State]:
        """From latents to the stochastic code (Preechakul et al. 2022, eq. 8)."""
        return stochastic_code(self.denoiser(), x, self.grid(steps), condition_of(z))

    def down(
        self, x: Tensor, z: Tensor, steps: int, stop: float, *, towards: TrajectoryTarget | None = None
    ) -> Iterator[State]:
        """From noise to latents; raises UserError for a stop and for trajectories, which need a frozen model."""
        if stop:
            raise UserError(f"stop is {stop}, but this model has no frozen one to leave steps to; expected 0")
        if towards is not None:
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
        """Write `unet/`, `scheduler/` and `vae/`."""
        scheduler = parts.scheduler(self.schedule_config, self.target, "small", pixels=self.vae is None)
        scheduler.save_pretrained(folder / "scheduler")
        self.unet.save_pretrained(folder / "unet")
        entries: dict[str, Any] = {"unet": _UNET, "scheduler": ("diffusers", type(scheduler).__name__)}
        if self.vae is not None:
            self.vae.save_pretrained(folder / "vae")
            entries["vae"] = ("diffusers", type(self.vae).__name__)
        return entries


@dataclass(eq=False)
class ShiftDecoder:
    """PDAE's: a frozen model, shifted by a learned gradient that is told the code."""

    shift: ShiftUNet
    base: BaseModel
    precision: torch.dtype | None = None
    stops: bool = field(init=False, default=True)
    schedule: Schedule = field(init=False)

    def __post_init__(self) -> None:
        self.schedule = build(self.base.schedule_config)

    @property
    def vae(self) -> Vae | None:
        """The base's."""
        return self.base.vae

    @property
    def z_width(self) -> int:
        """D of the codes."""
        return self.shift.config["z_width"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, h, w) of what is walked."""
        about = self.base.unet.config
        return about["in_channels"], about["sample_size"], about["sample_size"]

    def denoiser(self, towards: TrajectoryTarget | None = None) -> Denoiser:
        """What predicts under a `condition_of(z)`, on the way to other codes if wished, clipped in pixels."""

        def network(x: Tensor, t: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
            return self.shift(x, t, cond.vector, self.base.null)

        estimator = NetworkEstimator(
            autocast_network(network, self.precision), self.schedule, self.base.target, self.base.learned_range
        )
        shifted: Denoiser = ShiftedDenoiser(estimator, self.schedule)
        if towards is not None:
            shifted = InterpolatedDenoiser(shifted, condition_of(towards.z), towards.weight)
        return clip_pixels(shifted, self.vae)

    def frozen(self) -> Denoiser:
        """The base alone, clipped in pixels."""
        plain = self.base.denoiser(self.schedule)
        return clip_pixels(replace(plain, network=autocast_network(plain.network, self.precision)), self.vae)

    def grid(self, steps: int) -> list[int]:
        """PDAE's steps + 1 rising times, from 0, which stands for clean data, to the last."""
        try:
            return pdae_grid(len(self.schedule), steps)
        except ValueError as error:
            raise UserError(f"steps: {error}") from None

    def up(self, x: Tensor, z: Tensor, steps: int) -> Iterator[State]:
        """From latents to their noise."""
        return pdae_encode(self.denoiser(), x, self.grid(steps), condition_of(z))

    def down(
        self, x: Tensor, z: Tensor, steps: int, stop: float, *, towards: TrajectoryTarget | None = None
    ) -> Iterator[State]:
        """From noise to latents; a share `stop` of the steps, the last ones, is the base's alone.

        Towards other codes every step takes (1 - w) G(z) + w G(z'): trajectory interpolation (Zhang et al. 2022).
        """
        frozen = self.frozen() if stop else None
        return pdae_decode(self.denoiser(towards), x, self.grid(steps), condition_of(z), stop=stop, frozen=frozen)

    def to(self, device: torch.device | str) -> "ShiftDecoder":
        """Move all networks."""
        self.shift.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]  (diffusers decorates it)
        self.base.to(device)
        self.schedule = self.schedule.to(device)
        return self

    def save(self, folder: Path) -> dict[str, Any]:
        """Write `shift/`; of the base, a reference alone."""
        self.shift.save_pretrained(folder / "shift")
        return {"shift": _SHIFT, "base": self.base.reference(folder)}


Decoder = CodeDecoder | ShiftDecoder


def load(folder: Path, index: dict[str, object], device: torch.device | str) -> Decoder:
    """The decoder of a semantic model's folder, in evaluation mode, not yet on the device that it is for.

    Raises:
        UserError: a part that is missing, broken or unknown, or a frozen base that is not there or has changed.
    """
    found = _shift(folder, index) if "shift" in index else _unet(folder, index)
    nets = (found.shift, found.base.unet) if isinstance(found, ShiftDecoder) else (found.unet,)
    for module in (*nets, found.vae):
        if module is not None:
            prepare_loaded(module, device)
    return found


def autocast_network(network: Callable[..., Any], precision: torch.dtype | None) -> Callable[..., Any]:
    """A network of (x, t, cond) under autocast to `precision`; None: as it is."""

    def call(x: Tensor, t: Tensor, cond: Any) -> Any:
        with nullcontext() if precision is None else torch.autocast(x.device.type, precision):
            return network(x, t, cond)

    return call


def clip_pixels(denoiser: Denoiser, vae: Vae | None) -> Denoiser:
    """Clipped in pixels, which have a range; as it is in latents."""
    return Clipped(denoiser) if vae is None else denoiser


def _unet(folder: Path, index: dict[str, object]) -> CodeDecoder:
    kind = codes.entry(folder, index, "unet", {_UNET[1]: _UNET[0]})
    unet = parts.component(folder, "unet", kind, {kind: SemanticUNet})
    vae = None
    if "vae" in index:
        kind = codes.entry(folder, index, "vae", dict.fromkeys(parts.FIRST_STAGE, "diffusers"))
        vae = parts.component(folder, "vae", kind, parts.FIRST_STAGE)
    schedule, target, _ = parts.schedule(folder)
    return CodeDecoder(unet, vae, schedule, target)


def _shift(folder: Path, index: dict[str, object]) -> ShiftDecoder:
    kind = codes.entry(folder, index, "shift", {_SHIFT[1]: _SHIFT[0]})
    base = reopen_base(folder, index.get("base"))
    return ShiftDecoder(parts.component(folder, "shift", kind, {kind: _On(base)}), base)


@dataclass(frozen=True)
class _On:
    """`ShiftUNet` with its base, where `parts.component` expects a class."""

    base: BaseModel

    def from_pretrained(self, place: Path, **options: Any) -> Any:
        return ShiftUNet.from_pretrained(place, base=self.base.unet, **options)
