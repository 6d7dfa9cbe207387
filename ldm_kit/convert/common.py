"""What checkpoints of DiffAE and PDAE have in common: statistics of codes, a prior, attributes, weights that fit."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from conditioning.base import ConditioningError
from conditioning.none import NoCondition
from ldm_kit.config import UserError
from ldm_kit.convert import diffae_weights
from ldm_kit.convert.attributes import directions_of
from ldm_kit.convert.checkpoint_files import read_checkpoint
from ldm_kit.convert.diffae_weights import under
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
_MEANS, _STDS = ("conds_mean", "mean"), ("conds_std", "std")  # what DiffAE's, and PDAE's and our own, files call them
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Beside:
    """What lies beside a checkpoint: everything that a whole model needs and an autoencoder's file has not."""

    image_size: int | None = None  # side of the pictures; None: as the file says
    statistics: Path | None = None  # a file of the codes' mean and deviation
    images: Path | None = None  # or a folder of pictures to compute them from
    classifier: Path | None = None  # of attributes
    attributes: Path | None = None  # their names, one a line; None: CelebA's
    device: str | None = None  # that encodes the folder


class Statistics(NamedTuple):
    """Of codes, over the training set."""

    mean: Tensor  # [D]
    std: Tensor  # [D]


class Judge(NamedTuple):
    """A linear classifier of attributes on normalised codes."""

    weight: Tensor  # [K, D]
    bias: Tensor  # [K]
    statistics: Statistics | None  # of the codes that it was trained on, where its file says so


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let a mistake within say which file it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def fitted(build: Callable[[], N], weights: Mapping[str, Tensor], what: str) -> N:
    """A network in evaluation mode with these weights, all of them.

    Raises:
        UserError: it cannot be built, or has other weights.
    """
    try:
        net = build()
    except (ValueError, ZeroDivisionError, ConditioningError) as error:
        raise UserError(f"there is no {what} of these shapes: {error}") from None
    wanted = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    if odd := sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name)):
        said = [shapes.get(odd[0], "nothing") for shapes in (given, wanted)]
        raise UserError(f"the {what} does not fit: {odd[0]} is {said[0]} in the file, expected {said[1]}")
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False)


def sized(said: int | None, found: int | None, halved: int) -> int:
    """The side of the pictures, given or found in the file; raises UserError where neither or both say it."""
    if said is not None and found is not None and said != found:
        raise UserError(f"its pictures have the side {found}, not --image_size {said}; leave that out")
    size = said if found is None else found
    if size is None:
        raise UserError("the file does not say the side of its pictures; give --image_size")
    if size % 2**halved:
        raise UserError(f"a picture of side {size} cannot be halved {halved} times as this network does")
    return size


def prior_of(weights: Mapping[str, Tensor], width: int) -> CodePrior:
    """The prior of a latent net's state, for codes [N, width]; raises UserError for other weights."""
    state, settings = diffae_weights.prior_from(weights)
    if settings["z_width"] != width:
        raise UserError(f"the prior is for codes of {settings['z_width']} numbers, the encoder's have {width}")
    return CodePrior(fitted(lambda: SkipMLP(**settings), state, "prior"), NoCondition(), PRIOR_NOISE)


def judge_of(path: Path | None, width: int, weights: str) -> Judge | None:
    """A classifier's file, its averaged weights; raises UserError for another one, or one of other codes."""
    if path is None:
        return None
    state = read_checkpoint(path, weights)
    with naming(path):
        found = under(state, "ema_classifier.")
        shapes = {name: tuple(value.shape) for name, value in found.items()}
        count = len(found.get("bias", ()))
        if shapes != {"weight": (count, width), "bias": (count,)}:
            raise UserError(f"the classifier is {shapes}; expected weight [K, {width}] and bias [K], as codes are")
        return Judge(found["weight"].float(), found["bias"].float(), stated(state, width))


def stated(state: Mapping[str, Tensor], width: int) -> Statistics | None:
    """The statistics among a file's tensors; None where there are none; raises UserError for unusable ones."""
    mean = next((state[name].flatten().float() for name in _MEANS if name in state), None)
    std = next((state[name].flatten().float() for name in _STDS if name in state), None)
    if mean is None or std is None:
        return None
    usable = bool(mean.isfinite().all() and std.isfinite().all() and (std > 0).all())
    if (len(mean), len(std)) != (width, width) or not usable:
        raise UserError(f"its statistics are no mean and positive deviation of {width} numbers each, as codes have")
    return Statistics(mean, std)


def statistics_of(
    checkpoint: Path, inside: Statistics | None, beside: Beside, judge: Judge | None, encoder: Encoder
) -> Statistics:
    """The codes' statistics: those inside the checkpoint, in a file, of a folder's pictures, or in the classifier's.

    Raises:
        UserError: there are none, two that are not the same, or a file that holds none.
    """
    ways = [beside.statistics is not None, beside.images is not None]
    if sum(ways) > 1 or (any(ways) and inside is not None):
        if inside is None:
            raise UserError("--statistics and --images both say the statistics of codes; give one of them")
        raise UserError(f"{checkpoint} holds the statistics of its codes; leave out --statistics and --images")
    found = inside or _given(beside, encoder) or (judge.statistics if judge else None)
    if found is None:
        raise UserError(
            f"{checkpoint} holds no statistics of its codes, as files of an autoencoder alone do not; give "
            "--statistics FILE, or --images DIR of its training pictures to compute them from"
        )
    if judge is not None and judge.statistics is not None and not _alike(found, judge.statistics):
        raise UserError(
            f"{beside.classifier} was trained on codes of other statistics; expected a classifier of this very model"
        )
    return found


def _given(beside: Beside, encoder: Encoder) -> Statistics | None:
    width = encoder.config["z_width"]
    if beside.statistics is not None:
        state = read_checkpoint(beside.statistics, "{k: c[k] for k in c if k.endswith(('mean', 'std'))}")
        with naming(beside.statistics):
            found = stated(state, width)
            if found is None:
                raise UserError("it holds no statistics; expected tensors mean and std, or conds_mean and conds_std")
            return found
    if beside.images is None:
        return None
    config = {"path": beside.images, "resolution": beside.image_size, "channels": encoder.config["channels"]}
    pictures = load_all(FolderConfig.model_validate(config))
    encoder.to(device_named(beside.device))  # pyright: ignore[reportArgumentType, reportCallIssue]
    found = Statistics(*codes.code_statistics(codes.encode_set(encoder, pictures)))
    encoder.to("cpu")  # pyright: ignore[reportArgumentType, reportCallIssue]
    return found


def _alike(one: Statistics, other: Statistics) -> bool:
    return all(torch.allclose(a / one.std, b / one.std, rtol=1e-3, atol=1e-3) for a, b in zip(one, other, strict=True))


def save_directions(folder: Path, model: SemanticModel, judge: Judge | None, names: Path | None) -> Directions | None:
    """Write what the classifier knows beside a saved model, for `edit.py --attribute`; raises UserError."""
    if judge is None:
        if names is not None:
            raise UserError("--attributes names what a --classifier knows; give both, or leave it out")
        return None
    found = directions_of(judge.weight, judge.bias, names, encoder_digest(model))
    (folder / FILE).mkdir()
    found.save(folder / FILE)
    return found


def told(model: SemanticModel, what: str, directions: Directions | None) -> str:
    """A sentence of what it is."""
    parts = [f"{what} of {model.resolution} px pictures, codes of {model.z_width} numbers"]
    parts += [] if model.prior is None else ["a prior to draw them from"]
    parts += [] if directions is None else [f"{len(directions.names)} attributes to change"]
    return ", ".join(parts)
