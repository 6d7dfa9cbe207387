"""Whole tasks of `edit.py` on a semantic model: files and words in, pictures, sheets, codes and directions out."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ldm_kit.config import UserError
from ldm_kit.data.folder import load_all as load_folder
from ldm_kit.editing import code_files, operations
from ldm_kit.editing.code_files import CodeFile
from ldm_kit.editing.context import (
    EditContext,
    EditResult,
    Steps,
    check_counts,
    folder_config,
    read_image_for,
    save_result,
)
from ldm_kit.editing.image_io import save_sheet
from ldm_kit.editing.operations import Change
from ldm_kit.models.directions import Direction, Directions
from ldm_kit.models.protocol import Code, encode_pictures, encoder_digest, normalise


def change(
    place: EditContext,
    image: Path,
    attributes: Sequence[str],
    strengths: Sequence[float],
    line: str | None,
    steps: Steps,
) -> EditResult:
    """Edit one picture: all attributes at once, or a strip of strengths.

    Without strengths each attribute is moved by the one that is typical for it; one strength counts for all.

    Raises:
        UserError: an unknown attribute, strengths out of range or not one each, no picture, no semantic model.
    """
    steps.refuse()
    if not attributes:
        raise UserError("nothing to change; give at least one --attribute NAME")
    wanted = _refused(attributes, strengths, line)
    model = place.open(steps)
    known = Directions.load(place.directions, encoder_digest(model))
    chosen = [known[name] for name in attributes]
    picture = read_image_for(model, image)
    z = normalise(model, model.encode(picture))[0]
    rows, captions = _rows([direction.at(z) for direction in chosen], strengths, wanted)
    place.ready()
    code = operations.apply_edits(model, operations.encode(model, picture, steps.invert), rows)
    shown = torch.cat([picture, operations.decode(model, code, steps.draw, stop=steps.stop)])
    return save_result(place, shown, ["picture", *captions], steps, edits=captions)


def _rows(
    chosen: Sequence[Direction], strengths: Sequence[float], line: Sequence[float] | None
) -> tuple[list[list[Change]], list[str]]:
    """The changes of each picture to draw, and what they are called."""
    if line is not None:
        rows = [[Change(direction, strength) for direction in chosen] for strength in line]
        return rows, [f"{', '.join(d.name for d in chosen)} {strength:+g}" for strength in line]
    given = _spread(strengths, [d.typical for d in chosen])
    changes = [Change(direction, strength) for direction, strength in zip(chosen, given, strict=True)]
    operations.check_not_idle(changes)
    return [[], changes], ["as read", ", ".join(f"{d.name} {strength:+.2g}" for d, strength in changes)]


def _refused(attributes: Sequence[str], strengths: Sequence[float], line: str | None) -> list[float] | None:
    """The strip's strengths, once all that was said of strength is in range."""
    for strength in strengths:
        operations.check_strength(strength)
    if len(strengths) not in (0, 1, len(attributes)):
        raise UserError(
            f"{len(attributes)} attributes with {len(strengths)} strengths; expected one each, one for all, or none"
        )
    if line is None:
        return None
    if strengths:
        raise UserError("--strip takes the place of --strength; give one of them")
    found = _numbers(line)
    for strength in found:
        operations.check_strength(strength, "--strip")
    return found


def _numbers(line: str) -> list[float]:
    try:
        return [float(part) for part in line.split(",")]
    except ValueError:
        raise UserError(f'--strip is {line!r:.60}; expected numbers such as "-0.3,0,0.3"') from None


def _spread(strengths: Sequence[float], typical: Sequence[float]) -> list[float]:
    if not strengths:
        return [max(-operations.MOST, min(operations.MOST, strength)) for strength in typical]
    return list(strengths) * len(typical) if len(strengths) == 1 else list(strengths)


def mix(place: EditContext, content: Path, details: Path, steps: Steps) -> EditResult:
    """What one picture shows with the stochastic details of another."""
    steps.refuse()
    model = place.open(steps)
    both = torch.cat([read_image_for(model, path) for path in (content, details)])
    place.ready()
    code = operations.encode(model, both, steps.invert)
    new = operations.decode(model, operations.mix_codes(code.take([0]), code.take([1])), steps.draw, stop=steps.stop)
    return save_result(place, torch.cat([both, new]), ["content", "details", "mixed"], steps, mixed=True)


def neighbours(place: EditContext, image: Path, among: Path, count: int) -> list[tuple[str, float]]:
    """Names and cosines of the pictures most like one, among a folder's or those of an `encode`d file; best first."""
    if count < 1:
        raise UserError(f"--count is {count}; expected 1 or more")
    model = place.open()
    query = model.encode(read_image_for(model, image))[0].float().cpu()
    if among.is_dir():
        pictures = load_folder(folder_config(model, among))
        names, z = [record.name for record in pictures.records], encode_pictures(model, pictures)
    else:
        pictures, found = None, CodeFile.load(among, encoder_digest(model))
        names, z = list(found.names), found.z
    places, cosines = operations.nearest(model, query, z, count)
    if pictures is not None:
        captions = [f"{cosine:.3f}" for cosine in cosines]
        shown = torch.cat([read_image_for(model, image), pictures.pictures(places)])
        save_sheet(shown, ["picture", *captions], place.out, about=place.about(neighbours=count))
    return [(names[i], cosine) for i, cosine in zip(places, cosines, strict=True)]


def encode(place: EditContext, images: Path, steps: Steps, *, details: bool = True, batch: int = 32) -> int:
    """Codes of a folder into the file `place.out`; gives how many. Without details x_T is left out."""
    steps.refuse()
    check_counts(batch)
    if place.out.suffix != ".safetensors":
        raise UserError(f"--out is {place.out}; expected a file that ends in .safetensors")
    model = place.open()
    found = code_files.encode(
        model, load_folder(folder_config(model, images)), steps.invert if details else None, batch
    )
    found.save(place.out)
    return len(found.names)


def decode(place: EditContext, file: Path, steps: Steps, seed: int = 0, batch: int = 32) -> EditResult:
    """Pictures of an encoded file; where it holds no x_T that is random, from seeds that count up from `seed`."""
    steps.refuse()
    check_counts(batch, seed)
    model = place.open()
    steps.fit_drawing(model)
    found = CodeFile.load(file, encoder_digest(model))
    x_T = model.noise(range(seed, seed + len(found.z))) if found.x_T is None else found.x_T
    place.ready()
    pictures = operations.decode(model, Code(found.z, x_T), steps.draw, batch, stop=steps.stop)
    captions = [Path(name).stem for name in found.names]
    return save_result(place, pictures, captions, steps, columns=8, decoded=len(pictures))
