"""Names of tensors in single-file checkpoints of Stable Diffusion 1 (CompVis' latent diffusion), from diffusers' names.

diffusers has the way from such a file to its own names; this is the way back.
"""

import re
from collections.abc import Iterable, Mapping

from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING, LDM_UNET_KEY
from torch import Tensor

from ldm_kit.config import UserError

FIRST_STAGE = "first_stage_model."
TEXT_ENCODER = "cond_stage_model.transformer.text_model."
UNET = LDM_UNET_KEY
_UNET_TOP: Mapping[str, str] = {
    **DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"],
    **DIFFUSERS_TO_LDM_MAPPING["unet"]["class_embed_type"],
}
_VAE_TOP: Mapping[str, str] = DIFFUSERS_TO_LDM_MAPPING["vae"]
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def unet_names(names: Iterable[str], layers: int) -> dict[str, str]:
    """Return the name in a single file of each tensor of a U-Net.

    Args:
        names: names of the tensors of a `UNet2DConditionModel`.
        layers: its `layers_per_block`, one number for all levels.

    Raises:
        UserError: such files have no tensor for one of the names.
    """
    listed = [*names]
    blocks = [match.groups() for match in map(_BLOCK.fullmatch, listed) if match is not None]
    attending = {level for side, level, kind, *_ in blocks if (side, kind) == ("up_blocks", "attentions")}
    return {name: UNET + (_UNET_TOP.get(name) or _unet_name(name, layers, attending)) for name in listed}


def _unet_name(name: str, layers: int, attending: set[str]) -> str:
    if middle := _MIDDLE.fullmatch(name):
        kind, index, rest = middle.groups()
        number = 2 * int(index) + (kind == "attentions")
        return f"middle_block.{number}.{_resnet(rest) if kind == 'resnets' else rest}"
    block = _BLOCK.fullmatch(name)
    if block is None:
        raise _unknown(name)
    side, level, kind, index, rest = block.groups()
    row = int(level) * (layers + 1) + int(index)
    match side, kind:
        case "down_blocks", "downsamplers":
            return f"input_blocks.{row + layers + 1}.0.{rest.replace('conv', 'op')}"
        case "up_blocks", "upsamplers":
            return f"output_blocks.{row + layers}.{1 + (level in attending)}.{rest}"
        case "down_blocks", _:
            prefix = f"input_blocks.{row + 1}"
        case _:
            prefix = f"output_blocks.{row}"
    return f"{prefix}.0.{_resnet(rest)}" if kind == "resnets" else f"{prefix}.1.{rest}"


def _resnet(rest: str) -> str:
    name, _, last = rest.rpartition(".")
    if name not in _RESNET:
        raise _unknown(rest)
    return f"{_RESNET[name]}.{last}"


def vae_tensors(tensors: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Return the tensors of an `AutoencoderKL` of so many `levels` under their names in a single file.

    The attention's matrices become 1x1 convolutions.

    Raises:
        UserError: such files have no tensor for one of the names.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        new = FIRST_STAGE + (_VAE_TOP.get(name) or _vae_name(name, levels))
        matrix = ".mid.attn_1." in new and value.ndim == 2
        renamed[new] = value[:, :, None, None] if matrix else value
    return renamed


def _vae_name(name: str, levels: int) -> str:
    half, _, inner = name.partition(".")
    if middle := _MIDDLE.fullmatch(inner):
        kind, index, rest = middle.groups()
        if kind == "resnets":
            return f"{half}.mid.block_{int(index) + 1}.{rest}"
        module, _, last = rest.rpartition(".")
        if module in _ATTENTION and index == "0":
            return f"{half}.mid.attn_1.{_ATTENTION[module]}.{last}"
    if block := _BLOCK.fullmatch(inner):
        side, level, kind, index, rest = block.groups()
        number, short = (level, "down") if side == "down_blocks" else (levels - 1 - int(level), "up")
        if kind == "resnets":
            return f"{half}.{short}.{number}.block.{index}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
        if kind != "attentions":
            return f"{half}.{short}.{number}.{short}sample.{rest}"
    raise _unknown(name)


def _unknown(name: str) -> UserError:
    return UserError(f"single files of Stable Diffusion have no tensor {name}; expected a model of its architecture")
