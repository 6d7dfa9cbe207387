"""Tiny models with random weights for the tests of the page, saved as trained ones are."""

from pathlib import Path

import torch

from conditioning.inpainting import Inpainting
from conditioning.labels import ClassConditioner, ClassConfig
from conditioning.none import NoCondition
from conditioning.text import TextConditioner, TextConfig
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.models.directions import DirectionRecord, stack_directions
from ldm_kit.models.linear_fit import Fit
from ldm_kit.models.options import SamplerOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.protocol import encoder_digest
from ldm_kit.models.saved_sampling import SavedSampling
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.unet import UNetConfig, build_unet
from tests.editing.models import semantic
from tests.nets.originals import perturbed

UNET = UNetConfig(widths=(16, 16), attention_levels=(False, True), heads=2, norm_num_groups=4, layers_per_block=1)
SCHEDULE = ScheduleConfig(kind="linear", num_train_timesteps=100, end=0.1)
OWN = SamplerOptions(steps=4, solver="ddim", eta=0.5, guidance_scale=2.0, spacing="leading")
"""Settings that are saved with the text model."""


def text_model(folder: Path) -> Path:
    """A model of 16 px pictures that samples from captions."""
    torch.manual_seed(3)
    config = TextConfig(width=16, layers=1, heads=2, vocabulary=520, length=8)
    text = TextConditioner.build(config, captions=["a red square", "a blue dot"] * 3).eval()
    unet = build_unet(UNET, sample_size=16, channels=3, out_channels=3, cross_width=16)
    with torch.no_grad():
        unet = perturbed(unet).eval()
    saved = SavedSampling.of("sampling", OWN, 0.1)
    Pipeline(None, unet, text, SCHEDULE, "v", saved=saved).save(folder)
    return folder


def inpainting_model(folder: Path) -> Path:
    """An inpainting model of 16 px pictures without prompts."""
    torch.manual_seed(4)
    unet = build_unet(UNET, sample_size=16, channels=7, out_channels=3, cross_width=None)
    with torch.no_grad():
        unet = perturbed(unet).eval()
    Pipeline(None, unet, NoCondition(), SCHEDULE, "v", picture=Inpainting()).save(folder)
    return folder


def prior_model(folder: Path) -> Path:
    """A DiffAE of 16 px pictures with a prior that samples codes of the classes cat and dog."""
    torch.manual_seed(6)
    config = ClassConfig(width=16, form="vector")
    return semantic(folder, conditioner=ClassConditioner.build(config, classes=["cat", "dog"]).eval())


def semantic_model(folder: Path) -> Path:
    """A DiffAE of 16 px pictures with directions for glasses, hat and beard."""
    semantic(folder)
    model = SemanticModel.load(folder)
    draw = torch.Generator().manual_seed(5)
    fitted = [
        (
            DirectionRecord(name=name, estimator="classifier", typical=typical, positives=4, others=4),
            Fit(torch.randn(8, generator=draw).double(), 0.0),
            torch.randn(8, generator=draw),
        )
        for name, typical in (("glasses", 0.32), ("hat", -0.21), ("beard", 0.001))
    ]
    stack_directions(fitted, encoder_digest(model)).save(folder / "directions")
    return folder
