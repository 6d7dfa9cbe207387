"""Small semantic models with random weights, saved as trained ones are."""

from pathlib import Path

import torch

from conditioning.base import Conditioner
from conditioning.semantic import SemanticEncoder
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.models.base_model import BaseModel
from ldm_kit.models.decoders import CodeDecoder, ShiftDecoder
from ldm_kit.models.prior import CodePrior
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.code_unets import CodeUNet
from ldm_kit.nets.mlp_skip import SkipMLP
from ldm_kit.nets.semantic_unet import SemanticUNet
from ldm_kit.nets.shift_unet import ShiftUNet
from tests.nets.originals import perturbed


def semantic(
    folder: Path, seed: int = 0, conditioner: Conditioner | None = None, network: type[CodeUNet] = SemanticUNet
) -> Path:
    """A DiffAE of 16 px pictures with codes of 8 numbers; with a conditioner, also a prior that it tells."""
    torch.manual_seed(seed)
    shape = {"channels": 3, "z_width": 8, "widths": (16, 32), "attention": (False, False), "layers": 1, "groups": 8}
    with torch.no_grad():
        encoder = perturbed(SemanticEncoder(**shape))
        unet = perturbed(network(**shape, sample_size=16, time_width=32, dropout=0.0))
    schedule = ScheduleConfig(kind="linear", num_train_timesteps=200, end=0.08)
    mean, std = torch.randn(8), torch.rand(8) + 0.5
    prior = None
    if conditioner is not None:
        mlp = SkipMLP(z_width=8, condition_width=conditioner.pooled_width, hidden=16, layers=3)
        prior = CodePrior(
            perturbed(mlp), conditioner, ScheduleConfig(kind="constant", num_train_timesteps=200, start=0.03)
        )
    SemanticModel(encoder, CodeDecoder(unet, None, schedule, "eps"), mean, std, prior).save(folder)
    return folder


def shifted(folder: Path, frozen: Path) -> Path:
    """A PDAE of 8 px pictures with codes of 8 numbers, on a saved base of `semantic_toys`."""
    torch.manual_seed(0)
    base = BaseModel.open(frozen)
    with torch.no_grad():
        encoder = perturbed(SemanticEncoder(channels=3, z_width=8, widths=(16, 32), attention=(False,) * 2, groups=8))
        shift = perturbed(ShiftUNet(base=base.unet, z_width=8))
    SemanticModel(encoder.eval(), ShiftDecoder(shift.eval(), base), torch.randn(8), torch.rand(8) + 0.5).save(folder)
    return folder
