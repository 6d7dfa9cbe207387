"""Open consistency models in the form of Song et al. 2023: folders of diffusers' ConsistencyModelPipeline.

Such a model has noise levels sigma of x = x_0 + sigma eps. Here its N levels become N timesteps of a
variance-preserving schedule, x_t = a x with a = 1 / sqrt(1 + sigma^2), so that it is sampled as any other model of
pixels is. Pictures differ from diffusers' by about 1e-3: diffusers starts from x = sigma_max eps, here a x = eps; and
it adds noise of variance sigma^2 - sigma_min^2 between steps, here sigma^2.
"""

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from conditioning.base import Conditioner
from conditioning.labels import ClassConditioner
from conditioning.none import NoCondition
from ldm_kit.config import UserError, check
from ldm_kit.diffusion.consistency_curricula import karras_levels
from ldm_kit.diffusion.schedule import ScheduleConfig, build
from ldm_kit.models.components import Components, check_fit, component_classes, load_components
from ldm_kit.models.consistency_names import KARRAS_SCHEDULER
from ldm_kit.models.folder import ModelFolder, Noise, read_json
from ldm_kit.nets.karras import KarrasUNet
from ldm_kit.solvers.scheduler_file import MAX_TIMESTEPS

CONSISTENCY_PIPELINE = "ConsistencyModelPipeline"  # _class_name in the index of such a model


class KarrasLevels(BaseModel):
    """The keys of CMStochasticIterativeScheduler's config that define its noise levels; names are diffusers'."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    num_train_timesteps: int = Field(default=40, ge=2, le=MAX_TIMESTEPS)
    sigma_min: float = Field(default=0.002, gt=0)
    sigma_max: float = Field(default=80.0, gt=0)
    sigma_data: float = Field(default=0.5, gt=0)
    rho: float = Field(default=7.0, gt=0)

    def schedule(self) -> ScheduleConfig:
        """Return the variance-preserving schedule with a timestep for each noise level."""
        sigmas = karras_levels(self.num_train_timesteps, self.sigma_min, self.sigma_max, self.rho)
        alpha_bar = 1 / (1 + sigmas.square())
        before = torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar[:-1]])
        betas = (1 - alpha_bar / before).tolist()
        return ScheduleConfig(kind="given", num_train_timesteps=len(betas), betas=tuple(betas))


def open_components(folder: ModelFolder, device: torch.device | str) -> Components:
    """Load all components of a diffusion model, or of such a consistency model, to a device.

    Raises:
        UserError: as for `load_components`; or the noise levels of a consistency model are invalid.
    """
    if folder.class_name != CONSISTENCY_PIPELINE:
        return load_components(folder, device)
    classes = component_classes(folder)
    if classes != {"unet": "UNet2DModel", "scheduler": KARRAS_SCHEDULER}:
        stated = ", ".join(f"{name} {kind}" for name, kind in classes.items())
        raise UserError(f"{folder}: {stated}; expected unet UNet2DModel and scheduler {KARRAS_SCHEDULER}")
    path = folder.path / "scheduler" / "scheduler_config.json"
    levels = check(KarrasLevels, read_json(path, str(path)), str(path))
    if levels.sigma_min >= levels.sigma_max:
        raise UserError(f"{path}: sigma_min is {levels.sigma_min}; expected less than sigma_max, {levels.sigma_max}")
    unet: KarrasUNet = folder.component("unet", "UNet2DModel", {"UNet2DModel": KarrasUNet}, device)
    schedule = levels.schedule()
    unet.set_schedule(build(schedule).to(device), levels.sigma_min, levels.sigma_data)
    conditioner = _conditioner(unet.take_class_table()).to(device)
    components = Components(None, unet, conditioner, Noise(schedule, "x0", "small"))
    check_fit(folder, components)
    return components


def _conditioner(table: Tensor | None) -> Conditioner:
    if table is None:
        return NoCondition()
    classes = ClassConditioner.of_table(table, [str(k) for k in range(len(table))])
    return classes.eval().requires_grad_(False)


def check_trainable(unet: Any, source: str) -> None:
    """Raise UserError if a U-Net is that of such a consistency model, which can be sampled, but not trained or saved.

    `source` says where it comes from.
    """
    if isinstance(unet, KarrasUNet):
        raise UserError(f"{source} is a consistency model of {CONSISTENCY_PIPELINE}, which can only be sampled")
