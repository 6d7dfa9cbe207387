"""Adaptive group normalisation by time and semantic code, in diffusers' residual blocks.

A block with `time_embedding_norm="scale_shift"` computes h = norm2(h) (1 + scale) + shift, with scale and shift from
`time_emb_proj(SiLU(temb))`. Both papers apply a code's scale (and shift) after those of the time:

    (1 + z_s) ((1 + t_s) n + t_b) + z_b = n (1 + [(1 + z_s) (1 + t_s) - 1]) + [(1 + z_s) t_b + z_b],

so a block whose input is temb = [time ; code] needs no other change than its projection.
"""

from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn.functional import linear

from ldm_kit.config import UserError


class SemanticProjection(nn.Module):
    """Projection of [time ; code] [B, T + Z] to [scale ; shift] [B, 2C] of a residual block, in float32 under autocast.

    Args:
        time_width: T.
        z_width: Z.
        channels: C.
        z_shift: False: the code scales (DiffAE, Preechakul et al. 2022, section 3.1); True: it also shifts (PDAE).
        made: device and dtype of the weights.
    """

    def __init__(self, time_width: int, z_width: int, channels: int, *, z_shift: bool = False, **made: Any) -> None:
        super().__init__()
        self.widths, self.z_shift = (time_width, z_width), z_shift
        self.time = nn.Linear(time_width, 2 * channels, **made)
        self.semantic = nn.Linear(z_width, (2 if z_shift else 1) * channels, **made)

    def forward(self, both: Tensor) -> Tensor:
        """Project both halves, to which the block has applied SiLU; return the dtype of the weights."""
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
    """Make every `ResnetBlock2D` in `module` take temb = [time ; code] [B, T + Z], in place.

    Args:
        module: a U-Net or a part of one; its blocks may add the time (`default`) or scale by it (`scale_shift`).
        time_width: T.
        z_width: Z.
        z_shift: whether the code also shifts (PDAE).
        keep_time: the blocks' own projections of time stay and the code's start at zero, so that nothing changes yet.
            A block that only adds the time has no scale to keep and gets a fresh projection.

    Raises:
        UserError: there is no such block, or one that takes no time.
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
