"""The faces of the benchmark of conditions: two sets by hair colour, with short captions and a column of their own.

Which faces are held out is what the built-in faces hold out, so that no model is trained on a face that it is measured
on, whichever set it starts from.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from benchmarks.claims.judge import pixels_of
from ldm_kit.data.faces.dataset import FacesConfig, load
from ldm_kit.data.faces.values import FACTORS
from ldm_kit.data.images import InMemory, PictureSet, Record, Split, digest
from ldm_kit.data.records import Records

Group = Literal["old", "new"]
FACES = FacesConfig(source="faces", resolution=32)
COLOURS: Mapping[Group, tuple[str, ...]] = {  # name of a set -> the hair colours of its faces
    "old": ("black", "dark brown", "light brown"),
    "new": ("ginger", "blond"),
}
HEAD, TORSO = ("hair", "hair colour", "skin"), ("clothes colour",)  # factors of the column `head`, and of the class
NAMED = (*HEAD, "beard", *TORSO, "clothes")  # factors that a caption names
_STYLES = {"bun": "{} hair in a bun", "undercut": "{} hair in an undercut"}


def head_text(values: Mapping[str, str]) -> str:
    """Return the text of the factors HEAD of a face, such as "spiky black hair, tan skin"."""
    hair = _STYLES.get(values["hair"], f"{values['hair']} {{}} hair").format(values["hair colour"])
    return f"{hair}, {values['skin']} skin"


def short_caption(values: Mapping[str, str]) -> str:
    """Return a caption that names the factors NAMED of a face, {factor: value}, and no other."""
    return f"{head_text(values)}, {values['beard']}, {values['clothes colour']} {values['clothes']}"


@cache
def faces(group: Group) -> Split:
    """Return the training and held-out faces with the hair colours of COLOURS[group].

    A record has the short caption as text, the clothes' colour as class, and as fields the values of all factors and
    the column `head`.
    """
    split = load(FACES)
    return Split(_with_colours(split.train, COLOURS[group]), _with_colours(split.heldout, COLOURS[group]), None)


@cache
def small_faces(group: Group, factor: int) -> Split:
    """Return the faces of `faces(group)` with the mean of each `factor` x `factor` pixels as one, rounded."""
    split = faces(group)
    return Split(_reduced(split.train, factor), _reduced(split.heldout, factor), None)


def reduced(pictures: Tensor, factor: int) -> Tensor:
    """Return the mean of each `factor` x `factor` pixels of pictures, uint8 [N, C, R, R], rounded to a whole number."""
    return avg_pool2d(pictures.float(), factor).round().to(torch.uint8)


def _reduced(pictures: PictureSet, factor: int) -> InMemory:
    fingerprint = digest([pictures.fingerprint, f"reduced by {factor}"])
    return InMemory(pictures.records, pictures.classes, reduced(pixels_of(pictures), factor), fingerprint)


def _with_colours(pictures: PictureSet, colours: Sequence[str]) -> InMemory:
    rows = [i for i, record in enumerate(pictures.records) if record.fields["hair colour"] in colours]
    records = Records.of(_described(pictures.records[i]) for i in rows)
    fingerprint = digest([pictures.fingerprint, *colours, *(record.text for record in records)])
    return InMemory(records, FACTORS["clothes colour"], pixels_of(pictures)[rows], fingerprint)


def _described(record: Record) -> Record:
    values = record.fields
    label = FACTORS["clothes colour"].index(values["clothes colour"])
    return Record(record.name, short_caption(values), label, {**values, "head": head_text(values)})
