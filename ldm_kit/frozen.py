"""A frozen diffusion model on which a semantic one is built: ours or plain diffusers', of pixels or of latents.

PDAE never changes it and keeps no copy: it is known by where it lies and by a sha256 over all that matters of it.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor

from autoencoder.base import reduction
from conditioning.base import Condition, Conditioner, ConditioningError
from ldm_kit import parts
from ldm_kit.config import UserError
from ldm_kit.data.images import digest
from ldm_kit.data.latents import weights_digest
from ldm_kit.diffusion.denoiser import NetworkDenoiser
from ldm_kit.diffusion.prediction import Target
from ldm_kit.diffusion.schedule import Schedule, ScheduleConfig, build
from ldm_kit.nets.apply import apply_unet
from ldm_kit.nets.build import UNet


@dataclass(eq=False)
class Frozen:
    """Networks in evaluation mode without gradients, what they are told where nothing is asked for, and the noise."""

    folder: Path
    vae: AutoencoderKL | VQModel | None  # None: pixels
    unet: UNet
    null: Condition  # one row: the null condition, or none at all
    schedule_config: ScheduleConfig
    target: Target
    learned_range: bool
    sha256: str

    @classmethod
    def open(cls, folder: Path | str, device: torch.device | str = "cpu") -> "Frozen":
        """Open a model's folder, or a run's.

        Raises:
            UserError: no diffusion model, one without a null condition, or a schedule that PDAE has no formula for.
        """
        place = parts.model_folder(Path(folder))
        vae, unet, conditioner, schedule, target, variance = parts.opened(place, device)
        _refuse_schedule(place, build(schedule))
        known = [str(schedule.model_dump()), target, variance]
        nets = {"vae": vae, "unet": unet, **conditioner.trainable}
        weights = [f"{name} {weights_digest(net)}" for name, net in nets.items() if net is not None]
        learned = variance == "learned_range"
        null = _null(place, conditioner, device)
        return cls(place, vae, unet, null, schedule, target, learned, digest([*known, *weights]))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, R, R) of its pictures."""
        about: Any = self.unet.config
        if self.vae is None:
            return about.in_channels, about.sample_size, about.sample_size
        vae: Any = self.vae.config
        side = about.sample_size * reduction(self.vae)
        return vae.in_channels, side, side

    def denoiser(self, schedule: Schedule) -> NetworkDenoiser:
        """The model as it is, under its null condition whatever it is given."""

        def network(x: Tensor, t: Tensor, _: Any) -> Tensor:
            return apply_unet(self.unet, x, t, self.null)

        return NetworkDenoiser(network, schedule, self.target, self.learned_range)

    def to(self, device: torch.device | str) -> "Frozen":
        """Move networks and condition."""
        for module in (self.vae, self.unet):
            if module is not None:
                module.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]  (diffusers decorates it)
        self.null = self.null.to(device)
        return self

    def reference(self, folder: Path) -> dict[str, str]:
        """What a model in `folder` remembers of its base: the way there, and what must be found."""
        return {"path": os.path.relpath(self.folder.resolve(), folder.resolve()), "sha256": self.sha256}


def reopened(folder: Path, reference: Any, device: torch.device | str = "cpu") -> Frozen:
    """The base that the index of a model in `folder` refers to; its path starts from there.

    Raises:
        UserError: it is not there, or has changed since.
    """
    match reference:
        case {"path": str(path), "sha256": str(sha256)}:
            pass
        case _:
            raise UserError(f"{folder / parts.INDEX}: base is {reference!r:.80}; expected a path and a sha256")
    place = Path(os.path.normpath(folder.resolve() / path))
    if not place.is_dir():
        raise UserError(
            f"{folder} is built on the frozen model {place}, which is not there; put it back, or mend "
            f"base.path in {folder / parts.INDEX}"
        )
    found = Frozen.open(place, device)
    if found.sha256 != sha256:
        raise UserError(
            f"{place} is not the frozen model that {folder} was trained on: its weights, its condition or its noise "
            f"schedule have changed since"
        )
    return found


def _refuse_schedule(folder: Path, schedule: Schedule) -> None:
    """PDAE's formulas hold for a^2 + s^2 = 1, and divide by a."""
    preserving = torch.allclose(schedule.a.square() + schedule.s.square(), torch.ones_like(schedule.a))
    if not preserving or schedule.a[-1] <= 0:
        what = "ends in pure noise (zero_terminal)" if preserving else "is a flow"
        raise UserError(f"{folder} cannot be a base: its schedule {what}; expected DDPM's, LDM's or another of betas")


@torch.no_grad()
def _null(folder: Path, conditioner: Conditioner, device: torch.device | str) -> Condition:
    try:
        null = conditioner(**{name: value.to(device) for name, value in conditioner.null_inputs().items()})
    except ConditioningError as error:
        raise UserError(f"{folder} cannot be a base without a null condition: {error}") from None
    conditioner.release()
    return null
