"""Shared by the tests of semantic codes: pictures with two factors, small frozen models, a few steps of training."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autoencoder.base import encode
from autoencoder.config import build as build_autoencoder
from autoencoder.kl import KLConfig
from conditioning.factory import build as build_conditioner
from conditioning.labels import ClassConfig
from conditioning.none import NoCondition
from conditioning.text import TextConfig
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.methods import check_run
from ldm_kit.methods.train import open_method
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.nets.unet import UNetConfig, build_unet
from tests.nets.originals import perturbed

SIDE = 8
STEPS = 200  # training times
LINEAR = ScheduleConfig(kind="linear", num_train_timesteps=STEPS, end=0.08)
ENCODER = {
    "kind": "diffae",
    "z_width": 8,
    "widths": [16, 32],
    "attention_levels": [False, False],
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
STRIDED = {"kind": "strided", "z_width": 8, "widths": [16, 32], "attention": None, "norm_num_groups": 8}
UNET = {
    "widths": [16, 32],
    "attention_levels": [False, False],
    "layers_per_block": 1,
    "time_width": 32,
    "norm_num_groups": 8,
    "dropout": 0.0,
}
COMMON: dict[str, Any] = {
    "data": {"source": "folder", "resolution": SIDE, "heldout": 0.2},
    "optim": {"lr": 2e-3, "warmup": 0, "weight_decay": 0.0},
    "train": {"steps": 8, "batch_size": 16, "checkpoint_every": 100},
    "log": {"every": 1, "evaluate_every": 8, "tensorboard": False, "pictures": 4},
}
SHOWN = {"sample": {"encode_steps": 10, "decode_steps": 5}}
DIFFAE = {**COMMON, **SHOWN, "method": "diffae", "encoder": ENCODER, "unet": UNET, "schedule": LINEAR.model_dump()}
PDAE = {**COMMON, **SHOWN, "method": "pdae", "encoder": STRIDED}
PRIOR = {
    **COMMON,
    "method": "prior",
    "net": {"hidden": 32, "layers": 3},
    "sample": {"steps": 5, "decode_steps": 5},
}


def two_factors(folder: Path, count: int = 60) -> Path:
    """A square, at the top or the bottom (its label), on the left or the right (its caption), red or blue."""
    folder.mkdir(parents=True)
    lines = []
    for i in range(count):
        low, right, colour = i % 2, i // 2 % 2, ((220, 40, 30), (30, 40, 220))[i // 4 % 2]
        pixels = np.full((SIDE, SIDE, 3), 255, np.uint8)
        top, left = 4 * low + i % 3 % 2, 4 * right + i % 5 % 2
        pixels[top : top + 3, left : left + 3] = colour
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        lines.append({"file_name": f"{i:03d}.png", "text": "right" if right else "left", "label": "bt"[1 - low]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def checked(tree: dict, pictures: Path, run: Path, **more: Any) -> Any:
    """A config out of one of the trees above."""
    tree = {**deepcopy(tree), **more, "run": str(run)}
    tree["data"] = {**tree["data"], "path": str(pictures)}
    return check_run(tree, "the test's config")


def opened(config: Any) -> Any:
    """The method of a config, with the same weights each time."""
    torch.manual_seed(0)
    return open_method(config)


def trained(method: Any, steps: int, lr: float = 2e-3) -> list[float]:
    """The losses of some steps of plain Adam."""
    module = next(iter(method.modules.values()))
    optimiser = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr)
    size, losses = method.config.train.batch_size, []
    for number in range(steps):
        positions = range(number * size, (number + 1) * size)
        batch = method.batches.__getitems__([(p, p * 7 % len(method.batches)) for p in positions])
        ((_, loss, _),) = method.losses(batch, number)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def base(
    folder: Path, kind: str = "plain", schedule: ScheduleConfig = LINEAR, widths: tuple[int, ...] = (16, 32)
) -> Path:
    """A saved diffusion model with random weights: plain, of classes, text or latents, or with a learned variance."""
    torch.manual_seed(0)
    levels = (*(False for _ in widths[1:]), True)
    config = UNetConfig(
        widths=widths, attention_levels=levels, heads=2, norm_num_groups=8, layers_per_block=1, dropout=0.3
    )
    conditioner = NoCondition()
    if kind == "classes":
        conditioner = build_conditioner(ClassConfig(kind="class", form="token", width=12), classes=["b", "t"])
    if kind == "text":
        shape = {"width": 16, "layers": 1, "heads": 2, "vocabulary": 520, "length": 8}
        conditioner = build_conditioner(TextConfig(kind="text", **shape), captions=["left", "right"])
    learned, vae = kind == "learned", None
    channels, side = 3, SIDE
    if kind == "latents":
        shape = {"resolution": SIDE, "widths": (8, 16), "latent_channels": 4, "norm_num_groups": 4}
        vae = scaled(build_autoencoder(KLConfig(**shape, middle_attention=False)).eval())
        channels, side = 4, SIDE // 2
    shape = {"sample_size": side, "channels": channels, "out_channels": channels * (1 + learned)}
    unet = perturbed(build_unet(config, **shape, cross_width=conditioner.width))
    variance = "learned_range" if learned else "small"
    Pipeline(vae, unet, conditioner, schedule, "eps", variance=variance).save(folder)
    return folder


@torch.no_grad()
def scaled(vae: Any) -> Any:
    """An untrained autoencoder, told the deviation of its latents."""
    x = torch.ones(8, 3, SIDE, SIDE)
    for i in range(8):
        x[i, i % 3, i // 2 : 4 + i // 2, 1:5] = -0.8
    mean, logvar = encode(vae, x)
    deviation = (mean.var() + logvar.exp().mean()).sqrt()
    vae.register_to_config(scaling_factor=vae.config.scaling_factor / deviation.item())
    return vae


def swapped(method: Any, seed: int = 5) -> tuple[float, float]:
    """Mean errors of a batch with its own pictures for the encoder, and with those of others."""
    batch = method.batches.__getitems__([(i, i) for i in range(40)])
    t = torch.linspace(0.3 * STEPS, 0.9 * STEPS, 40).long()
    other = {**batch, "picture": batch["picture"].roll(1, 0)}  # neighbours differ in height
    with torch.no_grad():
        own, others = (float(method.errors(b, t, seed, method.module).mean()) for b in (batch, other))
    return own, others


def probed(z: Tensor, truth: Tensor) -> float:
    """The share of one half of the codes whose bit a least-squares line on the other half tells."""
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    x, y = torch.cat([z, torch.ones(len(z), 1)], dim=1).double()[order], truth.double()[order] * 2 - 1
    half, ridge = len(z) // 2, 1e-3 * torch.eye(x.shape[1])
    w = torch.linalg.lstsq(x[:half].T @ x[:half] + ridge, x[:half].T @ y[:half]).solution
    return float(((x[half:] @ w > 0) == (y[half:] > 0)).double().mean())
