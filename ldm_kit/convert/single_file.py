"""Single-file checkpoints (.safetensors) of Stable Diffusion 1 and 2: to a saved model, and from one.

A single file has the weights of U-Net, autoencoder and text encoder alone. Sizes, tokenizer and noise schedule are
those of a folder in the diffusers layout, of which no weights are needed. diffusers' own functions convert the names of
tensors; what is written is read back by them, and refused if a tensor differs.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as layout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conditioning.bpe import load_tokenizer
from conditioning.text import TextConditioner
from ldm_kit.config import UserError
from ldm_kit.convert.single_file_layout import FIRST_STAGE, TEXT_ENCODER, UNET, unet_names, vae_tensors
from ldm_kit.methods.export import saved_model
from ldm_kit.models.folder import INDEX, ModelFolder, model_folder, read_json, silence_diffusers
from ldm_kit.models.loaded import check_tensors
from ldm_kit.models.picture_condition import FILE as PICTURE_CONDITION
from ldm_kit.models.picture_condition import INPAINT_CLASS
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.saved_sampling import FILE as SAMPLING
from ldm_kit.models.saving import write_index
from ldm_kit.paths import check_writable, check_writable_file
from ldm_kit.training import checkpoint as checkpoints

CLASSES = ("StableDiffusionPipeline", INPAINT_CLASS)
SUFFIX = ".safetensors"
_COMPONENTS = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
}
_ABSENT = ("safety_checker", "feature_extractor", "image_encoder")
Weights = dict[str, Tensor]


def convert_single_file(path: Path, out: Path, config: Path) -> str:
    """Make a saved model of a single file; return a sentence that says so.

    Args:
        path: the file, .safetensors.
        out: the new folder.
        config: a folder in the diffusers layout with the settings of such a model; its weights are not read.

    Raises:
        UserError: the file is no such checkpoint, its tensors do not fit the settings, a setting is missing, or `out`
            exists or cannot be written.
    """
    if out.exists():
        raise UserError(f"{out} exists already; name a new folder for the model")
    check_writable(out.parent)
    settings = model_folder(config)
    index = _index(settings)
    weights = _read(path)
    unet = _network(settings / "unet", UNet2DConditionModel, layout.convert_ldm_unet_checkpoint, weights)
    vae = _network(settings / "vae", AutoencoderKL, layout.convert_ldm_vae_checkpoint, weights)
    try:
        conditioner = TextConditioner(_text_encoder(settings, weights), load_tokenizer(settings / "tokenizer"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot open text_encoder and tokenizer in {settings}: {error!s:.200}") from None

    def fill(draft: Path) -> None:
        unet.save_pretrained(draft / "unet")
        vae.save_pretrained(draft / "vae")
        conditioner.save(draft)
        shutil.copytree(settings / "scheduler", draft / "scheduler")
        for name in (name for name in (SAMPLING, PICTURE_CONDITION) if (settings / name).is_file()):
            shutil.copyfile(settings / name, draft / name)
        write_index(draft, index)
        Pipeline.load(draft)  # refuses what does not fit together

    return f"model in {checkpoints.write(out, fill)}"


def write_single_file(model: Path | str, out: Path) -> Path:
    """Write the weights of a saved model to one file in the layout of Stable Diffusion 1; return its path.

    Args:
        model: a saved model, or the folder of a finished run: KL autoencoder, U-Net with attention, CLIP text encoder.
        out: the new file, .safetensors.

    Raises:
        UserError: the model has other parts, or a tensor for which such files have no place; or `out` exists, has
            another suffix or cannot be written.
    """
    if out.suffix != SUFFIX:
        raise UserError(f"{out} is no {SUFFIX} file; name one")
    check_writable_file(out)
    folder = saved_model(model)
    if ModelFolder.open(folder).class_name not in CLASSES:
        raise UserError(f"{folder} is no {' or '.join(CLASSES)}; a single file holds no other model")
    weights = _single(Pipeline.load(folder))
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".tmp-{out.name}")
    try:
        save_file(weights, draft, metadata={"format": "pt"})
        os.replace(draft, out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {out}: {error}") from None
    finally:
        draft.unlink(missing_ok=True)
    return out


def _single(pipeline: Pipeline) -> Weights:
    """Return a model's tensors by their names in a single file, after reading them back."""
    unet, vae, encoder = pipeline.unet, pipeline.vae, pipeline.conditioner.trainable["text_encoder"]
    layers = unet.config["layers_per_block"]
    if vae is None or not isinstance(layers, int):
        raise UserError("a single file needs an autoencoder, and a U-Net with one number of blocks at all levels")
    names = unet_names(unet.state_dict(), layers)
    weights = {names[name]: value for name, value in unet.state_dict().items()}
    weights |= vae_tensors(vae.state_dict(), len(vae.config["block_out_channels"]))
    weights |= {TEXT_ENCODER + name: value for name, value in encoder.state_dict().items()}
    _check_same(layout.convert_ldm_unet_checkpoint(weights, unet.config), unet)
    _check_same(layout.convert_ldm_vae_checkpoint(weights, vae.config), vae)
    return {name: value.detach().cpu().contiguous() for name, value in weights.items()}


