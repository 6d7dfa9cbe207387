"""Commands of `edit.py` on a semantic model (DiffAE or PDAE): change, mix, neighbours, encode and decode."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ldm_kit.config import UserError
from ldm_kit.data.folder import load_all as load_folder
from ldm_kit.editing import code_files, operations
from ldm_kit.editing.code_files import CodeFile
from ldm_kit.editing.context import EditContext, EditResult, ModelContext, chosen_out, png_settings
from ldm_kit.editing.image_io import folder_config, read_model_picture, save_result, save_sheet
from ldm_kit.editing.operations import Change
from ldm_kit.editing.options import (
    MAX_STRENGTH,
    ChangeOptions,
    DecodeOptions,
    EncodeOptions,
    MixOptions,
    NeighboursOptions,
)
from ldm_kit.models.directions import Direction, Directions
from ldm_kit.models.protocol import Code, encode_pictures, encoder_digest, normalise
from ldm_kit.models.sampler_options import MAX_SEED
from ldm_kit.paths import check_writable, check_writable_file


def change_attributes(context: EditContext, options: ChangeOptions) -> EditResult:
    """Change all requested attributes of one picture together; write the picture, its reconstruction and the result.

    If `options.strip` lists strengths, there is one result for each strength, and no reconstruction is written.

    Args:
        context: the model, its attribute directions, and the output folder.
        options: the picture, the attributes' names, and how far each is changed.

    Returns:
        Number of pictures written, path of the sheet that shows them all, and a note on options saved with the model.

    Raises:
        UserError: no direction was learned for an attribute, the file is no picture, the model is not semantic, or
            the model's noise schedule allows fewer steps than `options` has.
    """
    model = context.load_semantic_model(context.precision)
    options, note = operations.resolve_steps(model, options)
    directions = Directions.load(context.directions, encoder_digest(model))
    chosen = [directions[name] for name in options.attribute]
    picture = read_model_picture(model, options.image)
    z = normalise(model, model.encode(picture))[0]
    edits, captions = _edits([direction.at_code(z) for direction in chosen], options)
    code = operations.apply_edits(model, operations.encode(model, picture, options.invert_steps), edits)
    decoded = operations.decode(model, code, options.steps, stop=options.stop)
    pictures = torch.cat([picture, decoded])
    result = save_result(context, pictures, ["picture", *captions], edits=captions, **options.settings)
    return result._replace(note=note)


def _edits(directions: Sequence[Direction], options: ChangeOptions) -> tuple[list[list[Change]], list[str]]:
    """Return, for each picture to decode, the list of changes to make in its code, and its caption.

    If `options.strip` lists strengths, there is one picture for each strength. Otherwise there are two: the
    reconstruction, whose list of changes is empty, and the changed picture.
    """
    if options.strip is not None:
        names = ", ".join(direction.name for direction in directions)
        edits = [[Change(direction, strength) for direction in directions] for strength in options.strip_strengths]
        return edits, [f"{names} {strength:+g}" for strength in options.strip_strengths]
    strengths = _strengths(options.strength, directions)
    changes = [Change(direction, strength) for direction, strength in zip(directions, strengths, strict=True)]
    operations.check_not_idle(changes)
    caption = ", ".join(f"{direction.name} {strength:+.2g}" for direction, strength in changes)
    return [[], changes], ["reconstructed", caption]


def _strengths(strengths: Sequence[float], directions: Sequence[Direction]) -> list[float]:
    """Return one strength for each direction.

    Args:
        strengths: one number for each direction, or one for all. Empty: each direction's `typical` strength, which
            leads from the mean code without the attribute to that with it, clamped to at most `MAX_STRENGTH`.
        directions: the directions of the attributes to change.
    """
    if not strengths:
        return [max(-MAX_STRENGTH, min(MAX_STRENGTH, direction.typical)) for direction in directions]
    return list(strengths) * len(directions) if len(strengths) == 1 else list(strengths)


def mix_pictures(context: EditContext, options: MixOptions) -> EditResult:
    """Decode what one picture shows (its semantic code z) with the details of another (its stochastic code x_T).

    Args:
        context: the model and the output folder, to which both pictures and the mixed one are written.
        options: the files of the two pictures, `content` and `details`, and the numbers of DDIM steps.

    Returns:
        Number of pictures written, path of the sheet that shows them all, and a note on options saved with the model.

    Raises:
        UserError: one of the two files is no picture, the model is not semantic, or the model's noise schedule allows
            fewer steps than `options` has.
    """
    model = context.load_semantic_model(context.precision)
    options, note = operations.resolve_steps(model, options)
    pictures = torch.cat([read_model_picture(model, path) for path in (options.content, options.details)])
    code = operations.encode(model, pictures, options.invert_steps)
    code = operations.mix_codes(content=code.take([0]), details=code.take([1]))
    mixed = operations.decode(model, code, options.steps, stop=options.stop)
    captions = ["content", "details", "mixed"]
    result = save_result(context, torch.cat([pictures, mixed]), captions, mixed=True, **options.settings)
    return result._replace(note=note)


def find_neighbours(context: ModelContext, options: NeighboursOptions) -> list[tuple[str, float]]:
    """Find the pictures most similar to one picture; return their names, each with the cosine similarity of the codes.

    The most similar picture comes first.

    Args:
        context: the model.
        options: the picture, the number of neighbours, and `among`, where to search. If `among` is a folder of
            pictures, the nearest ones and a sheet of them are also written. If it is a code file, which holds no
            pictures, nothing is written.

    Raises:
        UserError: the file is no picture, the model is not semantic, or `among` is neither a folder nor a file of
            codes by this model.
    """
    if options.among.is_dir():
        check_writable(options.out)
    model = context.load_semantic_model()
    picture = read_model_picture(model, options.image)
    query = model.encode(picture)[0].float().cpu()
    if not options.among.is_dir():
        code_file = CodeFile.load(options.among, encoder_digest(model))
        indices, cosines = operations.nearest(model, query, code_file.z, options.count)
        return [(code_file.names[i], cosine) for i, cosine in zip(indices, cosines, strict=True)]
    pictures = load_folder(folder_config(model, options.among))
    indices, cosines = operations.nearest(model, query, encode_pictures(model, pictures), options.count)
    captions = ["picture", *(f"{cosine:.3f}" for cosine in cosines)]
    png_text = {**png_settings(neighbours=options.count), **context.provenance()}
    save_sheet(torch.cat([picture, pictures.pictures(indices)]), captions, chosen_out(options), png_text=png_text)
    return [(pictures.records[i].name, cosine) for i, cosine in zip(indices, cosines, strict=True)]


def encode_folder(context: ModelContext, options: EncodeOptions) -> str:
    """Encode the pictures of a folder into one code file; return a message for the user.

    The message gives the number of encoded pictures, the file, and the settings whose values were saved with the model.

    Args:
        context: the model.
        options: the folder of pictures, the file to write, and whether x_T is saved beside z.

    Raises:
        UserError: the folder of pictures does not exist, the model is not semantic, or `options.out` exists already.
    """
    out = chosen_out(options)
    check_writable_file(out)
    model = context.load_semantic_model(options.precision)
    options, note = operations.resolve_steps(model, options)
    pictures = load_folder(folder_config(model, options.images))
    steps = options.invert_steps if options.details else None
    code_file = code_files.encode(model, pictures, steps, options.batch_size)
    code_file.save(out)
    text = f"codes of {len(code_file.names)} pictures in {out}"
    return f"{text}\n{note}" if note and options.details else text


def decode_file(context: EditContext, options: DecodeOptions) -> EditResult:
    """Decode a code file to pictures. If it has no codes x_T, picture i gets a random x_T from seed `options.seed` + i.

    Args:
        context: the model and the output folder.
        options: the code file, the first seed, and the number of steps.

    Returns:
        Number of pictures written, path of the sheet that shows them all, and a note on options saved with the model.

    Raises:
        UserError: the file holds no codes, or those of another model; the model is not semantic; or the model's noise
            schedule allows fewer steps than `options` has.
    """
    model = context.load_semantic_model(context.precision)
    options, note = operations.resolve_steps(model, options)
    code_file = CodeFile.load(options.codes, encoder_digest(model))
    seeds = range(options.seed, options.seed + len(code_file.z))
    if seeds and seeds[-1] > MAX_SEED:
        raise UserError(f"--seed is {options.seed}; expected 0 to 2^64 - {len(seeds)}, the number of pictures")
    x_T = model.noise(seeds) if code_file.x_T is None else code_file.x_T
    code = Code(code_file.z, x_T)
    pictures = operations.decode(model, code, options.steps, options.batch_size, stop=options.stop)
    captions = [Path(name).stem for name in code_file.names]
    result = save_result(context, pictures, captions, columns=8, decoded=len(pictures), **options.settings)
    return result._replace(note=note)
