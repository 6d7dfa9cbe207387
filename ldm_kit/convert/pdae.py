"""Checkpoints of ckczzj/PDAE into folders of ours: the frozen model as `base/`, what was learned on it as `model/`.

What its published files are:

    trained-models/autoencoder/NAME/checkpoint.pt        both halves of the decoder, and the encoder
    trained-models/latents/NAME.pt                       --statistics
    trained-models/latent_denoise_fn/NAME/checkpoint.pt  --prior
    trained-models/classifier/checkpoint.pt              --classifier, of CelebA-HQ's attributes
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from conditioning.none import NoCondition
from conditioning.semantic import StridedEncoder
from ldm_kit.config import UserError
from ldm_kit.convert import common, guided_diffusion_weights, pdae_weights
from ldm_kit.convert.checkpoint_files import read_checkpoint, refuse_used
from ldm_kit.convert.common import NOISE, Beside, Judge, Statistics, fitted, naming, sized
from ldm_kit.convert.diffae_weights import under
from ldm_kit.convert.guided_diffusion_layout import Heads
from ldm_kit.models.base_model import BaseModel
from ldm_kit.models.decoders import ShiftDecoder
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.prior import CodePrior
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.shift_unet import ShiftUNet
from ldm_kit.training.checkpoint import write

WEIGHTS = "{k: c[k] for k in c if k.startswith('ema_')}"
BASE, MODEL = "base", "model"


@dataclass(frozen=True)
class Origin:
    """What lies beside, and what no shape tells."""

    beside: Beside
    prior: Path | None = None
    heads: int = 1  # of the U-Net's attention
    encoder_heads: int = 4


class _Parts(NamedTuple):
    encoder: StridedEncoder
    base: Pipeline
    shift: tuple[dict[str, Tensor], dict[str, object]]  # weights and settings on that base
    statistics: Statistics
    prior: CodePrior | None
    judge: Judge | None


def convert_pdae(checkpoint: Path, out: Path, origin: Origin) -> str:
    """Write `out`/base, a plain diffusion model, and `out`/model on it, for `SemanticModel.load(out)` and edit.py.

    Says in a sentence what they are.

    Raises:
        UserError: a file cannot be read or is no such checkpoint, what lies beside does not fit it or is missing, or
            `out` is in use.
    """
    refuse_used(out)
    found = _read(checkpoint, origin)
    said: list[str] = []

    def fill(folder: Path) -> None:
        found.base.save(folder / BASE)
        frozen = BaseModel.open(folder / BASE)
        weights, settings = found.shift
        shift = fitted(lambda: ShiftUNet(base=frozen.unet, **settings), weights, "gradient estimator")  # pyright: ignore[reportArgumentType]
        model = SemanticModel(found.encoder, ShiftDecoder(shift, frozen), *found.statistics, found.prior)
        model.save(folder / MODEL)
        known = common.save_directions(folder / MODEL, model, found.judge, origin.beside.attributes)
        said.append(common.told(model, "a PDAE", known))

    write(out, fill)
    return f"{out}: {said[0]}, on the frozen {out / BASE}"


def _read(checkpoint: Path, origin: Origin) -> _Parts:
    beside, state = origin.beside, read_checkpoint(checkpoint, WEIGHTS)
    with naming(checkpoint):
        encoder = _encoder(under(state, "ema_encoder."), beside.image_size, origin.encoder_heads)
        base, shift = _decoder(under(state, "ema_decoder."), encoder.config["resolution"], Heads(count=origin.heads))
        width = encoder.config["z_width"]
        if shift[1]["z_width"] != width:
            raise UserError(f"the decoder takes codes of {shift[1]['z_width']} numbers, the encoder's have {width}")
    judge, prior = common.judge_of(beside.classifier, width, WEIGHTS), None
    if origin.prior is not None:
        weights = read_checkpoint(origin.prior, WEIGHTS)
        with naming(origin.prior):
            prior = common.prior_of(under(weights, "ema_latent_denoise_fn."), width)
    with naming(checkpoint):
        inside = common.stated(state, width)
    sides = replace(beside, image_size=encoder.config["resolution"])
    statistics = common.statistics_of(checkpoint, inside, sides, judge, encoder)
    return _Parts(encoder, base, shift, statistics, prior, judge)


def _encoder(state: Mapping[str, Tensor], image_size: int | None, heads: int) -> StridedEncoder:
    weights, settings = pdae_weights.encoder_from(state, resolution=image_size or 1, heads=heads)
    widths = settings["widths"]
    if not widths or "out.weight" not in weights or weights["out.weight"].dim() != 2:
        raise UserError("the encoder has no convolutions before a last linear layer; is it a PDAE?")
    size = sized(image_size, math.isqrt(weights["out.weight"].shape[1] // widths[-1]) * 2 ** len(widths), len(widths))
    return fitted(lambda: StridedEncoder(**{**settings, "resolution": size}), weights, "encoder")


def _decoder(
    state: Mapping[str, Tensor], size: int, heads: Heads
) -> tuple[Pipeline, tuple[dict[str, Tensor], dict[str, object]]]:
    """The frozen model, and the new half's weights and settings."""
    weights, settings = pdae_weights.base_from(state, image_size=size, heads=heads)
    unet = fitted(lambda: guided_diffusion_weights.unet_of(settings), weights, "frozen U-Net")
    variance = "learned_range" if settings["out_channels"] > settings["in_channels"] else "small"
    base = Pipeline(None, unet, NoCondition(), NOISE, "eps", variance=variance)
    return base, pdae_weights.shift_from(state, image_size=size, heads=heads)
