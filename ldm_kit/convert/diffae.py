"""Checkpoints of phizaz/diffae into folders of ours.

What its published files are and want to be told:

    NAME_autoenc/last.ckpt         encoder and U-Net: --statistics NAME_autoenc/latent.pkl, or --images
    NAME_autoenc_latent/last.ckpt  the prior and the statistics as well
    NAME_autoenc_cls/last.ckpt     --classifier, of CelebA-HQ's attributes; it holds the statistics, too
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from conditioning.semantic import SemanticEncoder
from ldm_kit.config import UserError
from ldm_kit.convert import common, diffae_weights
from ldm_kit.convert.checkpoint_files import read_checkpoint, refuse_used
from ldm_kit.convert.common import NOISE, Beside, fitted, naming, sized
from ldm_kit.convert.diffae_weights import under
from ldm_kit.models.decoders import CodeDecoder
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.semantic_unet import SemanticUNet
from ldm_kit.training.checkpoint import write

WEIGHTS = "c['state_dict']"
_PRIOR = "latent_net."


def convert_diffae(checkpoint: Path, out: Path, beside: Beside) -> str:
    """Write the folder `out`, for `SemanticModel.load` and edit.py; says in a sentence what it is.

    Raises:
        UserError: a file cannot be read or is no such checkpoint, what lies beside does not fit it or is missing, or
            `out` is in use.
    """
    refuse_used(out)
    state = read_checkpoint(checkpoint, WEIGHTS)
    with naming(checkpoint):
        averaged = under(state, "ema_model.")
        encoder, decoder, size = _networks(state, averaged, beside.image_size)
    judge = common.judge_of(beside.classifier, decoder.z_width, WEIGHTS)
    with naming(checkpoint):
        inside = common.stated(state, decoder.z_width)
        prior = None
        if any(name.startswith(_PRIOR) for name in averaged):
            prior = common.prior_of(under(averaged, _PRIOR), decoder.z_width)
    found = common.statistics_of(checkpoint, inside, replace(beside, image_size=size), judge, encoder)
    model, known = SemanticModel(encoder, decoder, *found, prior), []

    def fill(folder: Path) -> None:
        model.save(folder)
        known.append(common.save_directions(folder, model, judge, beside.attributes))

    write(out, fill)
    return f"{out}: {common.told(model, 'a diffusion autoencoder', known[0])}"


def _networks(
    state: Mapping[str, Tensor], averaged: Mapping[str, Tensor], image_size: int | None
) -> tuple[SemanticEncoder, CodeDecoder, int]:
    """Both networks, and the side of the pictures."""
    weights, settings = diffae_weights.encoder_from(averaged)
    encoder = fitted(lambda: SemanticEncoder(**settings), weights, "encoder")
    size = sized(image_size, _side(state), len(settings["widths"]) - 1)
    weights, settings = diffae_weights.unet_from(averaged, image_size=size)
    unet = fitted(lambda: SemanticUNet(**settings), weights, "U-Net")
    if unet.config["z_width"] != encoder.config["z_width"]:
        raise UserError(
            f"the U-Net takes codes of {unet.config['z_width']} numbers, the encoder's have {encoder.config['z_width']}"
        )
    return encoder, CodeDecoder(unet, None, NOISE, "eps"), size


def _side(state: Mapping[str, Tensor]) -> int | None:
    """Of the noise that their training keeps to draw samples from; None where the file has none."""
    noise = state.get("x_T")
    return None if noise is None or noise.dim() != 4 else noise.shape[-1]
