"""Semantic encoders of pictures [B, C, R, R] in [-1, 1] to codes z [B, Z], trained jointly with a decoder.

DiffAE's (Preechakul et al. 2022) is ADM's downward half, in the released code with one convolution a block; PDAE's
(Zhang et al. 2022) is a short stack of strided convolutions.
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
    """DiffAE's encoder of pictures [B, C, R, R] to z [B, Z], for any R that halves often enough; z is unbounded."""

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
            widths: feature channels of each level; level 0 has the picture's resolution, each next one half.
            attention: whether each level has attention; as many as `widths`.
            blocks: single: one convolution a block, as the released models have; double: full residual blocks.
            layers: blocks of each level.
            groups: of every GroupNorm; must divide every width.
        """
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.body = nn.Sequential(*_levels(widths, attention, blocks, layers, groups))
        self.norm = nn.GroupNorm(groups, widths[-1])
        self.out = nn.Linear(widths[-1], z_width)

    def forward(self, pictures: Tensor) -> Tensor:
        """Encode pictures in [-1, 1], in the weights' dtype."""
        h = self.body(self.conv_in(pictures.to(self.conv_in.weight.dtype)))
        return self.out(silu(self.norm(h)).mean(dim=(2, 3)))


class StridedEncoder(ModelMixin, ConfigMixin):
    """PDAE's encoder of pictures [B, C, R, R] to z [B, Z], for one R: the last features are flattened."""

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
            widths: channels of each convolution; each halves the side.
            attention: after how many convolutions there is attention, 1 to the number of widths; None: nowhere.
            heads: of attention; must divide the width there.
            groups: of every GroupNorm; must divide every width.
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
        """Encode pictures in [-1, 1], in the weights' dtype; raises ConditioningError on another size."""
        side = self.config["resolution"]
        if pictures.shape[-2:] != (side, side):
            raise ConditioningError(f"this encoder takes pictures of side {side}, got {tuple(pictures.shape[-2:])}")
        return self.out(self.body(pictures.to(self.out.weight.dtype)).flatten(1))


def build_semantic(config: SemanticConfig, *, resolution: int, channels: int = 3) -> SemanticEncoder | StridedEncoder:
    """Build the encoder of a config for pictures [B, channels, resolution, resolution].

    Raises:
        ConditioningError: they cannot be halved that often.
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
    """Return codes [B, Z] as the vector of a condition."""
    return Condition(vector=z)


class SingleBlock(nn.Module):
    """The block skip(x) + conv(SiLU(norm(x))): ADM's without time embedding, as in DiffAE's released code."""

    def __init__(self, before: int, after: int, groups: int, *, down: bool = False) -> None:
        super().__init__()
        self.norm, self.conv, self.down = nn.GroupNorm(groups, before), nn.Conv2d(before, after, 3, padding=1), down
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, before, h, w] to [B, after, h, w], or half of h and w: averaged between SiLU and convolution."""
        h = silu(self.norm(x))
        if self.down:
            h, x = avg_pool2d(h, 2), avg_pool2d(x, 2)
        return self.skip(x) + self.conv(h)


class DoubleBlock(nn.Module):
    """diffusers' residual block without a time embedding; its second convolution starts at zero, as ADM's."""

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
        """Map [B, before, h, w] to [B, after, h, w], or half of h and w."""
        return self.block(x, None)


def _levels(
    widths: Sequence[int], attention: Sequence[bool], blocks: Blocks, layers: int, groups: int
) -> list[nn.Module]:
    """Return the layers between the first convolution and the head, in the order of the released code."""
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
    """Build self-attention over all positions, added to its input; it starts as the identity."""
    shape = {"heads": heads, "dim_head": width // heads, "norm_num_groups": groups, "eps": 1e-5}
    attention = Attention(width, **shape, residual_connection=True, bias=True, _from_deprecated_attn_block=True)
    _zero(attention.to_out[0])  # pyright: ignore[reportOptionalSubscript]
    return attention


@torch.no_grad()
def _zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
