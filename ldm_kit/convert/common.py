"""Conversion steps that DiffAE's and PDAE's checkpoints share.

These steps read the statistics of codes, a prior over codes, and a classifier of attributes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from conditioning.base import ConditioningError
from conditioning.none import NoCondition
from ldm_kit.config import UserError
from ldm_kit.convert import diffae_weights
from ldm_kit.convert.attributes import classifier_directions
from ldm_kit.convert.checkpoint_files import read_checkpoint
from ldm_kit.convert.diffae_weights import strip_prefix
from ldm_kit.convert.options import SemanticCheckpointOptions
from ldm_kit.data.folder import FolderConfig, load_all
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.models import codes
from ldm_kit.models.codes import Encoder
from ldm_kit.models.directions import FILE, Directions
from ldm_kit.models.folder import device_named
from ldm_kit.models.prior import CodePrior
from ldm_kit.models.protocol import encoder_digest
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.mlp_skip import SkipMLP

NOISE = ScheduleConfig(kind="linear")
PRIOR_NOISE = ScheduleConfig(kind="constant")
_MEANS, _STDS = ("conds_mean", "mean"), ("conds_std", "std")  # names in DiffAE's files; names in PDAE's and ours
N = TypeVar("N", bound=nn.Module)


class Statistics(NamedTuple):
    """Mean and standard deviation of the training set's codes, in each of their D dimensions."""

    mean: Tensor  # [D]
    std: Tensor  # [D]


class AttributeClassifier(NamedTuple):
    """A linear classifier of K attributes, which takes normalised codes [N, D]."""

    weight: Tensor  # [K, D]
    bias: Tensor  # [K]
    statistics: Statistics | None  # mean and deviation of the codes it was trained on; None: the file has none


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Put a file's path before the message of any UserError that is raised in the `with` block."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def load_network(build: Callable[[], N], weights: Mapping[str, Tensor], name: str) -> N:
    """Build a network and load a complete state dict into it; return it in evaluation mode, without gradients.

    Args:
        build: returns the network with random weights.
        weights: the state dict.
        name: what error messages call the network.

    Raises:
        UserError: the network cannot be built, or `weights` has other names or shapes than the network.
    """
    try:
        net = build()
    except (ValueError, ZeroDivisionError, ConditioningError) as error:
        raise UserError(f"there is no {name} of these shapes: {error}") from None
    expected = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in weights.items()}
    if misfits := sorted(key for key in expected.keys() | given.keys() if expected.get(key) != given.get(key)):
        shapes = [state_dict.get(misfits[0], "nothing") for state_dict in (given, expected)]
        raise UserError(f"the {name} does not fit: {misfits[0]} is {shapes[0]} in the file, expected {shapes[1]}")
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False)


def picture_size(given: int | None, inferred: int | None, halvings: int) -> int:
    """Return the side of a model's pictures in pixels, as given by the user or inferred from the checkpoint.

    Args:
        given: the side that the user gave (--image_size); None: not given.
        inferred: the side inferred from the checkpoint; None: the checkpoint does not show it.
        halvings: how often the network halves the side.

    Raises:
        UserError: both are None, both are there but differ, or the side is not divisible by 2**halvings.
    """
    if given is not None and inferred is not None and given != inferred:
        raise UserError(f"its pictures have the side {inferred}, not --image_size {given}; leave that out")
    size = given if inferred is None else inferred
    if size is None:
        raise UserError("the file does not hold the side of its pictures; give --image_size")
    if size % 2**halvings:
        raise UserError(f"a picture of side {size} cannot be halved {halvings} times as this network does")
    return size


def build_prior(weights: Mapping[str, Tensor], width: int) -> CodePrior:
    """Build the prior over codes [N, width] from the state dict of its network, which DiffAE calls the latent net.

    Raises:
        UserError: the weights are not those of a latent net, or its codes do not have `width` numbers.
    """
    state_dict, settings = diffae_weights.prior_from(weights)
    if settings["z_width"] != width:
        raise UserError(f"the prior is for codes of {settings['z_width']} numbers, the encoder's have {width}")
    mlp = load_network(lambda: SkipMLP(**settings), state_dict, "prior")
    return CodePrior(mlp, NoCondition(), PRIOR_NOISE)


def load_classifier(path: Path | None, width: int, weights: str) -> AttributeClassifier | None:
    """Load an attribute classifier of codes [N, width] with its averaged (EMA) weights; return None if `path` is None.

    Args:
        path: the classifier's checkpoint.
        width: D, numbers in a code.
        weights: a Python expression that `read_checkpoint` shows in its error message.

    Raises:
        UserError: the file cannot be read, lacks the weights `ema_classifier.*`, or their shapes are not [K, width] and
            [K]; or the statistics in the file are not valid.
    """
    if path is None:
        return None
    state_dict = read_checkpoint(path, weights)
    with name_in_errors(path):
        averaged = strip_prefix(state_dict, "ema_classifier.")
        shapes = {name: tuple(value.shape) for name, value in averaged.items()}
        count = len(averaged.get("bias", ()))
        if shapes != {"weight": (count, width), "bias": (count,)}:
            raise UserError(f"the classifier is {shapes}; expected weight [K, {width}] and bias [K], as codes are")
        statistics = find_statistics(state_dict, width)
        return AttributeClassifier(averaged["weight"].float(), averaged["bias"].float(), statistics)


