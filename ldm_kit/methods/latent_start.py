"""Start a latent diffusion run from a trained model, to tune it with the guidance scale as a further input."""

from typing import NamedTuple

from torch import nn

from conditioning.base import Conditioner, ConditioningError, Inputs
from ldm_kit.config import UserError
from ldm_kit.data.images import digest
from ldm_kit.data.latents import weights_digest
from ldm_kit.data.value_range import check_same_range
from ldm_kit.methods.conditions import Conditions
from ldm_kit.methods.dependencies import condition_dependencies
from ldm_kit.methods.latent_network import LatentDiffusion
from ldm_kit.models.compatibility import check_compatible
from ldm_kit.models.consistency_folder import check_trainable
from ldm_kit.models.growth import OF_SCALE, misfits, shapes
from ldm_kit.models.pipeline import Pipeline


class Base(NamedTuple):
    """The trained model that a run with `guidance` starts from."""

    network: LatentDiffusion
    sha256: str  # digest of its weights, with which a resumed run checks that they have not changed


def start_from(base: str, model: Pipeline, inputs: Inputs, conditions: Conditions, *, teacher: bool) -> Base:
    """Copy the weights of a trained model into a new one, which may differ only by taking the guidance scale as input.

    The new model then computes at every guidance scale what the base computes, since the weights of the scale are zero.

    Args:
        base: folder of the trained model or of its run.
        model: the new model, whose U-Net and conditioner are changed in place.
        inputs: the conditioner's inputs of the training set.
        conditions: the captions or classes of the training set.
        teacher: whether the base's guided output is to be learned, for which its null condition must be trained.

    Returns:
        The trained model, which shares no weights with the new one.

    Raises:
        UserError: the base cannot be opened, or its noise schedule, latents, prediction type, condition or networks are
            not those of the new model; or it cannot be the teacher.
    """
    trained = Pipeline.load(base)
    check_trainable(trained.unet, f"guidance.base {base}")
    check_compatible(f"guidance.base {base}", trained.space, model.space)
    check_same_range(f"guidance.base {base}", trained.value_range, model)
    if (trained.target, trained.variance) != (model.target, model.variance):
        raise UserError(
            f"guidance.base {base} predicts {trained.target} with variance {trained.variance}, but this run's network "
            f"{model.target} with {model.variance}; expected the same"
        )
    _check_condition(base, trained.conditioner, model.conditioner, inputs, conditions)
    if teacher:
        _check_teacher(base, trained)
    new = {"unet": model.unet, **model.conditioner.trainable}
    old = {"unet": trained.unet, **trained.conditioner.trainable}
    for name, network in new.items():
        copy_weights(f"guidance.base {base}", name, old[name], network)
    sha256 = digest([f"{name} {weights_digest(network)}" for name, network in old.items()])
    return Base(LatentDiffusion(trained.unet, trained.conditioner), sha256)


def _check_teacher(base: str, trained: Pipeline) -> None:
    """Raise UserError if the model in the folder `base` cannot be guided without the scale as input."""
    if trained.takes_scale:
        raise UserError(
            f"guidance.base {base} takes the guidance scale as input; expected a model with classifier-free guidance, "
            "or guidance.target model"
        )
    if not trained.saved.trains_null:
        raise UserError(
            f"guidance.target base needs a null condition, but that of {base} was never trained (condition_dropout 0)"
        )


def _check_condition(base: str, trained: Conditioner, new: Conditioner, inputs: Inputs, conditions: Conditions) -> None:
    """Check that two conditioners turn the training set's captions or classes into equal inputs.

    Args:
        base: folder of the trained model, for messages.
        trained: conditioner of the trained model.
        new: conditioner of the new model.
        inputs: what `new` makes of the training set's captions or classes.
        conditions: the captions or classes.

    Raises:
        UserError: the inputs differ, or `trained` does not know a class.
    """
    values = [*dict.fromkeys(conditions.all_train)]
    same = type(trained) is type(new) and trained.trainable.keys() == new.trainable.keys()
    try:
        same = same and trained.class_names(values) == new.class_names(values)
        prepared = {} if new.encoder_digest or not same else trained.prepare(conditions.all_train)
    except ConditioningError as error:
        raise UserError(f"guidance.base {base} does not know the conditions of this run: {error}") from None
    if not same or condition_dependencies(trained, prepared) != condition_dependencies(new, inputs):
        raise UserError(
            f"guidance.base {base} has other tokens, classes or another text encoder than this run; expected the "
            "condition and the pictures of its own training"
        )


def copy_weights(base: str, name: str, old: nn.Module, new: nn.Module) -> None:
    """Copy the weights of `old` into `new`; weights for the guidance scale that `old` lacks keep their values.

    Args:
        base: the config's key of the trained model and its folder, for the message.
        name: the network's name, such as unet, for the message.
        old: network of the trained model.
        new: network of the same kind, which is changed in place.

    Raises:
        UserError: other weights are missing, too many, or of another shape; the message names the first ones.
    """
    trained = old.state_dict()
    given = shapes(old)
    expected = {key: shape for key, shape in shapes(new).items() if key in given or key != OF_SCALE}
    if (phrase := misfits(given, expected)) is not None:
        raise UserError(f"{base} does not fit this run's {name}: {phrase}")
    new.load_state_dict(trained, strict=False)
