"""Tiny models with random weights for the tests of the page, saved as trained ones are."""

from pathlib import Path

import torch

from conditioning import ImageConfig, build
from conditioning.base import Conditioner
from conditioning.inpainting import Inpainting
from conditioning.labels import ClassConditioner, ClassConfig
from conditioning.none import NoCondition
from conditioning.text import TextConditioner, TextConfig
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.models.codes import CodeStatistics
from ldm_kit.models.directions import DirectionRecord, stack_directions
from ldm_kit.models.image_prior import ImagePrior
from ldm_kit.models.linear_fit import Fit
from ldm_kit.models.options import SamplerOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.pretrained_images import open_image_encoder
from ldm_kit.models.prior import CodePrior
from ldm_kit.models.protocol import encoder_digest
from ldm_kit.models.saved_sampling import SavedSampling
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.mlp_skip import SkipMLP
from ldm_kit.nets.size_embedding import SIZE_WIDTH
from ldm_kit.nets.unet import UNetConfig, build_unet
from tests.conditioning.image_toys import clip_weights
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


def variation_model(folder: Path, classes: tuple[str, ...] | None = None, *, plain: bool = False) -> Path:
    """A model of 16 px pictures under an image's embedding; with `classes`, or `plain`, a prior samples these."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    name = clip_weights(folder.parent)[1]
    torch.manual_seed(7)
    conditioner = build(ImageConfig(model=name), time_width=UNET.time_width, open_encoder=open_image_encoder).eval()
    unet = build_unet(UNET, sample_size=16, channels=3, out_channels=3, cross_width=None, vector_width=UNET.time_width)
    with torch.no_grad():
        unet = perturbed(unet).eval()
    saved = SavedSampling.of("sampling", SamplerOptions(steps=4, guidance_scale=2.0), 0.1)
    prior = None
    if plain or classes:
        prompts: Conditioner = NoCondition()
        if classes:
            prompts = ClassConditioner.build(ClassConfig(width=16, form="vector"), classes=classes).eval()
        mlp = SkipMLP(z_width=8, condition_width=prompts.pooled_width, hidden=16, layers=3)
        with torch.no_grad():
            codes = CodePrior(perturbed(mlp), prompts, SCHEDULE)
        assert conditioner.image_conditioner is not None
        prior = ImagePrior(codes, CodeStatistics(torch.zeros(8), torch.ones(8)), conditioner.frozen_encoder)
    Pipeline(None, unet, conditioner, SCHEDULE, "v", saved=saved, prior=prior).save(folder)
    return folder


def sized_model(folder: Path) -> Path:
    """A model of 16 px pictures that is conditioned on captions and on the pictures' sizes."""
    model = Pipeline.load(text_model(folder.parent / "unsized"))
    unet = build_unet(UNET, sample_size=16, channels=3, out_channels=3, cross_width=16, vector_width=SIZE_WIDTH)
    Pipeline(None, unet.eval(), model.conditioner, SCHEDULE, "v", saved=model.saved).save(folder)
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