def find_statistics(state_dict: Mapping[str, Tensor], width: int) -> Statistics | None:
    """Find the mean and deviation of codes [N, width] in a file's tensors, `state_dict`; return None if it has none.

    Raises:
        UserError: the statistics do not have `width` numbers or are not finite, or a deviation is not positive.
    """
    mean = next((state_dict[name].flatten().float() for name in _MEANS if name in state_dict), None)
    std = next((state_dict[name].flatten().float() for name in _STDS if name in state_dict), None)
    if mean is None or std is None:
        return None
    usable = bool(mean.isfinite().all() and std.isfinite().all() and (std > 0).all())
    if (len(mean), len(std)) != (width, width) or not usable:
        raise UserError(f"its statistics are no mean and positive deviation of {width} numbers each, as codes have")
    return Statistics(mean, std)


def resolve_statistics(
    checkpoint: Path,
    own: Statistics | None,
    options: SemanticCheckpointOptions,
    classifier: AttributeClassifier | None,
    encoder: Encoder,
) -> Statistics:
    """Return the mean and deviation of the training set's codes, which normalise the codes.

    They come from the checkpoint if it holds them; else from the file of statistics or the folder of training pictures,
    whichever `options` names; else from the classifier's file.

    Args:
        checkpoint: path of the checkpoint, for error messages.
        own: the statistics in the checkpoint; None: it has none.
        options: `statistics`, the file of statistics, or `images`, the folder of pictures; both may be None.
        classifier: if the classifier's file holds statistics, they must equal the result.
        encoder: the semantic encoder, which encodes the folder's pictures.

    Raises:
        UserError: no source has statistics; more than one of checkpoint, file and folder is there to give them; the
            file `options.statistics` holds none; or the classifier's statistics differ from the result.
    """
    given = [options.statistics is not None, options.images is not None]
    if sum(given) > 1 or (any(given) and own is not None):
        if own is None:
            raise UserError("--statistics and --images both give the statistics of codes; give one of them")
        raise UserError(f"{checkpoint} holds the statistics of its codes; leave out --statistics and --images")
    statistics = own or _given_statistics(options, encoder) or (classifier.statistics if classifier else None)
    if statistics is None:
        raise UserError(
            f"{checkpoint} holds no statistics of its codes, as files of an autoencoder alone do not; give "
            "--statistics FILE, or --images DIR of its training pictures to compute them from"
        )
    if classifier is not None and classifier.statistics is not None and not _close(statistics, classifier.statistics):
        raise UserError(
            f"{options.classifier} was trained on codes of other statistics; expected a classifier of this very model"
        )
    return statistics


def _given_statistics(options: SemanticCheckpointOptions, encoder: Encoder) -> Statistics | None:
    """Return the statistics of codes that `options` gives; None: it names neither a file nor a folder.

    The file `options.statistics` holds them; for the pictures in the folder `options.images`, `encoder` computes codes.
    """
    width = encoder.config["z_width"]
    if options.statistics is not None:
        state_dict = read_checkpoint(options.statistics, "{k: c[k] for k in c if k.endswith(('mean', 'std'))}")
        with name_in_errors(options.statistics):
            statistics = find_statistics(state_dict, width)
            if statistics is None:
                raise UserError("it holds no statistics; expected tensors mean and std, or conds_mean and conds_std")
            return statistics
    if options.images is None:
        return None
    config = {"path": options.images, "resolution": options.image_size, "channels": encoder.config["channels"]}
    pictures = load_all(FolderConfig.model_validate(config))
    encoder.to(device_named(options.device))  # pyright: ignore[reportArgumentType, reportCallIssue]
    statistics = Statistics(*codes.code_statistics(codes.encode_set(encoder, pictures)))
    encoder.to("cpu")  # pyright: ignore[reportArgumentType, reportCallIssue]
    return statistics


def _close(one: Statistics, other: Statistics) -> bool:
    return all(torch.allclose(a / one.std, b / one.std, rtol=1e-3, atol=1e-3) for a, b in zip(one, other, strict=True))


def save_directions(
    folder: Path, model: SemanticModel, classifier: AttributeClassifier | None, names: Path | None
) -> Directions | None:
    """Save an attribute classifier's directions, for edits by edit.py, in a saved model's folder; return them.

    `names` is a text file of the attributes' names, one a line; None: CelebA's 40. Without a classifier, None is
    returned.

    Raises:
        UserError: `names` is given without a classifier, or there is not one name for each of its attributes.
    """
    if classifier is None:
        if names is not None:
            raise UserError("--attributes names what a --classifier knows; give both, or leave it out")
        return None
    directions = classifier_directions(classifier.weight, classifier.bias, names, encoder_digest(model))
    (folder / FILE).mkdir()
    directions.save(folder / FILE)
    return directions


def describe(model: SemanticModel, kind: str, directions: Directions | None) -> str:
    """Return a phrase that describes a converted model: `kind`, size of pictures, width of codes, prior, attributes."""
    phrases = [f"{kind} of {model.resolution} px pictures, codes of {model.z_width} numbers"]
    phrases += [] if model.prior is None else ["a prior to sample them from"]
    phrases += [] if directions is None else [f"{len(directions.names)} attributes to change"]
    return ", ".join(phrases)
