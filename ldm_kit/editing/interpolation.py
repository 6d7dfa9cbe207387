"""`edit.py interpolate`: pictures between two, by their codes or along PDAE's trajectories."""

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.editing import operations
from ldm_kit.editing.context import EditContext, EditResult
from ldm_kit.editing.image_io import read_model_picture, save_animation, save_result
from ldm_kit.editing.options import InterpolationOptions
from ldm_kit.models.decoders import TrajectoryTarget
from ldm_kit.models.protocol import Code, Semantic
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.paths import check_writable_file


def interpolate_pictures(context: EditContext, options: InterpolationOptions) -> EditResult:
    """Interpolate two pictures, and write an animation as well where one is asked for.

    Raises:
        UserError: no picture, no semantic model, more steps than it has training times, or a mode that it lacks.
    """
    if options.morph is not None:
        check_writable_file(options.morph)
    model = context.load_semantic_model(context.precision)
    options, note = operations.resolve_steps(model, options)
    _check_mode(model, options)
    pictures = torch.cat([read_model_picture(model, path) for path in options.image])
    frames = decode_between(model, operations.encode(model, pictures, options.invert_steps), options)
    if options.morph is not None:
        save_animation(frames, options.morph, options.duration)
    captions = ["first", *(f"{i / (options.count - 1):.0%}" for i in range(options.count)), "last"]
    shown = torch.cat([pictures[:1], frames, pictures[1:]])
    settings = {"interpolated": options.count, "mode": options.mode, **options.settings}
    return save_result(context, shown, captions, **settings)._replace(note=note)


def decode_between(model: Semantic, ends: Code, options: InterpolationOptions) -> Tensor:
    """Decode pictures uint8 [count, C, R, R] from the first of two codes to the second.

    In the mode `latent` z is interpolated linearly and x_T spherically. In the mode `trajectory` z is that of the first
    picture, and every step mixes PDAE's gradients under both pictures' codes (Zhang et al. 2022).
    """
    first, last = ends.take([0]), ends.take([1])
    code = operations.interpolate(first, last, options.count)
    if options.mode == "latent":
        return operations.decode(model, code, options.steps, stop=options.stop)
    target = TrajectoryTarget(last.z.expand(options.count, -1), torch.linspace(0, 1, options.count))
    start = Code(first.z.expand(options.count, -1), code.x_T)
    return operations.decode(model, start, options.steps, stop=options.stop, trajectory=target)


def _check_mode(model: SemanticModel, options: InterpolationOptions) -> None:
    """Check that a model has gradients where trajectories are asked for; raises UserError."""
    if options.mode == "trajectory" and not model.decoder.stops:
        raise UserError(
            "--mode trajectory mixes the gradients that a PDAE adds to its base model, and this model has none; "
            "expected --mode latent"
        )
