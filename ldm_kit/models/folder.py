"""The parts of a saved model's folder: opened strictly, and written without traces of the machine that wrote them.

A folder is read as data: known classes from known libraries, safetensors, JSON. What else it asks for is refused.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNet2DModel, VQModel

import conditioning.factory as conditioners
from conditioning.base import Conditioner, ConditioningError
from ldm_kit.config import UserError
from ldm_kit.diffusion.likelihood import VarianceType
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.nets.adm import AdmUNet
from ldm_kit.nets.execution import prepare_loaded
from ldm_kit.solvers.samplers import default_scheduler, from_scheduler_config, learns_variance, to_scheduler

INDEX = "model_index.json"
CLASSIFIER = "ldm_kit.NoisyClassifier"  # what a saved noisy classifier's index calls itself
SEMANTIC = "ldm_kit.SemanticModel"  # ... and a semantic model's
FIRST_STAGE: Mapping[str, Any] = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}
UNET: Mapping[str, Any] = {
    "UNet2DConditionModel": UNet2DConditionModel,
    "UNet2DModel": UNet2DModel,
    "AdmUNet": AdmUNet,
}
OURS: Mapping[str, str] = {"AdmUNet": "ldm_kit.nets.adm"}  # class -> where it is ours, not diffusers'
KNOWN: Mapping[str, tuple[str, tuple[str, ...]]] = {  # part -> (library, classes)
    "vae": ("diffusers", tuple(FIRST_STAGE)),
    "vqvae": ("diffusers", tuple(FIRST_STAGE)),
    "unet": ("diffusers", tuple(UNET)),
    **conditioners.components(),
}
_UNUSED = ("scheduler", "safety_checker", "feature_extractor", "image_encoder")  # read as numbers alone, or not at all


def model_folder(place: Path) -> Path:
    """The model's folder: `place` itself, or the finished model in a run's folder."""
    inside = place / "model"
    return inside if not (place / INDEX).exists() and (inside / INDEX).exists() else place


def device_named(name: str | None) -> torch.device:
    """A device that works; None: the accelerator, or else the CPU.

    Raises:
        UserError: there is no such device.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name is None:
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"cannot use the device {name!r}: {str(error).splitlines()[0]}") from None
    return device


def read_index(folder: Path) -> dict[str, str]:
    """The classes of a saved model's parts, by part, from its model_index.json.

    Raises:
        UserError: no such folder or file, a part that we do not know or that brings its own code, or a part missing.
    """
    index = read_json(folder / INDEX, f"{folder} is no saved model: its {INDEX}")
    if index.get("_class_name") == CLASSIFIER:
        raise UserError(f"{folder} holds a noisy classifier, which guides but cannot draw; expected a diffusion model")
    if index.get("_class_name") == SEMANTIC:
        raise UserError(f"{folder} holds a semantic model, which draws from codes; expected a plain diffusion model")
    parts = {name: value for name, value in index.items() if isinstance(value, list) and any(value)}
    for name, value in parts.items():
        if name not in _UNUSED:
            _refuse_foreign(folder, name, value)
    if lost := [name for name in ("unet", "scheduler") if name not in parts]:
        raise UserError(
            f"{folder / INDEX} names no {lost[0]}; expected a latent diffusion model in the diffusers layout"
        )
    return {name: value[1] for name, value in parts.items()}


def _refuse_foreign(folder: Path, name: str, value: Any) -> None:
    if name not in KNOWN:
        raise UserError(f"{folder} has a part {name!r} ({value}), which we cannot use; known are {', '.join(KNOWN)}")
    library, classes = KNOWN[name]
    if len(value) != 2 or value[1] not in classes or value[0] != OURS.get(value[1], library):
        raise UserError(
            f"{folder}: {name} is {value}, expected {library} with {' or '.join(classes)}; no other code is run"
        )
    if not (folder / name).is_dir():
        raise UserError(f"{folder} is incomplete: its folder {name} is missing")
    config = folder / name / "config.json"
    if config.exists() and "auto_map" in read_json(config, str(config)):
        raise UserError(
            f"{config} asks for code of its own (auto_map), which is never run; expected a plain {value[1]}"
        )


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object; raises UserError, beginning with `what`, if it is missing or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{what} is missing or no JSON object; expected a folder in the diffusers layout")
    return found


