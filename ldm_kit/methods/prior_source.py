"""The trained semantic model whose codes a prior is trained on: opened and checked."""

from torch import nn

from ldm_kit.config import UserError
from ldm_kit.data.images import PictureSet, digest
from ldm_kit.data.latents import weights_digest
from ldm_kit.methods.prior_config import PriorRun
from ldm_kit.models import codes
from ldm_kit.models.base_model import BaseModel
from ldm_kit.models.semantic import SemanticModel


def model_digest(model: SemanticModel) -> str:
    """Return a digest of the weights of a semantic model and its base model (if any), the same in any folder."""
    decoder = vars(model.decoder).values()
    networks = [model.encoder, *(value for value in decoder if isinstance(value, nn.Module))]
    bases = [value.sha256 for value in decoder if isinstance(value, BaseModel)]
    return digest([*map(weights_digest, networks), *bases])


def check_encoder(encoder: codes.Encoder, pictures: PictureSet, model: str) -> None:
    """Check that the encoder of the semantic model in the folder `model` takes the pictures; UserError: it does not."""
    config = encoder.config
    side = config.get("resolution", pictures.resolution)
    if (config["channels"], side) != (pictures.channels, pictures.resolution):
        raise UserError(
            f"the encoder of {model} is for pictures of {config['channels']} channels and side {side}, but those of "
            f"data have {pictures.channels} and {pictures.resolution}"
        )


def open_source(config: PriorRun, pictures: PictureSet) -> SemanticModel:
    """Open the semantic model `config.model` and check that it fits `pictures` and `config.sample`.

    Raises:
        UserError: the model is for pictures of another size or number of channels, or is a DiffAE although
            `sample.stop`, which is for PDAE, is not 0.
    """
    model = SemanticModel.load(config.model)
    if (model.channels, model.resolution) != (pictures.channels, pictures.resolution):
        raise UserError(
            f"data.resolution is {pictures.resolution}, but {config.model} is for pictures of side {model.resolution}"
        )
    if config.sample.stop and not model.decoder.stops:
        raise UserError(f"sample.stop is for a PDAE, and {config.model} is a DiffAE; leave it out")
    return model
