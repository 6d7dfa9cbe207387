"""A classifier of noisy pictures: the encoder and middle block of ADM's U-Net, then attention pooling.

Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 4 and appendix G. The blocks are
diffusers': residual blocks with scale-shift norms, which also downsample, and plain self-attention.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from pydantic import AliasChoices, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from ldm_kit.config import UserError
from ldm_kit.nets.arguments import network_arguments
from ldm_kit.nets.levels import LevelsConfig
from ldm_kit.nets.unet import zero_init_like_adm


class HalfUNetConfig(LevelsConfig):
    """Settings of a classifier of noisy pictures. Level 0 has the input's resolution; each next level halves it."""

    widths: tuple[int, ...] = Field(default=(128, 256, 512), min_length=1, description="feature channels of each level")
    attention_levels: tuple[bool, ...] = Field(
        validation_alias=AliasChoices("attention_levels", "attention"),
        default=(True, True, True),
        description="for each level, whether it has attention; the middle block always has",
    )
    layers_per_block: int = Field(
        validation_alias=AliasChoices("layers_per_block", "layers"),
        default=2,
        ge=1,
        description="residual blocks of each level",
    )
    head_size: int | None = Field(default=64, ge=1, description="channels of an attention head; null: one head")

    @model_validator(mode="after")
    def _fits(self) -> "HalfUNetConfig":
        self.check_heads(self.head_size or 1, f"head_size {self.head_size}")
        return self


class AttentionPool2d(nn.Module):
    """Attention pooling of features [B, C, h, w] to logits [B, K] (CLIP, Radford et al. 2021).

    The only query is the mean of the features over positions.

    Args:
        side: height h and width w of the features.
        width: channels C of the features.
        out: number of logits K.
        head_size: channels of an attention head; None: one head.
    """

    def __init__(self, side: int, width: int, out: int, head_size: int | None) -> None:
        super().__init__()
        self.heads = 1 if head_size is None else width // head_size
        self.position = nn.Parameter(torch.randn(side * side + 1, width) / math.sqrt(width))
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Linear(width, out)

    def forward(self, h: Tensor) -> Tensor:
        """Return logits [B, K] of h [B, C, h, w]: the mean over positions attends to itself and to all positions."""
        positions = h.flatten(2).transpose(1, 2)
        tokens = torch.cat([positions.mean(1, keepdim=True), positions], dim=1) + self.position
        q, k, v = self.to_q(tokens[:, :1]), self.to_k(tokens), self.to_v(tokens)
        pooled = scaled_dot_product_attention(self._by_head(q), self._by_head(k), self._by_head(v))
        return self.to_out(pooled.transpose(1, 2).flatten(1))

    def _by_head(self, tokens: Tensor) -> Tensor:
        """Split `tokens` [B, L, C] into attention heads: [B, heads, L, C / heads]."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


class HalfUNet(ModelMixin, ConfigMixin):
    """A classifier of noisy pictures or latents x_t [B, C, h, w] at integer timesteps t [B]; returns logits [B, K].

    As in ADM, the last convolution of every residual block and the output projection of every attention layer start at
    zero.

    Args:
        sample_size: height h and width w of x_t, which are fixed because the pooling has learned positions.
        in_channels: channels C of x_t.
        classes: names of the K classes, in the order of the logits.
        widths: channels of each level.
        attention: for each level, whether its residual blocks are followed by attention.
        layers: residual blocks per level.
        head_size: channels of an attention head; None: one head as wide as its level.
        groups: groups of every GroupNorm.
        dropout: dropout in residual blocks.
        time_width: channels of the sinusoidal time embedding; the learned time embedding has 4 times as many. None: the
            first of `widths`.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        *,
        sample_size: int,
        in_channels: int,
        classes: Sequence[str],
        widths: Sequence[int],
        attention: Sequence[bool],
        layers: int = 2,
        head_size: int | None = 64,
        groups: int = 32,
        dropout: float = 0.0,
        time_width: int | None = None,
    ) -> None:
        super().__init__()
        time = widths[0] if time_width is None else time_width
        whole = UNet2DModel(
            in_channels=in_channels,
            time_embedding_dim=4 * time,
            down_block_types=tuple(
                "AttnDownBlock2D" if attends else "ResnetDownsampleBlock2D" for attends in attention
            ),
            up_block_types=("ResnetUpsampleBlock2D",) * len(widths),
            block_out_channels=tuple(widths),
            layers_per_block=layers,
            downsample_type="resnet",
            dropout=dropout,
            attention_head_dim=head_size,
            norm_num_groups=groups,
            attn_norm_num_groups=groups,  # else the middle's attention has no norm beside scale-shift
            resnet_time_scale_shift="scale_shift",
        )
        self.time_proj = Timesteps(time, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(time, 4 * time)
        self.conv_in, self.down_blocks, self.mid_block = whole.conv_in, whole.down_blocks, whole.mid_block
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-5)
        side = sample_size // 2 ** (len(widths) - 1)
        self.pool = AttentionPool2d(side, widths[-1], len(classes), head_size)
        zero_init_like_adm(self)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return logits [B, K] of noisy data x [B, C, h, w] at timesteps t [B].

        They are computed in the weights' dtype, or in that of an enclosing autocast.
        """
        dtype = self.conv_in.weight.dtype
        time: Tensor = self.time_embedding(self.time_proj(t).to(dtype))
        h: Tensor = self.conv_in(x.to(dtype))
        for block in self.down_blocks:
            h, _ = block(h, time)
        middle: Any = self.mid_block
        return self.pool(silu(self.norm_out(middle(h, time))))


def build_half_unet(config: HalfUNetConfig, *, sample_size: int, channels: int, classes: Sequence[str]) -> HalfUNet:
    """Build a classifier of noisy data x_t [B, channels, sample_size, sample_size], with random weights.

    Args:
        config: widths, attention and so on.
        sample_size: side of a training picture or latent.
        channels: channels of x_t.
        classes: names of the classes, in the order of the logits.

    Raises:
        UserError: `sample_size` cannot be halved once for every level after the first.
    """
    factor = 2 ** (len(config.widths) - 1)
    if sample_size % factor:
        raise UserError(
            f"a latent of side {sample_size} cannot be halved {len(config.widths) - 1} times; expected a multiple of "
            f"{factor}, or fewer net.widths"
        )
    shape = {"sample_size": sample_size, "in_channels": channels, "classes": tuple(classes)}
    return HalfUNet(**shape, **network_arguments(config))
