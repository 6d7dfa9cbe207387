"""ADM's networks stated once more, plainly and under the parameter names of its public checkpoints."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ADM = {  # the published denoisers of ImageNet
    "64": {"base": 192, "multiples": (1, 2, 3, 4), "layers": 3, "attention": (1, 2, 3)},
    "128": {"base": 256, "multiples": (1, 1, 2, 3, 4), "layers": 2, "attention": (2, 3, 4)},
    "256": {"base": 256, "multiples": (1, 1, 2, 2, 4, 4), "layers": 2, "attention": (3, 4, 5)},
    "512": {"base": 256, "multiples": (0.5, 1, 1, 2, 2, 4, 4), "layers": 2, "attention": (4, 5, 6)},
}


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


def timed(t: Tensor, channels: int) -> Tensor:
    angles = t[:, None].float() * torch.exp(-math.log(10_000) * torch.arange(channels // 2) / (channels // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Residual(nn.Module):
    def __init__(self, inside: int, time: int, out: int, shift: bool, sample: str = "") -> None:
        super().__init__()
        self.shift, self.sample = shift, sample
        self.in_layers = nn.Sequential(norm(inside), nn.SiLU(), nn.Conv2d(inside, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * out if shift else out))
        self.out_layers = nn.Sequential(norm(out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Identity() if inside == out else nn.Conv2d(inside, out, 1)

    def resampled(self, h: Tensor) -> Tensor:
        match self.sample:
            case "down":
                return F.avg_pool2d(h, 2)
            case "up":
                return F.interpolate(h, scale_factor=2, mode="nearest")
            case _:
                return h

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.in_layers[2](self.resampled(F.silu(self.in_layers[0](x))))
        said = self.emb_layers(time)[:, :, None, None]
        if self.shift:
            scale, shift = said.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + said)
        return self.skip_connection(self.resampled(x)) + h


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, heads, c, L] each."""
    weights = torch.softmax(torch.einsum("bhcs,bhct->bhst", q, k) / math.sqrt(q.shape[2]), dim=-1)
    return torch.einsum("bhst,bhct->bhcs", weights, v)


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = norm(channels)
        self.qkv, self.proj_out = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        sequence = x.flatten(2)
        qkv = self.qkv(self.norm(sequence))
        if self.new_order:
            q, k, v = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)
        else:
            q, k, v = qkv.unflatten(1, (self.heads, 3, -1)).unbind(2)
        return (sequence + self.proj_out(attend(q, k, v).flatten(1, 2))).view_as(x)


class Halve(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Double(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Pool(nn.Module):
    def __init__(self, side: int, channels: int, size: int, out: int) -> None:
        super().__init__()
        self.heads = channels // size
        self.positional_embedding = nn.Parameter(torch.randn(channels, side**2 + 1) / math.sqrt(channels))
        self.qkv_proj, self.c_proj = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(2)
        h = torch.cat([h.mean(2, keepdim=True), h], dim=2) + self.positional_embedding
        q, k, v = self.qkv_proj(h).unflatten(1, (3, self.heads, -1)).unbind(1)
        return self.c_proj(attend(q, k, v).flatten(1, 2))[:, :, 0]


class Half(nn.Module):
    """The way down and the middle; with `pool`, the noisy classifier."""

    def __init__(
        self,
        *,
        base: int,
        multiples: tuple[float, ...],
        layers: int,
        attention: tuple[int, ...],
        channels: int = 3,
        head_size: int | None = None,
        heads: int = 1,
        new_order: bool = False,
        shift: bool = True,
        resnet: bool = True,
        pool: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.base, self.time, self.shift, self.resnet = base, 4 * base, shift, resnet
        self.head_size, self.heads, self.new_order = head_size, heads, new_order
        widths = [int(base * m) for m in multiples]
        self.time_embed = nn.Sequential(nn.Linear(base, self.time), nn.SiLU(), nn.Linear(self.time, self.time))
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(channels, widths[0], 3, padding=1)])])
        self.widths_down, width = [widths[0]], widths[0]
        for level, out in enumerate(widths):
            for _ in range(layers):
                self.input_blocks.append(self.layer(width, out, level in attention))
                width = out
                self.widths_down.append(width)
            if level < len(widths) - 1:
                down = self.block(width, width, "down") if resnet else Halve(width)
                self.input_blocks.append(nn.ModuleList([down]))
                self.widths_down.append(width)
        self.middle_block = nn.ModuleList(
            [self.block(width, width), self.attention(width), self.block(width, width)],
        )
        if pool is not None:
            self.out = nn.Sequential(norm(width), nn.SiLU(), Pool(pool[0], width, head_size or width, pool[1]))

    def block(self, inside: int, out: int, sample: str = "") -> Residual:
        return Residual(inside, self.time, out, self.shift, sample)

    def attention(self, width: int) -> Attention:
        return Attention(width, width // self.head_size if self.head_size else self.heads, self.new_order)

    def layer(self, inside: int, out: int, attention: bool) -> nn.ModuleList:
        return nn.ModuleList([self.block(inside, out), *([self.attention(out)] if attention else [])])

    def run(self, blocks: nn.ModuleList, h: Tensor, time: Tensor) -> Tensor:
        for block in blocks:
            h = block(h, time) if isinstance(block, Residual) else block(h)
        return h

    def down(self, x: Tensor, time: Tensor) -> tuple[Tensor, list[Tensor]]:
        kept = []
        for blocks in self.input_blocks:
            x = self.run(blocks, x, time)
            kept.append(x)
        return self.run(self.middle_block, x, time), kept

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.out(self.down(x, self.time_embed(timed(t, self.base)))[0])


class Whole(Half):
    """The denoiser."""

    def __init__(self, *, out_channels: int = 3, classes: int | None = None, **half) -> None:
        super().__init__(**half)
        widths = [int(self.base * m) for m in half["multiples"]]
        if classes is not None:
            self.label_emb = nn.Embedding(classes, self.time)
        self.output_blocks = nn.ModuleList()
        kept, width = list(self.widths_down), widths[-1]
        for level in reversed(range(len(widths))):
            for i in range(half["layers"] + 1):
                blocks = self.layer(width + kept.pop(), widths[level], level in half["attention"])
                width = widths[level]
                if level and i == half["layers"]:
                    blocks.append(self.block(width, width, "up") if self.resnet else Double(width))
                self.output_blocks.append(blocks)
        self.out = nn.Sequential(norm(width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        time = self.time_embed(timed(t, self.base))
        h, kept = self.down(x, time if y is None else time + self.label_emb(y))
        time = time if y is None else time + self.label_emb(y)
        for blocks in self.output_blocks:
            h = self.run(blocks, torch.cat([h, kept.pop()], dim=1), time)
        return self.out(h)


def restless(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight at random, those of norms around one, so that every path matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            fan = value[0].numel() if value.ndim > 1 and "label_emb" not in name else 25
            value.copy_(noise / math.sqrt(fan) + (1.0 if value.ndim == 1 and "weight" in name else 0.0))
    return module.eval()
