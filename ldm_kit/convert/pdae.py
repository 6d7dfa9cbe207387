"""Conversion of checkpoints of ckczzj/PDAE to two saved models: `base/`, the pretrained model, and `model/`, the PDAE.

The files that ckczzj/PDAE published, what they hold, and the options that take them:

    trained-models/autoencoder/NAME/checkpoint.pt        the encoder, the base model and the gradient estimator
    trained-models/latents/NAME.pt                       --statistics: mean and deviation of codes
    trained-models/latent_denoise_fn/NAME/checkpoint.pt  --prior: the network of a prior over codes
    trained-models/classifier/checkpoint.pt              --classifier: a classifier of CelebA-HQ's attributes
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from conditioning.none import NoCondition
from conditioning.semantic import StridedEncoder
from ldm_kit.config import UserError
from ldm_kit.convert import common, guided_diffusion_weights, pdae_weights
from ldm_kit.convert.checkpoint_files import check_unused, read_checkpoint
from ldm_kit.convert.common import NOISE, AttributeClassifier, Statistics, load_network, name_in_errors, picture_size
from ldm_kit.convert.diffae_weights import Converted, strip_prefix
from ldm_kit.convert.guided_diffusion_layout import Heads
from ldm_kit.convert.options import PdaeOptions
from ldm_kit.models.base_model import BaseModel
from ldm_kit.models.decoders import ShiftDecoder
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.prior import CodePrior
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.shift_unet import ShiftUNet
from ldm_kit.training.checkpoint import write

WEIGHTS = "{k: c[k] for k in c if k.startswith('ema_')}"
BASE, MODEL = "base", "model"


class _Components(NamedTuple):
    encoder: StridedEncoder
    base: Pipeline
    shift: Converted  # state dict and settings of the gradient estimator on the base model
    statistics: Statistics  # mean and deviation of the training set's codes
    prior: CodePrior | None  # None: no --prior was given
    classifier: AttributeClassifier | None  # None: no --classifier was given


def convert_pdae(checkpoint: Path, out: Path, options: PdaeOptions) -> str:
    """Convert a checkpoint of PDAE to two saved models in the folder `out`; return a description of them.

    `out`/base is the pretrained diffusion model, `out`/model the PDAE on it. `SemanticModel.load(out)` and edit.py open
    the result.

    Raises:
        UserError: a file cannot be read or is not PDAE's; a file that `options` names does not fit the checkpoint; the
            checkpoint needs a file that `options` does not name; or the folder `out` exists and is not empty.
    """
    check_unused(out)
    components = _read(checkpoint, options)
    descriptions: list[str] = []

    def save(folder: Path) -> None:
        components.base.save(folder / BASE)
        base = BaseModel.open(folder / BASE)
        weights, settings = components.shift
        shift = load_network(lambda: ShiftUNet(base=base.unet, **settings), weights, "gradient estimator")
        decoder = ShiftDecoder(shift, base)
        model = SemanticModel(components.encoder, decoder, *components.statistics, components.prior)
        model.save(folder / MODEL)
        directions = common.save_directions(folder / MODEL, model, components.classifier, options.attributes)
        descriptions.append(common.describe(model, "a PDAE", directions))

    write(out, save)
    return f"{out}: {descriptions[0]}, on the base model {out / BASE}"


def _read(checkpoint: Path, options: PdaeOptions) -> _Components:
    """Read the checkpoint and the files that the options name; return the networks and statistics in them.

    The gradient estimator is not built yet, as it needs the saved base model: its state dict and settings are returned.
    """
    state_dict = read_checkpoint(checkpoint, WEIGHTS)
    with name_in_errors(checkpoint):
        encoder = _encoder(strip_prefix(state_dict, "ema_encoder."), options.image_size, options.encoder_heads)
        size = encoder.config["resolution"]
        base, shift = _decoder(strip_prefix(state_dict, "ema_decoder."), size, Heads(count=options.heads))
        width = encoder.config["z_width"]
        if shift[1]["z_width"] != width:
            raise UserError(f"the decoder takes codes of {shift[1]['z_width']} numbers, the encoder's have {width}")
    classifier, prior = common.load_classifier(options.classifier, width, WEIGHTS), None
    if options.prior is not None:
        weights = read_checkpoint(options.prior, WEIGHTS)
        with name_in_errors(options.prior):
            prior = common.build_prior(strip_prefix(weights, "ema_latent_denoise_fn."), width)
    with name_in_errors(checkpoint):
        own = common.find_statistics(state_dict, width)
    options = options.model_copy(update={"image_size": size})
    statistics = common.resolve_statistics(checkpoint, own, options, classifier, encoder)
    return _Components(encoder, base, shift, statistics, prior, classifier)


def _encoder(state_dict: Mapping[str, Tensor], image_size: int | None, heads: int) -> StridedEncoder:
    weights, settings = pdae_weights.encoder_from(state_dict, resolution=image_size or 1, heads=heads)
    widths = settings["widths"]
    if not widths or "out.weight" not in weights or weights["out.weight"].dim() != 2:
        raise UserError("the encoder has no convolutions before a last linear layer; is it a PDAE?")
    inferred = math.isqrt(weights["out.weight"].shape[1] // widths[-1]) * 2 ** len(widths)
    size = picture_size(image_size, inferred, len(widths))
    return load_network(lambda: StridedEncoder(**{**settings, "resolution": size}), weights, "encoder")


def _decoder(state_dict: Mapping[str, Tensor], size: int, heads: Heads) -> tuple[Pipeline, Converted]:
    """Build the base model in a PDAE's decoder; return it, and the gradient estimator's state dict and settings.

    Args:
        state_dict: the weights of PDAE's decoder, with original names.
        size: side of the pictures in pixels.
        heads: how the U-Net's attention is divided into heads.
    """
    weights, settings = pdae_weights.base_from(state_dict, image_size=size, heads=heads)
    unet = load_network(lambda: guided_diffusion_weights.build_adm_unet(settings), weights, "base U-Net")
    variance = "learned_range" if settings["out_channels"] > settings["in_channels"] else "small"
    base = Pipeline(None, unet, NoCondition(), NOISE, "eps", variance=variance)
    return base, pdae_weights.shift_from(state_dict, image_size=size, heads=heads)
