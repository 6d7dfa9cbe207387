"""Adaptive group normalisation (AdaGN) by a time embedding and a semantic code, in diffusers' residual blocks.

A block with `time_embedding_norm="scale_shift"` computes n (1 + scale) + shift, where n are the features after its
second norm, and scale and shift come from `time_emb_proj(SiLU(temb))`; temb is the time embedding. DiffAE and PDAE
apply the time's scale t_s and shift t_b first, then the code's scale z_s (in PDAE also a shift z_b):

    (1 + z_s) ((1 + t_s) n + t_b) + z_b = n (1 + scale) + shift,
    scale = (1 + z_s) (1 + t_s) - 1,  shift = (1 + z_s) t_b + z_b.

To condition a block on a code, it is therefore enough to pass the time embedding and the code, concatenated, as temb
and to replace the block's `time_emb_proj` by a `SemanticProjection`.
"""

from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn.functional import linear

from ldm_kit.config import UserError


class SemanticProjection(nn.Module):
    """Linear maps of a time embedding and a semantic code to the scale and shift of one residual block.

    The block computes n (1 + scale) + shift from its normalised features n. Scale and shift are computed in float32,
    also under autocast.

    Args:
        time_width: T, channels of the time embedding.
        z_width: Z, channels of the code.
        channels: C, output channels of the block.
        z_shift: False: the code only scales (DiffAE, Preechakul et al. 2022, section 3.1); True: it also shifts (PDAE).
        made: keyword arguments `device` and `dtype` with which the weights are created.
    """

    def __init__(self, time_width: int, z_width: int, channels: int, *, z_shift: bool = False, **made: Any) -> None:
        super().__init__()
        self.widths, self.z_shift = (time_width, z_width), z_shift
        self.time = nn.Linear(time_width, 2 * channels, **made)
        self.semantic = nn.Linear(z_width, (2 if z_shift else 1) * channels, **made)

    def forward(self, both: Tensor) -> Tensor:
        """Return the scale [B, C] and shift [B, C] of the block's C channels, concatenated: [B, 2C].

        Args:
            both: SiLU of the time embedding [B, T] and the code [B, Z], concatenated: [B, T + Z].

        Returns:
            A tensor in the weights' dtype.
        """
        time, z = both.split(self.widths, dim=1)
        with torch.autocast(both.device.type, enabled=False):  # the -1 here and the block's +1 lose digits in bfloat16
            scale, shift = _exact(self.time, time).chunk(2, dim=1)
            gain = _exact(self.semantic, z)
            gain, offset = gain.chunk(2, dim=1) if self.z_shift else (gain, 0.0)
            out = torch.cat([(1 + gain) * (1 + scale) - 1, (1 + gain) * shift + offset], dim=1)
        return out.to(self.time.weight.dtype)


def _exact(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x.float(), layer.weight.float(), layer.bias.float())


def give_z(module: nn.Module, time_width: int, z_width: int, *, z_shift: bool = False, keep_time: bool = False) -> None:
    """Condition every `ResnetBlock2D` in `module` on a semantic code as well as on the time embedding, in place.

    Each block's `time_emb_proj` is replaced by a `SemanticProjection`. The block's argument `temb` must then be the
    time embedding [B, T] and the code [B, Z], concatenated: [B, T + Z].

    Args:
        module: a U-Net or a part of one. Its blocks may use either `time_embedding_norm`: "default", which adds the
            time, or "scale_shift".
        time_width: T, channels of the time embedding.
        z_width: Z, channels of the code.
        z_shift: False: the code only scales (DiffAE); True: it also shifts (PDAE).
        keep_time: True: each block keeps its weights for the time, and those for the code start at zero, so that the
            block's output does not change yet. A "default" block has no weights for a scale by the time, so it gets
            new random weights for the time. False: all weights of the projections are new and random.

    Raises:
        UserError: `module` has no `ResnetBlock2D`, or a `ResnetBlock2D` of `module` takes no time embedding.
    """
    blocks = [block for block in module.modules() if isinstance(block, ResnetBlock2D)]
    if not blocks:
        raise UserError(f"a {type(module).__name__} without any ResnetBlock2D cannot be given a semantic code")
    for block in blocks:
        old = block.time_emb_proj
        if old is None:
            raise UserError("a residual block without a time embedding cannot be given a semantic code")
        made = {"device": old.weight.device, "dtype": old.weight.dtype}
        new = SemanticProjection(time_width, z_width, block.out_channels, z_shift=z_shift, **made)
        if keep_time:
            _keep(new, old)
        block.time_emb_proj = new  # pyright: ignore[reportAttributeAccessIssue]
        block.time_embedding_norm = "scale_shift"


@torch.no_grad()
def _keep(new: SemanticProjection, old: nn.Linear) -> None:
    for parameter in new.semantic.parameters():
        nn.init.zeros_(parameter)
    if old.weight.shape == new.time.weight.shape:
        new.time.weight.copy_(old.weight)
        new.time.bias.copy_(old.bias)
