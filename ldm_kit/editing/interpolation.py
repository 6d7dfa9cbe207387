"""`edit.py interpolate`: pictures between two pictures, by interpolating their codes or PDAE's trajectories."""

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
    """Interpolate between two pictures and write the results; with `options.morph`, write an animation as well.

    Args:
        context: the model and the output folder.
        options: the two pictures, the number of pictures to decode, the mode, and the animation's file.

    Returns:
        Number of pictures written, path of the sheet that shows them all, and a note on options saved with the model.

    Raises:
        UserError: one of the two files is no picture, the model is not semantic, the model's noise schedule allows
            fewer steps than `options` has, the mode is `trajectory` but the model is no PDAE, or the animation's file
            exists already.
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
    """Decode `options.count` pictures, uint8 [count, C, R, R], which lead from the first code to the last.

    In both modes x_T is interpolated spherically. In the mode `latent`, z is interpolated linearly. In the mode
    `trajectory`, z is the first picture's, and every decoding step mixes PDAE's gradients under the z of both pictures
    (Zhang et al. 2022).

    Args:
        model: decodes the codes; a PDAE in the mode `trajectory`.
        ends: z [2, D] and x_T [2, Z, h, w] of the first and the last picture.
        options: number of pictures, mode and steps.
    """
    first, last = ends.take([0]), ends.take([1])
    code = operations.interpolate(first, last, options.count)
    if options.mode == "latent":
        return operations.decode(model, code, options.steps, stop=options.stop)
    target = TrajectoryTarget(last.z.expand(options.count, -1), torch.linspace(0, 1, options.count))
    start = Code(first.z.expand(options.count, -1), code.x_T)
    return operations.decode(model, start, options.steps, stop=options.stop, trajectory=target)


def _check_mode(model: SemanticModel, options: InterpolationOptions) -> None:
    """Check that the model is a PDAE if `options.mode` is "trajectory"; raises UserError if it is not."""
    if options.mode == "trajectory" and not model.decoder.stops:
        raise UserError(
            "--mode trajectory mixes the gradients that a PDAE adds to its base model, and this model has none; "
            "expected --mode latent"
        )
