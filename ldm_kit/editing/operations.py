"""Operations on pictures' codes z and x_T: attribute edits, interpolation, mixing, and nearest neighbours."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.diffusion.pdae import shift_codes, slerp
from ldm_kit.editing.options import STRENGTHS, ModelDefaults, StepOptions
from ldm_kit.models.decoders import TrajectoryTarget
from ldm_kit.models.directions import Direction
from ldm_kit.models.protocol import Code, Semantic, statistics
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.progress import step_bar

S = TypeVar("S", bound=ModelDefaults)


class Change(NamedTuple):
    """A direction, and the distance `strength` to move a normalised code along it.

    The distance is in units of sqrt(D), the length of a typical normalised code of D dimensions.
    """

    direction: Direction
    strength: float


def encode(model: Semantic, pictures: Tensor, steps: int = 250) -> Code:
    """Encode pictures uint8 [N, C, R, R] by `model`; return their codes z and x_T on the CPU.

    x_T comes from DDIM inversion in `steps` steps.
    """
    z = model.encode(pictures)
    with step_bar("inverting") as progress:
        x_T = model.invert(pictures, z, steps=steps, progress=progress)
    return Code(z.float().cpu(), x_T.float().cpu())


def decode(
    model: Semantic,
    code: Code,
    steps: int = 100,
    batch: int = 32,
    *,
    stop: float = 0.0,
    trajectory: TrajectoryTarget | None = None,
) -> Tensor:
    """Decode codes as pictures uint8 [N, C, R, R], with a progress bar.

    Args:
        model: decodes the codes.
        code: z [N, D] and x_T [N, Z, h, w] of the N pictures.
        steps: number of DDIM steps.
        batch: most pictures at a time.
        stop: PDAE only: fraction of the steps, at the end, that use the base model without the gradient estimator.
        trajectory: PDAE only: second codes and weights, N each; every step mixes the gradients under both codes.
    """
    with step_bar("decoding") as progress:
        return model.decode(code.z, code.x_T, steps, batch, stop, trajectory=trajectory, progress=progress)


def resolve_steps(model: SemanticModel, options: S) -> tuple[S, str]:
    """Return `options`, with values saved with the model for those that the user left out, and a note on these values.

    A number of steps that the user left out is reduced to the most that the model's noise schedule allows.

    Raises:
        UserError: the user asks for more steps than the schedule allows, or for `stop` although the model is no PDAE;
            the message names the flag.
    """
    given = options.model_fields_set
    options, note = model.saved.fill(options, options.SECTION, options.SAVED)
    fewer = {name: min(n, model.decoder.most_steps) for name, n in options.step_counts.items() if name not in given}
    options = options.model_copy(update=fewer)
    for name, steps in options.step_counts.items():
        try:
            model.decoder.grid(steps)
        except UserError as error:
            raise UserError(f"--{name} {steps}: {str(error).removeprefix('steps: ')}") from None
    if isinstance(options, StepOptions) and options.stop and not model.decoder.stops:
        raise UserError(
            f"--stop {options.stop:g} leaves the last steps to the base model of a PDAE, which this model lacks; "
            "leave it out"
        )
    return options, note


def check_not_idle(changes: Sequence[Change]) -> None:
    """Check that at least one of `changes` has a strength other than 0; raises UserError if none has."""
    if all(change.strength == 0 for change in changes):
        raise UserError(f"--strength 0 changes nothing; expected another number, {STRENGTHS}")


def move_codes(model: Semantic, z: Tensor, changes: Sequence[Change]) -> Tensor:
    """Move codes z [N, D], not normalised, along the directions of all changes (Preechakul et al. 2022).

    The order of the changes does not matter. `model` gives the mean and deviation with which codes are normalised.
    """
    mean, std = statistics(model)
    for direction, strength in changes:
        z = shift_codes(z, direction.vector, strength, mean, std)
    return z


def apply_edits(model: Semantic, code: Code, edits: Sequence[Sequence[Change]]) -> Code:
    """Apply K edits, each a list of changes, to one picture's code of `model`, and return the K edited codes.

    `code` has z [1, D] and x_T [1, Z, h, w]. The result has z [K, D] and the unchanged x_T K times, [K, Z, h, w].
    """
    z = torch.cat([move_codes(model, code.z, changes) for changes in edits])
    return Code(z, code.x_T.expand(len(z), *code.x_T.shape[1:]))


def interpolate(first: Code, last: Code, count: int) -> Code:
    """Interpolate the codes of two pictures at `count` points, both ends among them: z linearly, x_T spherically.

    Args:
        first: z [1, D] and x_T [1, Z, h, w] of the first picture.
        last: z and x_T of the last picture, in the same shapes.
        count: number of points.

    Returns:
        z [count, D] and x_T [count, Z, h, w].
    """
    weights = torch.linspace(0, 1, count)
    z = torch.lerp(first.z.expand(count, -1), last.z.expand(count, -1), weights[:, None])
    shape = (count, *first.x_T.shape[1:])
    return Code(z, slerp(first.x_T.expand(shape), last.x_T.expand(shape), weights))


def mix_codes(content: Code, details: Code) -> Code:
    """Return the semantic code z of `content` with the stochastic code x_T of `details`."""
    return Code(content.z, details.x_T)


def nearest(model: Semantic, query: Tensor, z: Tensor, count: int) -> tuple[list[int], list[float]]:
    """Return the indices of the `count` codes z [N, D] that are most similar to a code `query` [D], and their cosines.

    The best come first. This function first normalises all codes by `model`'s statistics, so that no dimension
    outweighs the others.
    """
    mean, std = statistics(model)
    cosines = torch.cosine_similarity(((query - mean) / std)[None], (z - mean) / std, dim=1)
    top = cosines.topk(min(count, len(z)))
    return top.indices.tolist(), top.values.tolist()
