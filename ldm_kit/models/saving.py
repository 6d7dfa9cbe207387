"""Save a diffusion model's components as diffusers does: networks, conditioner, scheduler, model_index.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel, UNet2DModel
from torch import nn

import conditioning.factory as conditioners
from conditioning.inpainting import Inpainting
from conditioning.pictures import PictureCondition
from ldm_kit.config import UserError
from ldm_kit.diffusion.posterior import VarianceType
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.models.components import OUR_LIBRARIES, Components, picture_channels
from ldm_kit.models.consistency_folder import check_trainable
from ldm_kit.models.folder import INDEX, strip_paths
from ldm_kit.models.picture_condition import INPAINT_CLASS, write_picture_condition
from ldm_kit.models.sampler_options import OF_THRESHOLD, SamplerOptions
from ldm_kit.solvers.scheduler_config import saved_scheduler
from ldm_kit.training.checkpoint import MANIFEST


def save_components(folder: Path, components: Components, sampling: Mapping[str, Any] | None = None) -> None:
    """Write a diffusion model's components (networks, conditioner, scheduler) and model_index.json to `folder`.

    Each component has a sub-folder, as in diffusers, which can open the folder if `pipeline_class` names a diffusers
    class. `sampling` are the sampling options saved with the model, of which the scheduler gets the thresholding and
    the `flow_shift` (see `scheduler_to_save`).

    Raises:
        UserError: the model is one that `check_trainable` refuses; nothing is written.
    """
    vae, unet, conditioner, noise, picture = components
    check_trainable(unet, f"what is to be saved to {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    scheduler = scheduler_to_save(*noise, pixels=vae is None, sampling=sampling)
    flow_shift = (sampling or {}).get("flow_shift", 1.0)
    if "flow_shift" in scheduler.config and flow_shift != 1:
        scheduler = type(scheduler).from_config(scheduler.config, flow_shift=flow_shift)
    entries = conditioners.save(conditioner, folder)
    kind = pipeline_class(vae, unet, scheduler, entries, picture)
    write_picture_condition(folder, picture)
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
    if kind in ("StableDiffusionPipeline", INPAINT_CLASS):
        absent = ("safety_checker", "feature_extractor", "image_encoder")
        index |= dict.fromkeys(absent, (None, None)) | {"requires_safety_checker": False}
    write_index(folder, index)


def scheduler_to_save(
    schedule: ScheduleConfig,
    prediction_type: PredictionType,
    variance: VarianceType,
    *,
    pixels: bool,
    sampling: Mapping[str, Any] | None = None,
) -> Any:
    """Return the diffusers scheduler that is saved with a model.

    With this scheduler diffusers clips the predicted x_0 as ldm_kit does: in pixel models alone, to [-1, 1], or by
    dynamic thresholding, or not at all.

    Args:
        schedule: noise schedule that the network was trained on.
        prediction_type: what the network predicts.
        variance: type of the variance of ddpm's steps.
        pixels: whether it is a pixel model.
        sampling: the sampling options saved with the model, of which `clip` and those of dynamic thresholding are read;
            None: the defaults.

    Raises:
        UserError: diffusers has no scheduler for this combination, or `schedule` does not allow the prediction type.
    """
    scheduler: Any = saved_scheduler(schedule, prediction_type, variance)
    options = SamplerOptions.model_validate({k: v for k, v in (sampling or {}).items() if k in _CLIPPING})
    settings: dict[str, Any] = {"clip_sample": pixels and options.clip not in ("none", "dynamic")}
    if pixels and options.clip == "dynamic":
        settings |= {"thresholding": True, **{name: getattr(options, name) for name in OF_THRESHOLD}}
    settings = {name: value for name, value in settings.items() if name in scheduler.config}
    return type(scheduler).from_config(scheduler.config, **settings) if settings else scheduler


_CLIPPING = ("clip", *OF_THRESHOLD)


def scheduler_entry(scheduler: Any) -> tuple[str, str]:
    """Return the entry of a scheduler in model_index.json: the names of its library and its class."""
    return "diffusers", type(scheduler).__name__


def unet_entry(unet: Any) -> tuple[str, str]:
    """Return the entry of the network `unet` in model_index.json: the names of its library and its class."""
    name = type(unet).__name__
    return OUR_LIBRARIES.get(name, "diffusers"), name


def pipeline_class(
    vae: Any, unet: Any, scheduler: Any, entries: Mapping[str, Any], picture: PictureCondition | None = None
) -> str:
    """Return the diffusers pipeline class that can sample from these components; "ldm_kit.Pipeline" if none can.

    A U-Net that predicts its variance has twice as many output channels. Among diffusers' schedulers only DDPM's
    accepts that, but users may put any scheduler into a latent pipeline and would then get an error about shapes. A
    latent model with a learned variance is therefore left to `ldm_kit.Pipeline`.

    Args:
        vae: the autoencoder; None: a pixel model.
        unet: the U-Net.
        scheduler: the diffusers scheduler that is saved.
        entries: (library, class) of each of the conditioner's components, by component name; empty for a frozen text
            encoder and for an unconditional model.
        picture: what pictures condition the model; None: none do.
    """
    of_text = isinstance(vae, AutoencoderKL | AutoencoderTiny) and isinstance(unet, UNet2DConditionModel)
    of_text = of_text and "text_encoder" in entries and entries.keys() <= {"text_encoder", "tokenizer"}
    if picture is not None:
        maps = picture_channels(picture, vae, unet.config["out_channels"])
        fixed = unet.config["in_channels"] - maps == unet.config["out_channels"]  # no learned variance
        opens = of_text and fixed and isinstance(picture, Inpainting) and maps == 1 + unet.config["out_channels"]
        return INPAINT_CLASS if opens else "ldm_kit.Pipeline"
    if vae is not None and unet.config["out_channels"] != unet.config["in_channels"]:
        return "ldm_kit.Pipeline"
    if of_text:
        return "StableDiffusionPipeline"
    # a frozen encoder has no entry, yet is a condition
    if entries or type(unet) is not UNet2DModel or unet.class_embedding is not None:
        return "ldm_kit.Pipeline"
    if vae is not None:
        return "LDMPipeline"
    return "DDIMPipeline" if isinstance(scheduler, DDIMScheduler) else "DDPMPipeline"


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Write model_index.json to a folder whose components are all saved, and clean their configs (`strip_paths`).

    A manifest.json that an earlier model left in the folder is removed, because the new files would not match it. The
    diffusers release is also written, without which diffusers' inpainting pipeline raises a KeyError.

    Args:
        folder: the model's folder.
        index: entries of model_index.json: the model's `_class_name`, and library and class of each component.
    """
    entries = {"_diffusers_version": diffusers.__version__, **index}
    (folder / INDEX).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    (folder / MANIFEST).unlink(missing_ok=True)
    strip_paths(folder)


def check_uncast(unet: nn.Module, folder: Path) -> None:
    """Check that no weights of a U-Net have been cast to a lower precision, before it is saved.

    Args:
        unet: the U-Net.
        folder: the folder to which it is to be saved, for the message.

    Raises:
        UserError: `cast_weights` has cast some of the weights to a lower precision for sampling.
    """
    types = {str(weight.dtype) for weight in unet.parameters()}
    if len(types) > 1 or any(weight.dtype.itemsize == 2 for weight in unet.parameters()):
        raise UserError(
            f"{folder}: not saved: the U-Net's weights were cast for sampling ({', '.join(sorted(types))}); "
            "open the model without a precision to save it"
        )
