"""EncDiff's conditional U-Net: cross-attention to one token for each number of a semantic code.

Yang et al. 2024, "Diffusion Model with Cross Attention as an Inductive Bias for Disentanglement": each number of the
code has an MLP of its own, which turns it into a token, and diffusers' `UNet2DConditionModel` attends to these tokens,
in place of DiffAE's adaptive group norms. Time scales and shifts the norms, as in `SemanticUNet`.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import elu

from ldm_kit.config import Config
from ldm_kit.nets.semantic_unet import expand_codes
from ldm_kit.nets.zero_init import zero_init_like_adm


class TokenCodeConfig(Config):
    """Settings of a code whose numbers are tokens; the defaults are EncDiff's."""

    kind: Literal["tokens"] = Field(
        default="tokens", description="one token for each number of a code, for cross-attention (EncDiff)"
    )
    width: int = Field(default=16, ge=1, description="channels of a token")
    hidden: tuple[int, ...] = Field(
        default=(64, 128), min_length=1, description="hidden widths of the MLP that turns a number into its token"
    )

    @model_validator(mode="after")
    def _fits(self) -> "TokenCodeConfig":
        if bad := [width for width in self.hidden if width < 1]:
            raise ValueError(f"hidden widths {bad} are not positive; expected whole numbers of 1 or more")
        return self


class ScalarTokens(nn.Module):
    """Map of semantic codes z [B, N] to N tokens [B, N, D], each by an MLP of its own from one number of z.

    All N MLPs have the same widths and are computed together, as products of batched matrices. ELU is between layers.

    Args:
        count: N, numbers in a code.
        width: D, channels of a token.
        hidden: widths of the MLPs' hidden layers.
    """

    def __init__(self, count: int, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        shapes = [*pairwise((1, *hidden, width))]
        self.weights = nn.ParameterList(_uniform(before, count, before, after) for before, after in shapes)
        self.biases = nn.ParameterList(_uniform(before, count, 1, after) for before, after in shapes)

    def forward(self, z: Tensor) -> Tensor:
        """Return the tokens [B, N, D] of codes z [B, N], computed in the weights' dtype, also under autocast."""
        h = z.to(self.weights[0].dtype).T[:, :, None]
        with torch.autocast(z.device.type, enabled=False):  # bfloat16 would round a number to 8 bits
            for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                h = torch.baddbmm(bias, elu(h) if layer else h, weight)
        return h.transpose(0, 1)


class TokenUNet(ModelMixin, ConfigMixin):
    """EncDiff's U-Net: a map of x_t [B, C, h, w], timesteps t [B] and semantic codes z [B, N] to outputs [B, C', h, w].

    As in ADM, the output is 0 before training.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        *,
        sample_size: int,
        channels: int = 3,
        out_channels: int | None = None,
        z_width: int = 20,
        token_width: int = 16,
        token_hidden: Sequence[int] = (64, 128),
        widths: Sequence[int] = (64, 128, 128),
        attention: Sequence[bool] = (False, True, False),
        layers: int = 2,
        heads: int = 1,
        time_width: int = 512,
        groups: int = 32,
        dropout: float = 0.1,
    ) -> None:
        """Build the network from the fields of `SemanticUNetConfig` and `TokenCodeConfig` and the shapes of the data.

        Args:
            sample_size: side of a training picture (or latent).
            channels: channels C of the input x_t.
            out_channels: channels C' of the output; None: C.
            z_width: N, numbers in a semantic code.
            token_width: D, channels of a token.
            token_hidden: hidden widths of each number's MLP.
            widths: this and the following arguments are fields of `SemanticUNetConfig`, some renamed by
                `arguments.SAVED`. Attention is to the positions of the features, then to the tokens.
        """
        super().__init__()
        self.tokens = ScalarTokens(z_width, token_width, token_hidden)
        down = tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in attention)
        up = tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attention))
        self.unet = UNet2DConditionModel(
            sample_size=sample_size,
            in_channels=channels,
            out_channels=out_channels or channels,
            down_block_types=down,
            up_block_types=up,
            block_out_channels=tuple(widths),
            layers_per_block=layers,
            attention_head_dim=heads,  # despite its name the number of heads (diffusers #2011)
            cross_attention_dim=token_width,
            time_embedding_dim=time_width,
            resnet_time_scale_shift="scale_shift",
            norm_num_groups=groups,
            dropout=dropout,
        )
        zero_init_like_adm(self.unet)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Return the output [B, C', h, w], computed in the weights' dtype.

        Args:
            x: noisy data x_t [B, C, h, w].
            t: timesteps [B].
            z: semantic codes [B, N], or one code [1, N] for the whole batch.

        Raises:
            ValueError: z is neither [B, N] nor [1, N] (one code for the whole batch).
        """
        dtype = self.unet.conv_in.weight.dtype
        tokens = self.tokens(expand_codes(z, len(x), self.config["z_width"])).to(dtype)
        return self.unet(x.to(dtype), t, encoder_hidden_states=tokens, return_dict=False)[0]


def _uniform(inputs: int, *shape: int) -> nn.Parameter:
    """Return a parameter of this shape from U(-b, b), b = sqrt(3 / inputs), whose variance is 1 / inputs.

    A layer then keeps the variance of its inputs. With torch's own b = sqrt(1 / inputs) tokens hardly depend on their
    numbers at first, and the decoder learns much later to use them.
    """
    return nn.Parameter(torch.empty(shape).uniform_(-1, 1) * math.sqrt(3 / inputs))
