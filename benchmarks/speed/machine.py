"""Description of the machine, work that reaches its peak speed, and floating-point operations of a training step."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from autoencoder.base import Autoencode, latent_shape
from autoencoder.config import build
from benchmarks.kit import CHANNELS, SIDE, AutoencoderRun, LatentRun, build_denoiser
from conditioning.base import Condition
from ldm_kit.nets.apply import apply_unet
from ldm_kit.nets.execution import set_attention
from ldm_kit.training.launch import cores

MATRIX = 1024  # side of the matrices that are multiplied
PICTURES, FEATURES = 64, 256  # batch size and channels of the convolution
REPEATS = 20  # products or convolutions in a unit of work; one alone is over too soon to be timed


def describe() -> str:
    """Return the machine's processor and cores, and torch's threads and version, in one line."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
        flags = next((line for line in lines if line.startswith("flags")), "")
        name += " with " + (", ".join(f for f in ("amx_bf16", "avx512_bf16", "avx512f") if f in flags) or "no AVX-512")
    return (
        f"{name}; {cores()} of {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch {torch.__version__}"
    )


def matrices(dtype: torch.dtype) -> Iterator[object]:
    """Yield endlessly, after each REPEATS products of two MATRIX x MATRIX matrices of a dtype."""
    a, b = torch.randn(MATRIX, MATRIX, dtype=dtype), torch.randn(MATRIX, MATRIX, dtype=dtype)
    while True:
        yield [a @ b for _ in range(REPEATS)]


@torch.no_grad()
def convolutions(dtype: torch.dtype) -> Iterator[object]:
    """Yield endlessly, after each REPEATS 3x3 convolutions of PICTURES inputs [FEATURES, SIDE, SIDE] of a dtype."""
    x = torch.randn(PICTURES, FEATURES, SIDE, SIDE, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(FEATURES, FEATURES, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    while True:
        yield [F.conv2d(x, weight, padding=1) for _ in range(REPEATS)]


MATRIX_FLOPS = REPEATS * 2 * MATRIX**3  # of a unit
CONVOLUTION_FLOPS = REPEATS * 2 * PICTURES * SIDE**2 * FEATURES**2 * 9


def step_flops(config: LatentRun, width: int, tokens: int = 24, side: int = SIDE) -> int:
    """Count the floating-point operations of a U-Net's forward and backward pass on a batch, without computing them.

    Args:
        config: config of the U-Net and of the batch size.
        width: width of the text states that the U-Net attends to.
        tokens: number of text states of each picture.
        side: height and width of the latents.
    """
    with torch.device("meta"):
        unet: Any = build_denoiser(config, width, side)
        set_attention(unet, "cpu")
        batch = config.train.batch_size
        x, t = torch.empty(batch, CHANNELS, side, side), torch.zeros(batch, dtype=torch.long)
        cond = Condition(tokens=torch.empty(batch, tokens, width), mask=torch.ones(batch, tokens, dtype=torch.bool))
        with FlopCounterMode(display=False) as counter:
            apply_unet(unet, x, t, cond).sum().backward()
    return counter.get_total_flops()


def autoencoder_flops(config: AutoencoderRun) -> int:
    """Count the floating-point operations of an autoencoder's forward and backward pass on a batch of its config.

    The perceptual distance is not counted.
    """
    net = config.autoencoder
    with torch.device("meta"):
        both: Any = Autoencode(build(net))
        x = torch.empty(config.train.batch_size, net.channels, net.resolution, net.resolution)
        noise = torch.empty(len(x), *latent_shape(both.vae, net.resolution, net.resolution))
        with FlopCounterMode(display=False) as counter:
            both(x, noise).picture.sum().backward()
    return counter.get_total_flops()


def parameters(net: Any) -> float:
    """Return the number of a network's parameters in millions."""
    return sum(p.numel() for p in net.parameters()) / 1e6
