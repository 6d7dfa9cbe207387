"""Network of DiffAE's prior over semantic codes: an MLP that feeds the noisy code to every layer by skip connections.

Preechakul et al. 2022, section 3.4 and appendix A.1; PDAE uses the same network. Both papers normalise codes per
dimension before diffusing them, use constant betas (0.008) and the L1 loss.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import silu

from ldm_kit.config import Config


class SkipMLPConfig(Config):
    """Settings of `SkipMLP`, the network of a prior over semantic codes.

    The defaults are those of DiffAE and PDAE for faces; for LSUN the papers use 20 layers.
    """

    hidden: int = Field(default=2048, ge=1, description="channels between the layers")
    layers: int = Field(
        default=10, ge=2, description="linear layers; the noisy code is concatenated to the input of all but the first"
    )
    time_channels: int = Field(default=64, ge=2, multiple_of=2, description="sines and cosines of the time")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout after each activation")


class SkipMLP(ModelMixin, ConfigMixin):
    """Denoising network of a prior over semantic codes.

    It maps noisy codes z_t [B, Z], timesteps t [B] and optionally conditions [B, D] to outputs [B, Z].
    """

    @register_to_config
    def __init__(
        self,
        *,
        z_width: int = 512,
        condition_width: int | None = None,
        hidden: int = 2048,
        layers: int = 10,
        time_channels: int = 64,
        dropout: float = 0.0,
    ) -> None:
        """Build the network from the fields of `SkipMLPConfig` and the widths of the data.

        Args:
            z_width: Z, dimensions of a code.
            condition_width: D, channels of a condition (a class embedding, a pooled text). The condition's linear map
                starts at zero. None: unconditional.
            hidden: this and the following arguments are fields of `SkipMLPConfig`.
        """
        super().__init__()
        self.time_proj = Timesteps(time_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(time_channels, z_width)
        self.condition = None if condition_width is None else nn.Linear(condition_width, z_width, bias=False)
        if self.condition is not None:
            nn.init.zeros_(self.condition.weight)
        inputs = [z_width] + [hidden + z_width] * (layers - 2)
        self.stack = nn.ModuleList(ScaledLayer(width, hidden, z_width, dropout) for width in inputs)
        self.out = nn.Linear(hidden + z_width, z_width)

    def forward(self, z: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the output [B, Z], computed in the weights' dtype.

        Args:
            z: noisy codes [B, Z].
            t: timesteps [B], or one for the whole batch.
            condition: conditions [B, D]. None equals a condition of zeros, the null condition of classifier-free
                guidance.

        Raises:
            ValueError: a condition is given, but the network was built without one.
        """
        dtype = self.out.weight.dtype
        z, h = z.to(dtype), z.to(dtype)
        c = self.time_embedding(self.time_proj(t.expand(len(z))).to(dtype))
        if condition is not None:
            if self.condition is None:
                raise ValueError("this prior was built without a condition; got one")
            c = c + self.condition(condition.to(dtype))
        for i, layer in enumerate(self.stack):
            h = layer(h if i == 0 else torch.cat([h, z], dim=1), c)
        return self.out(torch.cat([h, z], dim=1))


class ScaledLayer(nn.Module):
    """Hidden layer of `SkipMLP`: dropout(SiLU(LayerNorm(W h (1 + V SiLU(c))))).

    h are the layer's input features, c is the time embedding (plus the embedded condition), and W and V are linear
    maps. So c scales features, but does not shift them.

    Args:
        width: channels of h.
        hidden: channels of the output.
        time_width: channels of c.
        dropout: probability that an output is set to 0 in training.
    """

    def __init__(self, width: int, hidden: int, time_width: int, dropout: float) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(width, hidden), nn.Linear(time_width, hidden)
        for layer in (self.linear, self.scale):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.norm, self.dropout = nn.LayerNorm(hidden), nn.Dropout(dropout)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Return features [B, hidden] from input features h [B, width] and the time embedding c [B, time_width]."""
        return self.dropout(silu(self.norm(self.linear(h) * (1 + self.scale(silu(c))))))
