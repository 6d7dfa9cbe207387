"""The distance between two predictions of x_0 that a consistency run trains with."""

from functools import partial

from autoencoder.perceptual import Perceptual
from ldm_kit.config import UserError
from ldm_kit.data.latents import weights_digest
from ldm_kit.diffusion.consistency import Metric, l1, l2, pseudo_huber
from ldm_kit.methods.consistency_config import ConsistencyRun


def open_perceptual(config: ConsistencyRun, *, pixels: bool) -> Perceptual | None:
    """Load the network of a perceptual distance, if the config's loss is one.

    Args:
        config: the run's config.
        pixels: whether the model is one of pixels.

    Raises:
        UserError: the model is one of latents.
        AutoencoderError: the weights cannot be loaded.
    """
    if config.perceptual is None:
        return None
    if not pixels:
        raise UserError("loss perceptual compares pictures, but this model has latents; expected huber, l1 or l2")
    return Perceptual(config.perceptual)


def perceptual_dependencies(perceptual: Perceptual | None) -> dict[str, str]:
    """Return the digest of a perceptual network's weights, which a resumed run must have again; {} if there is none."""
    return {} if perceptual is None else {"perceptual.weights": weights_digest(perceptual)}


def metric_of(config: ConsistencyRun, perceptual: Perceptual | None) -> Metric:
    """Return the distance that the config's `loss` names; `perceptual` is what `open_perceptual` returned."""
    if perceptual is not None:
        return perceptual
    return {"l1": l1, "l2": l2, "huber": partial(pseudo_huber, c=config.huber_c)}[config.loss]
