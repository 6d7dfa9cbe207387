"""Saving of a diffusion model's components, and what its folder says of itself: scheduler, class, index."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNet2DModel
from torch import nn

import conditioning.factory as conditioners
from ldm_kit.config import UserError
from ldm_kit.diffusion.posterior import VarianceType
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.models.components import OUR_LIBRARIES, Components
from ldm_kit.models.folder import INDEX, strip_paths
from ldm_kit.solvers.scheduler_config import saved_scheduler
from ldm_kit.training.checkpoint import MANIFEST


def save_components(folder: Path, components: Components) -> None:
    """Write a diffusion model's folder in the diffusers layout."""
    vae, unet, conditioner, noise = components
    folder.mkdir(parents=True, exist_ok=True)
    scheduler = scheduler_to_save(*noise, pixels=vae is None)
    entries = conditioners.save(conditioner, folder)
    kind = pipeline_class(vae, unet, scheduler, entries)
    if vae is not None:
        name = "vqvae" if kind == "LDMPipeline" else "vae"
        vae.save_pretrained(folder / name)
        entries[name] = ("diffusers", type(vae).__name__)
    unet.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {
        "_class_name": kind,
        "unet": unet_entry(unet),
        "scheduler": scheduler_entry(scheduler),
        **entries,
    }
    if kind == "StableDiffusionPipeline":
        absent = ("safety_checker", "feature_extractor", "image_encoder")
        index |= dict.fromkeys(absent, (None, None)) | {"requires_safety_checker": False}
    write_index(folder, index)


def scheduler_to_save(
    schedule: ScheduleConfig, prediction_type: PredictionType, variance: VarianceType, *, pixels: bool
) -> Any:
    """Return the diffusers scheduler that a folder is saved with.

    Plain diffusers clips the predicted x_0 of pixels with it, as we do, and that of latents never.

    Raises:
        UserError: diffusers cannot express the combination.
    """
    scheduler: Any = saved_scheduler(schedule, prediction_type, variance)
    if "clip_sample" not in scheduler.config:
        return scheduler
    return type(scheduler).from_config(scheduler.config, clip_sample=pixels)


def scheduler_entry(scheduler: Any) -> tuple[str, str]:
    """Return the index's entry of a scheduler: library and class."""
    return "diffusers", type(scheduler).__name__


def unet_entry(unet: Any) -> tuple[str, str]:
    """Return the index's entry of a U-Net: library and class."""
    name = type(unet).__name__
    return OUR_LIBRARIES.get(name, "diffusers"), name


def pipeline_class(vae: Any, unet: Any, scheduler: Any, entries: Mapping[str, Any]) -> str:
    """Return the class of diffusers that opens a folder of these components and a conditioner's entries; else ours.

    A network that learns its variance has twice the channels out, which of diffusers' schedulers DDPM alone takes; the
    pipelines of latents run with any of them, and all others would end in an error about shapes.
    """
    if vae is not None and unet.config["out_channels"] != unet.config["in_channels"]:
        return "ldm_kit.Pipeline"
    if isinstance(vae, AutoencoderKL) and isinstance(unet, UNet2DConditionModel) and "text_encoder" in entries:
        return "StableDiffusionPipeline"
    # a frozen encoder has no entry, yet is a condition
    if entries or type(unet) is not UNet2DModel or unet.class_embedding is not None:
        return "ldm_kit.Pipeline"
    if vae is not None:
        return "LDMPipeline"
    return "DDIMPipeline" if isinstance(scheduler, DDIMScheduler) else "DDPMPipeline"


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Write a finished folder's model_index.json, and remove paths of this machine from its configs.

    A manifest of what the folder held before is removed, as it would be refused with the new files.

    diffusers' inpainting pipeline reads the release that wrote the folder, and ends in a KeyError where there is none.
    """
    entries = {"_diffusers_version": diffusers.__version__, **index}
    (folder / INDEX).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    (folder / MANIFEST).unlink(missing_ok=True)
    strip_paths(folder)


def check_uncast(unet: nn.Module, folder: Path) -> None:
    """Check that no weight of a U-Net was cast to another type; raises UserError where `cast_weights` did so."""
    if len(types := {str(weight.dtype) for weight in unet.parameters()}) > 1:
        raise UserError(
            f"{folder}: not saved: the U-Net's weights were cast for sampling ({', '.join(sorted(types))}); "
            "open the model without a precision to save it"
        )
