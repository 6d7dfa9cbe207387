"""Weights of ckczzj/PDAE as ours: pure functions from original parameter names to a state dict and settings.

A checkpoint holds states `ema_encoder` and `ema_decoder`; the latter is the frozen U-Net in ADM's names, and the new
parts beside it (`shift_*`, `label_emb`). Latent nets are DiffAE's: `diffae_names.prior_from`.
"""

import re

from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.convert.diffae_weights import ONE_HEAD, Converted, Settings, attention_part, taken, with_code
from ldm_kit.convert.guided_diffusion_layout import Heads, Layout, State, denoiser_layout, shape_of
from ldm_kit.convert.guided_diffusion_weights import unet_from, unet_of
from ldm_kit.nets.shift_unet import ShiftUNet

_NEW = ("shift_", "label_emb.")


def base_from(state: State, *, image_size: int, heads: Heads = ONE_HEAD) -> Converted:
    """The frozen half of a decoder (or a plain DPM of the same code), for `guided_diffusion.unet_of(settings)`.

    Args:
        state: original names; those of the new parts are passed over.
        image_size: side of the pictures that it was trained on.
        heads: how attention is cut.

    Raises:
        UserError: these are other weights, or some are missing or too many.
    """
    return unet_from(_old(state), image_size=image_size, heads=heads)


def shift_from(state: State, *, image_size: int, heads: Heads = ONE_HEAD) -> Converted:
    """The new half of a decoder, for `ShiftUNet(base=..., **settings)` on that base; arguments and errors likewise."""
    new = {name: value for name, value in state.items() if name.startswith(_NEW)}
    if not new:
        raise UserError("this checkpoint has no weight that begins with 'shift_'; is it a plain DPM?")
    layout = denoiser_layout(_old(state))
    settings: Settings = {"z_width": shape_of(new, "label_emb.weight")[1]}
    _, base = base_from(state, image_size=image_size, heads=heads)
    found = taken(new, lambda: ShiftUNet(base=unet_of(base), **settings), lambda name: _name(name, layout), heads)
    return found, settings


def encoder_from(state: State, *, resolution: int, heads: int = 4) -> Converted:
    """The encoder, for `conditioning.semantic.StridedEncoder(**settings)`.

    Args:
        state: `encoder.N.*`.
        resolution: side of the pictures that it sees.
        heads: of its attention, which no shape tells.

    Raises:
        UserError: a name of another kind.
    """
    last = max((_index(name) for name in state), default=0)
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        index, layer = _index(name), name.split(".", 2)[2]
        part = attention_part(f"body.{index}", layer, value, Heads(count=heads))
        found |= part or {f"{'out' if index == last else f'body.{index}'}.{layer}": value.float()}
    convolutions = [n for n in sorted(state, key=_index) if n.endswith(".weight") and state[n].dim() == 4]
    attention = [_index(name) for name in state if name.endswith(".qkv.weight")]
    return found, {
        "resolution": resolution,
        "channels": shape_of(state, "encoder.0.weight")[1],
        "z_width": shape_of(state, f"encoder.{last}.weight")[0],
        "widths": tuple(len(state[name]) for name in convolutions),
        "attention": sum(_index(name) < attention[0] for name in convolutions) if attention else None,
        "heads": heads,
    }


def _old(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith(_NEW)}


def _name(ours: str, layout: Layout) -> str:
    if ours.startswith("z_embedding."):
        return ours.replace("z_embedding.", "label_emb.")
    return f"shift_{with_code(ours, layout, 'emb_z_layers')}"


def _index(name: str) -> int:
    match = re.match(r"encoder\.(\d+)\.\w", name)
    if match is None:
        raise UserError(f"cannot place the weight {name!r}; expected encoder.N.weight and the like")
    return int(match[1])