def _check_same(weights: Mapping[str, Tensor], network: nn.Module) -> None:
    expected = network.state_dict()
    differ = [name for name in expected.keys() | weights.keys() if not _equal(weights.get(name), expected.get(name))]
    if differ:
        raise UserError(f"{type(network).__name__} does not fit into a single file: {min(differ)} is not read back")


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def _index(settings: Path) -> dict[str, Any]:
    """Return the index of the model that is made, of that of the settings' folder."""
    index = read_json(settings / INDEX, f"{settings} is no model's folder: its {INDEX}")
    if index.get("_class_name") not in CLASSES:
        raise UserError(f"{settings / INDEX}: _class_name is {index.get('_class_name')!r:.60}; expected {CLASSES[0]}")
    for name, entry in _COMPONENTS.items():
        if index.get(name) != entry:
            raise UserError(f"{settings / INDEX}: {name} is {index.get(name)!r:.80}; expected {entry}")
    if not (settings / "scheduler" / "scheduler_config.json").is_file():
        raise UserError(f"{settings} has no scheduler/scheduler_config.json, which says the noise schedule")
    names = ("_class_name", *_COMPONENTS, "tokenizer", "scheduler")
    absent = dict.fromkeys(_ABSENT, (None, None)) | {"requires_safety_checker": False}
    return {name: index[name] for name in names if name in index} | absent


def _read(path: Path) -> Weights:
    if path.suffix != SUFFIX:
        raise UserError(f"{path} is no {SUFFIX} file; other files may hold code, which is never run")
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error!s:.200}") from None
    for what, prefix in (("U-Net", UNET), ("autoencoder", FIRST_STAGE), ("text encoder", "cond_stage_model.")):
        if not any(name.startswith(prefix) for name in weights):
            raise UserError(f"{path} has no {what} ({prefix}...); expected a checkpoint of Stable Diffusion 1 or 2")
    return weights


def _network(folder: Path, kind: Any, convert: Callable[..., Weights], weights: Weights) -> Any:
    """Build a network of diffusers from its config.json, and load its part of a single file into it."""
    config = read_json(folder / "config.json", f"{folder}/config.json")
    with silence_diffusers():
        try:
            network = kind.from_config(config)
            state = convert(dict(weights), network.config)
        except Exception as error:  # of many unrelated classes: unknown blocks, names that are not there
            raise UserError(
                f"{folder}/config.json does not fit the file: {' '.join(str(error).split()):.200}"
            ) from None
    return _load(network, state, folder)


def _text_encoder(settings: Path, weights: Weights) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = settings / "text_encoder"
    encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(folder, local_files_only=True))
    if layout.is_open_clip_model(weights):
        state = layout.convert_open_clip_checkpoint(encoder, weights)
    else:
        state = layout.convert_ldm_clip_checkpoint(weights)
    inner = hasattr(encoder, "text_model")  # transformers 4; without this module from 5.6 on
    names = {name: name if inner else name.removeprefix("text_model.") for name in state if "position_ids" not in name}
    return _load(encoder, {new: state[name] for name, new in names.items()}, folder)


def _load(network: Any, state: Mapping[str, Tensor | None], folder: Path) -> Any:
    try:
        report = network.load_state_dict(
            {name: value for name, value in state.items() if value is not None}, strict=False
        )
    except RuntimeError as error:
        raise UserError(f"the file does not fit {folder}/config.json: {' '.join(str(error).split()):.200}") from None
    check_tensors(folder, report.missing_keys, report.unexpected_keys)
    return network.eval()
