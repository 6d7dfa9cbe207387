"""Semantic encoders: pictures [B, C, R, R] in [-1, 1] to codes z [B, Z], trained jointly with a decoder.

DiffAE's encoder (Preechakul et al. 2022) is the downward half of ADM's U-Net, whose blocks have a single convolution in
the released code. PDAE's (Zhang et al. 2022) is a short stack of strided convolutions.
"""

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, silu

from conditioning.base import Condition, ConditioningError
from conditioning.semantic_config import Blocks, SemanticConfig, SemanticEncoderConfig, StridedEncoderConfig

_SAVED = {"attention_levels": "attention", "layers_per_block": "layers", "norm_num_groups": "groups"}  # in config.json


class SemanticEncoder(ModelMixin, ConfigMixin):
    """DiffAE's encoder: pictures [B, C, R, R] to unbounded codes z [B, Z], for any R that every level can halve."""

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        *,
        channels: int = 3,
        z_width: int = 512,
        widths: Sequence[int] = (64, 128, 128, 128),
        attention: Sequence[bool] = (False, True, False, False),
        blocks: Blocks = "single",
        layers: int = 2,
        groups: int = 32,
    ) -> None:
        """Build the network.

        Args:
            channels: C of the pictures.
            z_width: Z, numbers in a code.
            widths: feature channels of each level. Level 0 works at the picture's resolution; each further level halves
                it.
            attention: for each level, whether it has attention.
            blocks: "single": blocks of one convolution, as in the released models; "double": full residual blocks.
            layers: blocks per level.
            groups: groups of every GroupNorm; must divide every width.
        """
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.body = nn.Sequential(*_levels(widths, attention, blocks, layers, groups))
        self.norm = nn.GroupNorm(groups, widths[-1])
        self.out = nn.Linear(widths[-1], z_width)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return codes z [B, Z] of pictures in [-1, 1], computed in the weights' dtype."""
        h = self.body(self.conv_in(pictures.to(self.conv_in.weight.dtype)))
        return self.out(silu(self.norm(h)).mean(dim=(2, 3)))


