"""Registry of conditioners of one kind each, and of picture conditions.

A new conditioner needs one file and one line in `BUILT_IN`, a new picture condition one file and one line in
`PICTURES`. Another package registers its subclasses of `Conditioner` as values of the entry-point group
`ldm_kit.conditioners`.
"""

import warnings
from importlib.metadata import entry_points
from typing import Any

from conditioning.base import Conditioner
from conditioning.derived import Column, Grey, SuperResolution
from conditioning.image import ImageConditioner
from conditioning.inpainting import Inpainting
from conditioning.labels import ClassConditioner
from conditioning.none import NoCondition
from conditioning.pictures import PictureCondition
from conditioning.pretrained import PretrainedConditioner
from conditioning.text import TextConditioner

COMBINED = "combined"  # kind of several conditions together
ENTRY_POINTS = "ldm_kit.conditioners"
BUILT_IN: tuple[type[Conditioner], ...] = (
    NoCondition,
    ClassConditioner,
    TextConditioner,
    PretrainedConditioner,
    ImageConditioner,
)
PICTURES: tuple[type[PictureCondition], ...] = (Inpainting, SuperResolution, Grey, Column)


def kind_of(conditioner: type[Conditioner]) -> str:
    """Return the name by which a config selects a conditioner: the default of `kind` in its config class."""
    return conditioner.Config.model_fields["kind"].default


def _installed() -> list[type[Conditioner]]:
    """Return the conditioners that installed packages register; skip those that cannot be used, with a warning."""
    conditioners: list[type[Conditioner]] = []
    kinds = {COMBINED, *map(kind_of, BUILT_IN), *(picture.model_fields["kind"].default for picture in PICTURES)}
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            conditioner: Any = entry.load()
            kind = kind_of(conditioner)
        except Exception as error:  # of any class: the package is not ours
            warnings.warn(f"the conditioner {entry.name} ({entry.value}) cannot be used: {error}", stacklevel=2)
            continue
        if kind in kinds:
            warnings.warn(f"the conditioner {entry.name} ({entry.value}) has the taken kind {kind!r}", stacklevel=2)
            continue
        kinds.add(kind)
        conditioners.append(conditioner)
    return conditioners


CONDITIONERS: tuple[type[Conditioner], ...] = (*BUILT_IN, *_installed())
"""All conditioners of one kind each: the built-in ones, then those of installed packages."""