def component(folder: Path, name: str, kind: str, classes: Mapping[str, Any]) -> Any:
    """One network of diffusers, with all of its weights.

    Raises:
        UserError: its files are missing, broken, of another class, or do not fit together.
    """
    place = folder / name
    stated = read_json(place / "config.json", f"{place}/config.json").get("_class_name")
    if stated != kind:
        raise UserError(f"{place}/config.json is of class {stated}, but {INDEX} says {kind}")
    with silence_diffusers():
        try:
            module, found = classes[kind].from_pretrained(
                place, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # of many unrelated classes: broken JSON or weights, unknown blocks, shapes
            raise UserError(f"cannot open {place}: {' '.join(str(error).split()):.300}") from None
    if lost := found["missing_keys"]:
        raise UserError(f"the weights in {place} lack {len(lost)} tensors, the first being {sorted(lost)[0]}")
    return module


def schedule(folder: Path) -> tuple[ScheduleConfig, PredictionType, VarianceType]:
    """What the folder's scheduler says of the noise, of the network's output, and of the variance of ddpm's steps.

    Raises:
        UserError: no scheduler_config.json, or one that our schedules cannot express.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path, str(path))
    try:
        found = from_scheduler_config(config)
    except (ValueError, TypeError):
        raise UserError(
            f"{path} holds numbers that are no noise schedule; expected those of a diffusers scheduler"
        ) from None
    if learns_variance(config):
        return *found, "learned_range"
    return *found, "large" if config.get("variance_type") == "fixed_large" else "small"


def conditioner(folder: Path) -> Conditioner:
    """The folder's conditioner; raises UserError if its files are missing, broken, or do not fit together."""
    with silence_diffusers():
        try:
            return conditioners.load(folder)
        except ConditioningError as error:
            raise UserError(str(error)) from None
        except Exception as error:  # of many unrelated classes: broken JSON or weights, shapes
            raise UserError(f"cannot open the conditioner in {folder}: {' '.join(str(error).split()):.300}") from None


def check_parts(folder: Path, vae: Any, unet: Any, conditioner: Conditioner, *, learned: bool) -> None:
    """Refuse a U-Net that does not fit the first stage (None: pixels), the conditioner or the learned variance.

    Raises:
        UserError: channels or a width that differ; names both sides.
    """
    into, out = unet.config["in_channels"], unet.config["out_channels"]
    channels = into if vae is None else vae.config["latent_channels"]
    wanted = 2 * channels if learned else channels
    if (into, out) != (channels, wanted):
        what, variance = ("picture" if vae is None else "latent"), ("a learned" if learned else "no learned")
        raise UserError(
            f"{folder}: the U-Net has {into} channels in and {out} out, but a {what} has {channels}, and the scheduler "
            f"says {variance} variance, with which {wanted} come out"
        )
    width = unet.config["cross_attention_dim"] if isinstance(unet, UNet2DConditionModel) else None
    for what, ours, theirs in (
        ("attends to tokens", width, conditioner.width),
        ("takes a vector", _vector_width(unet), conditioner.vector_width),
    ):
        if ours != theirs:
            raise UserError(f"{folder}: the U-Net {what} of width {ours}, but the conditioner's have {theirs}")


class ModelParts(NamedTuple):
    """The parts of a diffusion model, in evaluation mode and without gradients."""

    vae: Any  # None: it draws pixels
    unet: Any
    conditioner: Conditioner
    schedule: ScheduleConfig
    target: PredictionType
    variance: VarianceType


def open_parts(folder: Path, device: torch.device | str) -> ModelParts:
    """Everything in a diffusion model's folder, on a device.

    Raises:
        UserError: no such folder, or a part that is missing, broken, unknown, or does not fit the others.
    """
    index = read_index(folder)
    noise = schedule(folder)
    first = next((name for name in ("vae", "vqvae") if name in index), None)
    vae = None if first is None else component(folder, first, index[first], FIRST_STAGE)
    unet = component(folder, "unet", index["unet"], UNET)
    told = conditioner(folder)
    check_parts(folder, vae, unet, told, learned=noise[2] == "learned_range")
    for module in (vae, unet, told):
        if module is not None:
            prepare_loaded(module, device).to(device)
    return ModelParts(vae, unet, told, *noise)


def _vector_width(unet: Any) -> int | None:
    if unet.class_embedding is None:
        return None
    return unet.config.get("projection_class_embeddings_input_dim") or unet.time_embedding.linear_2.out_features


def unet_entry(unet: Any) -> tuple[str, str]:
    """What model_index.json says of a U-Net: library and class."""
    name = type(unet).__name__
    return OURS.get(name, "diffusers"), name


def scheduler(config: ScheduleConfig, target: PredictionType, variance: VarianceType, *, pixels: bool) -> Any:
    """The scheduler of a folder to be saved; plain diffusers clips pictures with it as we do, and no latents.

    Raises:
        UserError: diffusers cannot express the combination.
    """
    if variance == "large":
        found: Any = to_scheduler("ddpm-large", config, target)
    else:
        found = default_scheduler(config, target, variance == "learned_range")
    if "clip_sample" not in found.config:
        return found
    return type(found).from_config(found.config, clip_sample=pixels)


def pipeline_class(vae: Any, unet: Any, scheduler: Any, entries: Mapping[str, Any]) -> str:
    """The class of diffusers that opens a folder of these parts and a conditioner's entries; else ours."""
    if isinstance(vae, AutoencoderKL) and isinstance(unet, UNet2DConditionModel) and "text_encoder" in entries:
        return "StableDiffusionPipeline"
    # a frozen encoder has no entry, yet is a condition
    if entries or type(unet) is not UNet2DModel or unet.class_embedding is not None:
        return "ldm_kit.Pipeline"
    if vae is not None:
        return "LDMPipeline"
    return "DDIMPipeline" if isinstance(scheduler, DDIMScheduler) else "DDPMPipeline"


@contextmanager
def silence_diffusers() -> Iterator[None]:
    """Without the advice that diffusers logs about weights; we say it in a sentence of our own."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def strip_paths(folder: Path) -> None:
    """Take paths of this machine out of the configs, and give weights the mode that the umask asks for."""
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for weights in path.parent.glob("*.safetensors"):
            weights.chmod(path.stat().st_mode)