class StridedEncoder(ModelMixin, ConfigMixin):
    """PDAE's encoder: pictures [B, C, R, R] to codes z [B, Z]; R is fixed, because the last features are flattened."""

    @register_to_config
    def __init__(
        self,
        *,
        resolution: int,
        channels: int = 3,
        z_width: int = 512,
        widths: Sequence[int] = (64, 128, 256, 256, 256),
        attention: int | None = 3,
        heads: int = 4,
        groups: int = 32,
    ) -> None:
        """Build the network.

        Args:
            resolution: R, pixels along each side of a picture.
            channels: C of the pictures.
            z_width: Z, numbers in a code.
            widths: output channels of each convolution; each convolution halves the side.
            attention: place of the one attention layer: the number of convolutions before it, from 1; None: no
                attention.
            heads: attention heads; must divide the width at the attention.
            groups: groups of every GroupNorm; must divide every width.
        """
        super().__init__()
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip((channels, *widths), widths, strict=False)):
            layers += [] if i == 0 else [nn.GroupNorm(groups, before), nn.SiLU()]
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1)]
            layers += [_attention(after, heads, groups)] if i + 1 == attention else []
        self.body = nn.Sequential(*layers, nn.GroupNorm(groups, widths[-1]), nn.SiLU())
        side = -(-resolution // 2 ** len(widths))
        self.out = nn.Linear(widths[-1] * side * side, z_width)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return codes z [B, Z] of pictures [B, C, R, R] in [-1, 1], computed in the weights' dtype.

        Raises:
            ConditioningError: the pictures are not of the size `resolution`.
        """
        side = self.config["resolution"]
        if pictures.shape[-2:] != (side, side):
            raise ConditioningError(f"this encoder takes pictures of side {side}, got {tuple(pictures.shape[-2:])}")
        return self.out(self.body(pictures.to(self.out.weight.dtype)).flatten(1))


def build_semantic(config: SemanticConfig, *, resolution: int, channels: int = 3) -> SemanticEncoder | StridedEncoder:
    """Build the encoder that a config describes, for pictures [B, channels, resolution, resolution].

    Raises:
        ConditioningError: `resolution` cannot be halved as often as the encoder does.
    """
    match config:
        case SemanticEncoderConfig():
            halved, build = len(config.widths) - 1, SemanticEncoder
        case StridedEncoderConfig():
            halved, build = len(config.widths), StridedEncoder
    if resolution % 2**halved:
        raise ConditioningError(
            f"a picture of side {resolution} cannot be halved {halved} times by the semantic encoder; expected a "
            f"multiple of {2**halved}, or fewer widths"
        )
    fields = {_SAVED.get(name, name): value for name, value in config.model_dump(exclude={"kind"}).items()}
    more = {"resolution": resolution} if build is StridedEncoder else {}
    return build(channels=channels, **more, **fields)


def condition_of(z: Tensor) -> Condition:
    """Return a `Condition` with the semantic codes z [B, Z] as its vector, for a decoder."""
    return Condition(vector=z)


class SingleBlock(nn.Module):
    """Residual block with one convolution, as in DiffAE's released code: skip(x) + conv(SiLU(norm(x))).

    Args:
        before: input channels.
        after: output channels.
        groups: groups of the GroupNorm.
        down: whether the block halves height and width.
    """

    def __init__(self, before: int, after: int, groups: int, *, down: bool = False) -> None:
        super().__init__()
        self.norm, self.conv, self.down = nn.GroupNorm(groups, before), nn.Conv2d(before, after, 3, padding=1), down
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, before, h, w] to [B, after, h, w]; with `down`, average pooling halves h and w."""
        h = silu(self.norm(x))
        if self.down:
            h, x = avg_pool2d(h, 2), avg_pool2d(x, 2)
        return self.skip(x) + self.conv(h)


class DoubleBlock(nn.Module):
    """diffusers' residual block without a time embedding; as in ADM, its second convolution starts at zero.

    Args:
        before: input channels.
        after: output channels.
        groups: groups of each GroupNorm.
        down: whether the block halves height and width.
    """

    def __init__(self, before: int, after: int, groups: int, *, down: bool = False) -> None:
        super().__init__()
        self.block = ResnetBlock2D(
            in_channels=before,
            out_channels=after,
            groups=groups,
            eps=1e-5,
            down=down,
            temb_channels=None,  # pyright: ignore[reportArgumentType]  (None: no time)
        )
        _zero(self.block.conv2)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, before, h, w] to [B, after, h, w]; with `down`, h and w are halved."""
        return self.block(x, None)


def _levels(
    widths: Sequence[int], attention: Sequence[bool], blocks: Blocks, layers: int, groups: int
) -> list[nn.Module]:
    """Return the layers of `SemanticEncoder` between its first convolution and its last norm.

    They are in the order of DiffAE's released code. The arguments are those of `SemanticEncoder`.
    """
    block = SingleBlock if blocks == "single" else DoubleBlock
    modules: list[nn.Module] = []
    width, last = widths[0], widths[-1]
    for level, (after, attends) in enumerate(zip(widths, attention, strict=True)):
        for _ in range(layers):
            modules += [block(width, after, groups), *([_attention(after, 1, groups)] if attends else [])]
            width = after
        if level < len(widths) - 1:
            modules.append(block(width, width, groups, down=True))
    return [*modules, block(last, last, groups), _attention(last, 1, groups), block(last, last, groups)]


def _attention(width: int, heads: int, groups: int) -> Attention:
    """Build self-attention over all positions with a residual connection; the layer starts as the identity.

    Args:
        width: channels of the features.
        heads: number of heads, which divides `width`.
        groups: groups of the GroupNorm before the attention.
    """
    shape = {"heads": heads, "dim_head": width // heads, "norm_num_groups": groups, "eps": 1e-5}
    attention = Attention(width, **shape, residual_connection=True, bias=True, _from_deprecated_attn_block=True)
    _zero(attention.to_out[0])  # pyright: ignore[reportOptionalSubscript]
    return attention


@torch.no_grad()
def _zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
