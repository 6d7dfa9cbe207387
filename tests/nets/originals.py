"""The published networks once more, smallest form: original parameter names, mathematics from the papers' formulas."""

import math

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate, silu


def waves(t, dim):
    rates = torch.exp(-math.log(10000) * torch.arange(dim // 2) / (dim // 2))
    angles = t[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def norm(channels):
    return nn.GroupNorm(32, channels)


class Res(nn.Module):
    """ADM's block; `code` names the map of z, `shifts` says whether z shifts; without `time` it has one convolution."""

    def __init__(self, before, after, *, time=None, z=None, code=None, shifts=False, move=None):
        super().__init__()
        self.code, self.move = code, move
        self.in_layers = nn.Sequential(norm(before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        if time is not None:
            self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * after))
            self.out_layers = nn.Sequential(
                norm(after), nn.SiLU(), nn.Dropout(0), nn.Conv2d(after, after, 3, padding=1)
            )
        if code is not None:
            setattr(self, code, nn.Sequential(nn.SiLU(), nn.Linear(z, (2 if shifts else 1) * after)))
        self.skip_connection = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def resample(self, x):
        return {"up": lambda: interpolate(x, scale_factor=2.0), "down": lambda: avg_pool2d(x, 2), None: lambda: x}[
            self.move
        ]()

    def forward(self, x, time=None, z=None):
        h = self.in_layers[2](self.resample(silu(self.in_layers[0](x))))
        if time is not None:
            scale, shift = self.emb_layers(time)[:, :, None, None].chunk(2, 1)
            h = (1 + scale) * self.out_layers[0](h) + shift
            if self.code is not None:
                said = getattr(self, self.code)(z)[:, :, None, None]
                gain, offset = said.chunk(2, 1) if said.shape[1] == 2 * h.shape[1] else (said, 0)
                h = (1 + gain) * h + offset
            h = self.out_layers[3](silu(h))
        return self.skip_connection(self.resample(x)) + h


class Attn(nn.Module):
    def __init__(self, channels, heads=1, legacy=True):
        super().__init__()
        self.heads, self.legacy = heads, legacy
        self.norm, self.qkv = norm(channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        b, c = x.shape[:2]
        flat = self.qkv(self.norm(x).flatten(2))
        order = (b, self.heads, 3, c // self.heads, -1) if self.legacy else (b, 3, self.heads, c // self.heads, -1)
        q, k, v = flat.reshape(order).transpose(1, 2 if self.legacy else 1).unbind(1)
        weight = torch.einsum("bhct,bhcs->bhts", q, k) / math.sqrt(c // self.heads)
        mixed = torch.einsum("bhts,bhcs->bhct", weight.softmax(-1), v).reshape(b, c, -1)
        return x + self.proj_out(mixed).reshape(x.shape)


class Steps(nn.Sequential):
    def forward(self, x, *embedded):
        for part in self:
            x = part(x, *embedded) if isinstance(part, Res) else part(x)
        return x


def halves(widths, attends, layers, *, heads=1, legacy=True, **block):
    """Downward blocks, and the channels that they leave for the way up."""
    down, left, width = [Steps(nn.Conv2d(3, widths[0], 3, padding=1))], [widths[0]], widths[0]
    for level, after in enumerate(widths):
        for _ in range(layers):
            attention = [Attn(after, heads, legacy)] if attends[level] else []
            down.append(Steps(Res(width, after, **block), *attention))
            width = after
            left.append(width)
        if level < len(widths) - 1:
            down.append(Steps(Res(width, width, move="down", **block)))
            left.append(width)
    return nn.ModuleList(down), left


def middle(width, *, heads=1, legacy=True, **block):
    return Steps(Res(width, width, **block), Attn(width, heads, legacy), Res(width, width, **block))


def upward(widths, attends, layers, left, *, heads=1, legacy=True, **block):
    left, width, up = list(left), widths[-1], nn.ModuleList()
    for level in reversed(range(len(widths))):
        for i in range(layers + 1):
            parts = [Res(width + left.pop(), widths[level], **block)]
            width = widths[level]
            parts += [Attn(width, heads, legacy)] if attends[level] else []
            parts += [Res(width, width, move="up", **block)] if level and i == layers else []
            up.append(Steps(*parts))
    return up


def head(width, out=3):
    return nn.Sequential(norm(width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))


class DiffAE(nn.Module):
    """U-Net, encoder and latent net under one roof, as in the checkpoints."""

    def __init__(self, widths, attends, deeper, z=16, time=24, layers=2):
        super().__init__()
        self.base = widths[0]
        block = {"time": time, "z": z, "code": "cond_emb_layers"}
        self.time_embed = nn.Module()
        self.time_embed.time_embed = nn.Sequential(nn.Linear(self.base, time), nn.SiLU(), nn.Linear(time, time))
        self.input_blocks, left = halves(widths, attends, layers, **block)
        self.middle_block = middle(widths[-1], **block)
        self.output_blocks = upward(widths, attends, layers, left, **block)
        self.out = head(widths[0])
        self.encoder = Encoder(deeper, (*attends, False), z)
        self.latent_net = SkipNet(z, 32, 4)

    def forward(self, x, t, z):
        time, kept = self.time_embed.time_embed(waves(t, self.base)), []
        for block in self.input_blocks:
            x = block(x, time, z)
            kept.append(x)
        x = self.middle_block(x, time, z)
        for block in self.output_blocks:
            x = block(torch.cat([x, kept.pop()], 1), time, z)
        return self.out(x)


class Encoder(nn.Module):
    def __init__(self, widths, attends, z, layers=2):
        super().__init__()
        self.input_blocks, _ = halves(widths, attends, layers)
        self.middle_block = middle(widths[-1])
        pool = nn.AdaptiveAvgPool2d(1)
        self.out = nn.Sequential(norm(widths[-1]), nn.SiLU(), pool, nn.Conv2d(widths[-1], z, 1), nn.Flatten())

    def forward(self, x):
        for block in (*self.input_blocks, self.middle_block):
            x = block(x)
        return self.out(x)


class SkipLayer(nn.Module):
    def __init__(self, before, after, time, last):
        super().__init__()
        self.linear, self.last = nn.Linear(before, after), last
        if not last:
            self.linear_emb, self.norm = nn.Linear(time, after), nn.LayerNorm(after)
            self.cond_layers = nn.Sequential(nn.SiLU(), self.linear_emb)

    def forward(self, h, c):
        h = self.linear(h)
        return h if self.last else silu(self.norm(h * (1 + self.cond_layers(c))))


class SkipNet(nn.Module):
    def __init__(self, z, hidden, layers):
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(64, z), nn.SiLU(), nn.Linear(z, z))
        wide = [z] + [hidden + z] * (layers - 1)
        self.layers = nn.ModuleList(
            SkipLayer(w, z if i == layers - 1 else hidden, z, i == layers - 1) for i, w in enumerate(wide)
        )

    def forward(self, x, t):
        c, h = self.time_embed(waves(t, 64)), x
        for i, layer in enumerate(self.layers):
            h = layer(torch.cat([h, x], 1) if i else h, c)
        return h


class Pdae(nn.Module):
    """A frozen U-Net, and the new parts beside it."""

    def __init__(self, widths, attends, z=16, layers=2, **heads):
        super().__init__()
        self.base, time = widths[0], 4 * widths[0]
        new = {"time": time, "z": time, "code": "emb_z_layers", "shifts": True}
        self.time_embed = nn.Sequential(nn.Linear(self.base, time), nn.SiLU(), nn.Linear(time, time))
        self.label_emb = nn.Linear(z, time)
        self.input_blocks, left = halves(widths, attends, layers, time=time, **heads)
        self.middle_block = middle(widths[-1], time=time, **heads)
        self.shift_middle_block = middle(widths[-1], **new, **heads)
        self.output_blocks = upward(widths, attends, layers, left, time=time, **heads)
        self.shift_output_blocks = upward(widths, attends, layers, left, **new, **heads)
        self.out, self.shift_out = head(widths[0]), head(widths[0])

    def forward(self, x, t, z):
        time, code, kept = self.time_embed(waves(t, self.base)), self.label_emb(z), []
        for block in self.input_blocks:
            x = block(x, time)
            kept.append(x)
        eps, gap = self.middle_block(x, time), self.shift_middle_block(x, time, code)
        for block, shift in zip(self.output_blocks, self.shift_output_blocks, strict=True):
            skip = kept.pop()
            eps, gap = block(torch.cat([eps, skip], 1), time), shift(torch.cat([gap, skip], 1), time, code)
        return self.out(eps), self.shift_out(gap)


class PdaeEncoder(nn.Module):
    def __init__(self, widths, attention, z, side):
        super().__init__()
        parts = []
        for i, (before, after) in enumerate(zip((3, *widths), widths, strict=False)):
            parts += [] if i == 0 else [norm(before), nn.SiLU()]
            parts += [nn.Conv2d(before, after, 3, 2, 1)]
            parts += [Attn(after, 4)] if i + 1 == attention else []
        rest = side // 2 ** len(widths)
        flat = [norm(widths[-1]), nn.SiLU(), nn.Flatten(), nn.Linear(widths[-1] * rest**2, z)]
        self.encoder = nn.Sequential(*parts, *flat)

    def forward(self, x):
        return self.encoder(x)


@torch.no_grad()
def perturbed(module, seed=0, size=0.05):
    """Every parameter moved, so that no zero at the start hides a path."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter))
    return module.eval()
