"""Conversion of weights of ckczzj/PDAE: its state dict to state dicts and settings of ldm_kit's networks.

A checkpoint holds the averaged weights `ema_encoder.*` and `ema_decoder.*`. The decoder is the base model's U-Net, with
ADM's names, together with the layers of the gradient estimator (`shift_*`, `label_emb`). The network of PDAE's prior is
DiffAE's latent net: `diffae_weights.prior_from`.
"""

import re
from functools import partial

from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.convert.diffae_weights import (
    ONE_HEAD,
    Converted,
    Settings,
    attention_tensors,
    convert_state_dict,
    original_name_with_code,
)
from ldm_kit.convert.guided_diffusion_layout import Heads, Layout, State, denoiser_layout, shape_of
from ldm_kit.convert.guided_diffusion_weights import build_adm_unet, unet_from
from ldm_kit.nets.shift_unet import ShiftUNet

_NEW = ("shift_", "label_emb.")


def base_from(state_dict: State, *, image_size: int, heads: Heads = ONE_HEAD) -> Converted:
    """Convert the base model in a PDAE's decoder, or a plain diffusion model that was trained with PDAE's program.

    Args:
        state_dict: weights with original names; those of the gradient estimator are ignored.
        image_size: side of the training pictures in pixels.
        heads: how the U-Net's attention is divided into heads.

    Returns:
        State dict and settings of the network that `guided_diffusion_weights.build_adm_unet(settings)` builds.

    Raises:
        UserError: `state_dict` lacks a weight of this network, has an unknown one, or has one of a wrong shape.
    """
    return unet_from(_base(state_dict), image_size=image_size, heads=heads)


def shift_from(state_dict: State, *, image_size: int, heads: Heads = ONE_HEAD) -> Converted:
    """Convert a PDAE's gradient estimator; return its state dict and settings for `ShiftUNet(base=..., **settings)`.

    Args:
        state_dict: the decoder's weights with original names, those of the base model among them.
        image_size: side of the training pictures in pixels.
        heads: how the U-Net's attention is divided into heads.

    Raises:
        UserError: `state_dict` lacks a weight of this network, has an unknown one, or has one of a wrong shape.
    """
    new = {name: value for name, value in state_dict.items() if name.startswith(_NEW)}
    if not new:
        raise UserError("this checkpoint has no weight that begins with 'shift_'; is it a plain DPM?")
    layout = denoiser_layout(_base(state_dict))
    settings: Settings = {"z_width": shape_of(new, "label_emb.weight")[1]}
    _, base = base_from(state_dict, image_size=image_size, heads=heads)
    shift_name = partial(_shift_name, layout=layout)
    weights = convert_state_dict(new, lambda: ShiftUNet(base=build_adm_unet(base), **settings), shift_name, heads)
    return weights, settings


def encoder_from(state_dict: State, *, resolution: int, heads: int = 4) -> Converted:
    """Convert PDAE's encoder; return its state dict and the settings for `conditioning.semantic.StridedEncoder`.

    Args:
        state_dict: weights named `encoder.N.*`.
        resolution: side of the encoder's input pictures in pixels.
        heads: number of heads of the encoder's attention, which no shape tells.

    Raises:
        UserError: a weight is not named `encoder.N.*`, or the first or the last one is missing.
    """
    last = max((_index(name) for name in state_dict), default=0)
    tensors: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        index, layer = _index(name), name.split(".", 2)[2]
        attention_weights = attention_tensors(f"body.{index}", layer, value, Heads(count=heads))
        tensors |= attention_weights or {f"{'out' if index == last else f'body.{index}'}.{layer}": value.float()}
    convolutions = [n for n in sorted(state_dict, key=_index) if n.endswith(".weight") and state_dict[n].dim() == 4]
    attention = [_index(name) for name in state_dict if name.endswith(".qkv.weight")]
    return tensors, {
        "resolution": resolution,
        "channels": shape_of(state_dict, "encoder.0.weight")[1],
        "z_width": shape_of(state_dict, f"encoder.{last}.weight")[0],
        "widths": tuple(len(state_dict[name]) for name in convolutions),
        "attention": sum(_index(name) < attention[0] for name in convolutions) if attention else None,
        "heads": heads,
    }


def _base(state_dict: State) -> State:
    """Return the weights of the base model, without those of the gradient estimator."""
    return {name: value for name, value in state_dict.items() if not name.startswith(_NEW)}


def _shift_name(name: str, layout: Layout) -> str:
    """Return PDAE's name of the weight `name` of ldm_kit's `ShiftUNet`; `layout` has the network's settings."""
    if name.startswith("z_embedding."):
        return name.replace("z_embedding.", "label_emb.")
    return f"shift_{original_name_with_code(name, layout, 'emb_z_layers')}"


def _index(name: str) -> int:
    """Return N of a weight's name `encoder.N.*`; raises UserError for a name of another form."""
    match = re.match(r"encoder\.(\d+)\.\w", name)
    if match is None:
        raise UserError(f"unexpected weight {name!r}; expected encoder.N.weight and the like")
    return int(match[1])
