"""Conversion of checkpoints of phizaz/diffae to saved models.

The files that phizaz/diffae published, what they hold, and the options that they need or serve:

    NAME_autoenc/last.ckpt         encoder and U-Net; needs --statistics NAME_autoenc/latent.pkl, or --images
    NAME_autoenc_latent/last.ckpt  encoder, U-Net, prior over codes, and statistics of codes
    NAME_autoenc_cls/last.ckpt     for --classifier: a classifier of CelebA-HQ's attributes, and statistics of codes
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from conditioning.semantic import SemanticEncoder
from ldm_kit.config import UserError
from ldm_kit.convert import common, diffae_weights
from ldm_kit.convert.checkpoint_files import check_unused, read_checkpoint
from ldm_kit.convert.common import NOISE, load_network, name_in_errors, picture_size
from ldm_kit.convert.diffae_weights import strip_prefix
from ldm_kit.convert.options import SemanticCheckpointOptions
from ldm_kit.models.decoders import CodeDecoder
from ldm_kit.models.directions import Directions
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.semantic_unet import SemanticUNet
from ldm_kit.training.checkpoint import write

WEIGHTS = "c['state_dict']"
_PRIOR = "latent_net."


def convert_diffae(checkpoint: Path, out: Path, options: SemanticCheckpointOptions) -> str:
    """Convert a checkpoint of DiffAE to a saved model in the folder `out`; return a description of the model.

    `SemanticModel.load(out)` and edit.py open the result.

    Raises:
        UserError: a file cannot be read or is not DiffAE's; a file that `options` names does not fit the checkpoint;
            the checkpoint needs a file that `options` does not name; or the folder `out` exists and is not empty.
    """
    check_unused(out)
    state_dict = read_checkpoint(checkpoint, WEIGHTS)
    with name_in_errors(checkpoint):
        averaged = strip_prefix(state_dict, "ema_model.")
        encoder, decoder, size = _networks(state_dict, averaged, options.image_size)
    classifier = common.load_classifier(options.classifier, decoder.z_width, WEIGHTS)
    with name_in_errors(checkpoint):
        own = common.find_statistics(state_dict, decoder.z_width)
        prior = None
        if any(name.startswith(_PRIOR) for name in averaged):
            prior = common.build_prior(strip_prefix(averaged, _PRIOR), decoder.z_width)
    options = options.model_copy(update={"image_size": size})
    statistics = common.resolve_statistics(checkpoint, own, options, classifier, encoder)
    model = SemanticModel(encoder, decoder, *statistics, prior)
    directions: list[Directions | None] = []

    def save(folder: Path) -> None:
        model.save(folder)
        directions.append(common.save_directions(folder, model, classifier, options.attributes))

    write(out, save)
    return f"{out}: {common.describe(model, 'a diffusion autoencoder', directions[0])}"


def _networks(
    state_dict: Mapping[str, Tensor], ema_state_dict: Mapping[str, Tensor], image_size: int | None
) -> tuple[SemanticEncoder, CodeDecoder, int]:
    """Build the encoder and the decoder from the averaged weights; return both and the side of the pictures in pixels.

    Args:
        state_dict: all tensors of the checkpoint, of which only the fixed noise `x_T` is read, for its size.
        ema_state_dict: the averaged weights, without the prefix of their names.
        image_size: the side that the user gave; None: inferred from `x_T`.

    Raises:
        UserError: the weights are another network's; the size is unknown, as `image_size` is None and `x_T` is missing;
            or the size differs from `x_T`'s, or cannot be halved as often as the encoder does.
    """
    weights, settings = diffae_weights.encoder_from(ema_state_dict)
    encoder = load_network(lambda: SemanticEncoder(**settings), weights, "encoder")
    size = picture_size(image_size, _noise_size(state_dict), len(settings["widths"]) - 1)
    weights, settings = diffae_weights.unet_from(ema_state_dict, image_size=size)
    unet = load_network(lambda: SemanticUNet(**settings), weights, "U-Net")
    if unet.config["z_width"] != encoder.config["z_width"]:
        raise UserError(
            f"the U-Net takes codes of {unet.config['z_width']} numbers, the encoder's have {encoder.config['z_width']}"
        )
    return encoder, CodeDecoder(unet, None, NOISE, "eps"), size


def _noise_size(state_dict: Mapping[str, Tensor]) -> int | None:
    """Return the side in pixels of `x_T`, the noise from which DiffAE samples during training; None: it is missing."""
    noise = state_dict.get("x_T")
    return None if noise is None or noise.dim() != 4 else noise.shape[-1]
