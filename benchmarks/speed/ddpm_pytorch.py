"""Training with denoising-diffusion-pytorch from PyPI: unconditional diffusion of pixels, as its Trainer does it.

The package is no dependency. To measure it: `pip install --target FOLDER denoising-diffusion-pytorch`, and
PYTHONPATH=FOLDER.
"""

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from benchmarks.speed.peers import Captioned
from benchmarks.speed.workspace import Workspace

PACKAGE = "denoising_diffusion_pytorch"
WIDTH, MULTIPLES = 64, (1, 2, 4)


def is_installed() -> bool:
    """Return whether denoising-diffusion-pytorch can be imported."""
    return find_spec(PACKAGE) is not None


def network() -> Any:
    """Build denoising-diffusion-pytorch's U-Net, with random weights."""
    return import_module(PACKAGE).Unet(dim=WIDTH, dim_mults=MULTIPLES)


def train_pixels(space: Workspace, batch: int, precision: str) -> Iterator[object]:
    """Train denoising-diffusion-pytorch's model on pixels, and yield the loss after each step.

    As its Trainer does, it uses Adam, clips gradients at norm 1 and updates the EMA every tenth step.

    Args:
        space: folders and pictures that all variants share.
        batch: pictures in a batch.
        precision: accelerate's mixed precision, no or bf16.
    """
    accelerator = Accelerator(mixed_precision=precision, cpu=True)
    diffusion = import_module(PACKAGE).GaussianDiffusion(network(), image_size=32)
    average = import_module("ema_pytorch").EMA(diffusion, beta=0.995, update_every=10)
    optimiser = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    data: Any = DataLoader(
        Captioned(space.split().train),  # pyright: ignore[reportArgumentType]
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        collate_fn=_unit,  # pyright: ignore[reportArgumentType]
    )
    model, optimiser, data = accelerator.prepare(diffusion, optimiser, data)
    while True:
        for x in data:
            with accelerator.autocast():
                loss = model(x)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            average.update()
            yield loss.item()


def _unit(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return batch["pixel_values"] / 2 + 0.5  # its model takes pictures in [0, 1]
