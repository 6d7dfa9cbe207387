"""Load the components of a plain diffusion model (autoencoder, U-Net, conditioner), and check that they fit together.

Plain means neither a noisy classifier nor a semantic model. Only components of the classes in `COMPONENTS` are loaded.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel, UNet2DModel

import conditioning.factory as conditioners
from autoencoder.base import AutoencoderError
from autoencoder.saved import CLASSES, check_config
from conditioning.base import Conditioner
from conditioning.pictures import PictureCondition
from ldm_kit.config import UserError
from ldm_kit.models.folder import CASCADE, CLASSIFIER, INDEX, SEMANTIC, ModelFolder, Noise, entry_of, read_json
from ldm_kit.models.picture_condition import read_picture_condition
from ldm_kit.nets.adm import AdmUNet
from ldm_kit.nets.size_embedding import takes_sizes
from ldm_kit.nets.unet import takes_level

FIRST_STAGE: Mapping[str, Any] = CLASSES
UNET: Mapping[str, Any] = {
    "UNet2DConditionModel": UNet2DConditionModel,
    "UNet2DModel": UNet2DModel,
    "AdmUNet": AdmUNet,
}
OUR_LIBRARIES: Mapping[str, str] = {"AdmUNet": "ldm_kit.nets.adm"}  # class -> module that defines it, if not diffusers
COMPONENTS: Mapping[str, tuple[str, tuple[str, ...]]] = {  # component's name -> (library, classes)
    "vae": ("diffusers", tuple(FIRST_STAGE)),
    "vqvae": ("diffusers", tuple(FIRST_STAGE)),
    "unet": ("diffusers", tuple(UNET)),
    "prior": ("ldm_kit.models.prior", ("CodePrior",)),  # over the embeddings of an image condition
    **conditioners.components(),
}
_UNUSED = ("scheduler", "safety_checker", "feature_extractor", "image_encoder")  # components that are not loaded


class Components(NamedTuple):
    """The components of a diffusion model; its networks are in evaluation mode and without gradients."""

    vae: Any  # an autoencoder of a class in `FIRST_STAGE`; None: a pixel model
    unet: Any  # UNet2DConditionModel, UNet2DModel or AdmUNet
    conditioner: Conditioner  # encodes prompts or classes
    noise: Noise  # noise schedule, prediction type and variance type, from the scheduler's config
    picture: PictureCondition | None = None  # what pictures condition the model; None: none do


def load_components(folder: ModelFolder, device: torch.device | str) -> Components:
    """Load all components of a diffusion model to a device.

    Raises:
        UserError: the folder holds a noisy classifier or a semantic model; or a component is missing or broken, does
            not fit the others, or has a class that is not in `COMPONENTS`.
    """
    classes = component_classes(folder)
    noise = folder.noise()
    first = next((name for name in ("vae", "vqvae") if name in classes), None)
    vae = None if first is None else load_first_stage(folder, first, classes[first], device)
    unet, conditioner = folder.component("unet", classes["unet"], UNET, device), folder.conditioner(device)
    components = Components(vae, unet, conditioner, noise, read_picture_condition(folder))
    check_fit(folder, components)
    return components


def load_first_stage(folder: ModelFolder, name: str, kind: str, device: torch.device | str) -> Any:
    """Load the autoencoder of a model's folder to a device.

    Args:
        folder: the model's folder.
        name: the component's name, "vae" or "vqvae".
        kind: name of its class, such as "AutoencoderKL".
        device: where the autoencoder is put.

    Raises:
        UserError: the autoencoder's files are missing, broken or of another class, or its normalisation of latents
            cannot be undone (a scaling factor of 0).
    """
    vae = folder.component(name, kind, FIRST_STAGE, device)
    try:
        return check_config(vae, f"{folder.path / name}/config.json")
    except AutoencoderError as error:
        raise UserError(str(error)) from None


def component_classes(folder: ModelFolder) -> dict[str, str]:
    """Return, by component name, the class name of each component that a diffusion model's model_index.json names.

    Raises:
        UserError: the folder holds a noisy classifier, a semantic model or a cascade; or a component is missing, has a
            class that is not in `COMPONENTS`, or has a config that asks for Python code in the folder (`auto_map`).
    """
    if folder.class_name == CLASSIFIER:
        raise UserError(
            f"{folder} holds a noisy classifier, which guides but cannot sample; expected a diffusion model"
        )
    if folder.class_name == SEMANTIC:
        raise UserError(f"{folder} holds a semantic model, which samples from codes; expected a plain diffusion model")
    if folder.class_name == CASCADE:
        raise UserError(f"{folder} holds a cascade of models; expected one model, such as those in its sub-folders")
    present = [name for name, value in folder.index.items() if isinstance(value, list) and any(value)]
    present += [name for name in COMPONENTS if not isinstance(folder.index.get(name), list | None)]  # of another type
    entries = {name: entry_of(folder, name) for name in present}
    for name, entry in entries.items():
        if name not in _UNUSED:
            _check_component(folder, name, entry)
    if missing := [name for name in ("unet", "scheduler") if name not in entries]:
        raise UserError(
            f"{folder.path / INDEX} names no {missing[0]}; expected a latent diffusion model in the diffusers layout"
        )
    return {name: kind for name, (_, kind) in entries.items()}


def _check_component(folder: ModelFolder, name: str, entry: tuple[str, str]) -> None:
    if name not in COMPONENTS:
        raise UserError(
            f"{folder} has a part {name!r} ({[*entry]}), which we cannot use; known are {', '.join(COMPONENTS)}"
        )
    library, classes = COMPONENTS[name]
    if entry[1] not in classes or entry[0] != OUR_LIBRARIES.get(entry[1], library):
        raise UserError(
            f"{folder}: {name} is {[*entry]}, expected {library} with {' or '.join(classes)}; no other code is run"
        )
    if not (folder.path / name).is_dir():
        raise UserError(f"{folder} is incomplete: its folder {name} is missing")
    config = folder.path / name / "config.json"
    if config.exists() and "auto_map" in read_json(config, str(config)):
        raise UserError(
            f"{config} asks for code of its own (auto_map), which is never run; expected a plain {entry[1]}"
        )


def check_fit(folder: ModelFolder, components: Components) -> None:
    """Check that the components of a diffusion model fit together.

    The U-Net must take as many channels as a latent has (in a pixel model, any number), and those of the maps of a
    picture condition. It must return as many as a latent has, or twice as many if it predicts the variance. Its
    cross-attention and its condition vector must have the conditioner's widths.

    Args:
        folder: the model's folder, for messages.
        components: the loaded components.

    Raises:
        UserError: a number of channels or a width is not as stated above.
    """
    vae, unet, conditioner, noise, picture = components
    learned = noise.variance == "learned_range"
    inputs, outputs = unet.config["in_channels"], unet.config["out_channels"]
    channels = inputs if vae is None else vae.config["latent_channels"]
    if vae is None and picture is not None:
        channels = outputs // (1 + learned)
    maps = 0 if picture is None else picture_channels(picture, vae, channels)
    expected = 2 * channels if learned else channels
    if (inputs, outputs) != (channels + maps, expected):
        data, variance = ("picture" if vae is None else "latent"), ("a learned" if learned else "no learned")
        more = f", the picture condition {maps}" if maps else ""
        raise UserError(
            f"{folder}: the U-Net has {inputs} channels in and {outputs} out, but a {data} has {channels}{more}, and "
            f"the scheduler says {variance} variance, with which {expected} come out"
        )
    if takes_level(unet) != (picture is not None and picture.takes_level):
        raise UserError(f"{folder}: only one of U-Net and picture condition has the noise level of a picture")
    width = unet.config["cross_attention_dim"] if isinstance(unet, UNet2DConditionModel) else None
    for what, of_unet, of_conditioner in (
        ("attends to tokens", width, conditioner.width),
        ("takes a vector", _vector_width(unet), conditioner.vector_width),
    ):
        sizes = what == "takes a vector" and width is not None and takes_sizes(unet, of_conditioner)
        if of_unet != of_conditioner and not sizes:
            raise UserError(
                f"{folder}: the U-Net {what} of width {of_unet}, but the conditioner's have {of_conditioner}"
            )


def picture_channels(picture: PictureCondition, vae: Any, channels: int) -> int:
    """Return the channels of a picture condition's maps.

    Args:
        picture: the picture condition.
        vae: the autoencoder; None: a model of pixels.
        channels: channels of a latent, or of a picture in a model of pixels.
    """
    return picture.channels(channels, None) if vae is None else picture.channels(vae.config["in_channels"], channels)


def _vector_width(unet: Any) -> int | None:
    if unet.class_embedding is None or takes_level(unet):
        return None
    return unet.config.get("projection_class_embeddings_input_dim") or unet.time_embedding.linear_2.out_features
