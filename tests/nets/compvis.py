"""The U-Nets of latent diffusion and Stable Diffusion stated once more, under the names of their checkpoints."""

import torch.nn.functional as F
from torch import Tensor, nn

from tests.nets import adm
from tests.nets.adm import Whole, attend


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int, context: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(context or width, width, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            z.unflatten(2, (self.heads, -1)).permute(0, 2, 3, 1)
            for z in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(attend(q, k, v).flatten(1, 2).transpose(1, 2))


class Gated(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x: Tensor) -> Tensor:
        h, gate = self.proj(x).chunk(2, dim=-1)
        return h * F.gelu(gate)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(width, heads), CrossAttention(width, heads, context)
        self.ff = nn.Module()
        self.ff.net = nn.Sequential(Gated(width), nn.Dropout(0.0), nn.Linear(4 * width, width))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff.net(self.norm3(x))


class Transformer(nn.Module):
    """Self-attention over the positions and attention to the tokens `context` [B, L, D], which the caller sets."""

    context: Tensor

    def __init__(self, width: int, heads: int, *, context: int, depth: int, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.norm = adm.norm(width)
        self.norm.eps = 1e-6
        self.proj_in, self.proj_out = (
            nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1) for _ in range(2)
        )
        self.transformer_blocks = nn.ModuleList(Block(width, heads, context) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        h = self.proj_in(h.flatten(2).transpose(1, 2)) if self.linear else self.proj_in(h).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            h = block(h, self.context)
        h = (
            self.proj_out(h).transpose(1, 2)
            if self.linear
            else self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))
        )
        return x + h.reshape(x.shape)


class TokenUNet(Whole):
    """The denoiser whose attention is a transformer; time is added and convolutions resample."""

    def __init__(self, *, context: int, depth: int = 1, linear: bool = False, **whole) -> None:
        self.tokens = {"context": context, "depth": depth, "linear": linear}
        super().__init__(**whole, shift=False, resnet=False)

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value) if name == "tokens" else super().__setattr__(name, value)

    def attention(self, width: int) -> nn.Module:
        return Transformer(width, width // self.head_size if self.head_size else self.heads, **self.tokens)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        for module in self.modules():
            if isinstance(module, Transformer):
                module.context = context
        return super().forward(x, t)
