"""Cost of training a semantic model: floating-point operations and parameters, counted rather than timed."""

import json
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.kit import SemanticModel
from conditioning.semantic import condition_of
from ldm_kit.models.decoders import ShiftDecoder

BACKWARD = 2  # operations of a backward pass, in those of its forward pass


def training_flops(model: SemanticModel) -> float:
    """Count the floating-point operations (convolutions, matrix products) of training on one picture once.

    A backward pass counts as two forward passes; frozen networks have none.
    """
    pictures = torch.zeros(1, model.channels, model.resolution, model.resolution)
    x, t = torch.zeros(1, *model.latent_shape), torch.zeros(1, dtype=torch.long)
    decoder, frozen = model.decoder, 0
    with torch.no_grad():
        with FlopCounterMode(display=False) as counted:
            condition = condition_of(model.encoder(pictures))
            decoder.denoiser()(x, t, condition)
        if isinstance(decoder, ShiftDecoder):
            with FlopCounterMode(display=False) as base:
                decoder.frozen()(x, t, condition)
            frozen = base.get_total_flops()
    return frozen + (1 + BACKWARD) * (counted.get_total_flops() - frozen)


def trained_parameters(model: SemanticModel) -> int:
    """Count the parameters of a semantic model's encoder and decoder, without those of a frozen base model."""
    decoder = model.decoder
    networks = [model.encoder, decoder.shift if isinstance(decoder, ShiftDecoder) else decoder.unet]
    base = {id(p) for p in decoder.base.unet.parameters()} if isinstance(decoder, ShiftDecoder) else set[int]()
    return sum(p.numel() for network in networks for p in network.parameters() if id(p) not in base)


def last_step(run: Path) -> tuple[int, float]:
    """Return a run's number of steps and its last held-out loss, from the metrics.jsonl in the run's folder."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return rows[-1]["step"], next(row["heldout_loss"] for row in reversed(rows) if "heldout_loss" in row)
