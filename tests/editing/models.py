"""A small semantic model with random weights, saved as a trained one is."""

from pathlib import Path

import torch

from conditioning.semantic import SemanticEncoder
from ldm_kit.decoders import CodeDecoder
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.nets.semantic_unet import SemanticUNet
from ldm_kit.semantic_model import SemanticModel
from tests.nets.originals import perturbed


def semantic(folder: Path, seed: int = 0) -> Path:
    """A DiffAE of 16 px pictures with codes of 8 numbers."""
    torch.manual_seed(seed)
    shape = {"channels": 3, "z_width": 8, "widths": (16, 32), "attention": (False, False), "layers": 1, "groups": 8}
    with torch.no_grad():
        encoder = perturbed(SemanticEncoder(**shape))
        unet = perturbed(SemanticUNet(**shape, sample_size=16, time_width=32, dropout=0.0))
    schedule = ScheduleConfig(kind="linear", steps=200, end=0.08)
    mean, std = torch.randn(8), torch.rand(8) + 0.5
    SemanticModel(encoder, CodeDecoder(unet, None, schedule, "eps"), mean, std).save(folder)
    return folder
