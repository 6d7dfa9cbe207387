"""Registry of conditioners: build a conditioner from a config, save it with a model, load it from a saved model.

A new conditioner needs one file and one line in `BUILT_IN`. Another package registers its subclasses of `Conditioner`
as values of the entry-point group `ldm_kit.conditioners`.
"""

import warnings
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field

from conditioning.base import Components, Conditioner, ConditionerConfig, ConditioningError
from conditioning.labels import ClassConditioner
from conditioning.none import NoCondition
from conditioning.pretrained import PretrainedConditioner
from conditioning.text import TextConditioner

ENTRY_POINTS = "ldm_kit.conditioners"
BUILT_IN: tuple[type[Conditioner], ...] = (NoCondition, ClassConditioner, TextConditioner, PretrainedConditioner)


def kind_of(conditioner: type[Conditioner]) -> str:
    """Return the name by which a config selects a conditioner: the default of `kind` in its config class."""
    return conditioner.Config.model_fields["kind"].default


def _installed() -> list[type[Conditioner]]:
    """Return the conditioners that installed packages register; skip those that cannot be used, with a warning."""
    conditioners: list[type[Conditioner]] = []
    kinds = {kind_of(conditioner) for conditioner in BUILT_IN}
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
"""All conditioners: the built-in ones, then those of installed packages."""

if TYPE_CHECKING:
    ConditioningConfig = ConditionerConfig
else:
    ConditioningConfig = Annotated[
        Union[tuple(conditioner.Config for conditioner in CONDITIONERS)],  # noqa: UP007  (not known before run time)
        Field(discriminator="kind"),
    ]


def build(
    config: ConditionerConfig,
    *,
    captions: Sequence[str] = (),
    classes: Sequence[str] = (),
    time_width: int | None = None,
) -> Conditioner:
    """Build the new conditioner that a config describes.

    Args:
        config: the `condition:` section of a run's config.
        captions: training captions, on which a text tokenizer is trained.
        classes: class names, in the order of labels.
        time_width: channels of the denoiser's time embedding, to which a vector is added.

    Raises:
        ConditioningError: an argument that the conditioner needs is missing, or a pretrained encoder cannot be loaded.
    """
    return of_config(config).build(config, captions=captions, classes=classes, time_width=time_width)


def components() -> Components:
    """Return the component folders of all conditioners: by the folder's name, (library, classes that may be loaded)."""
    return {name: entry for conditioner in CONDITIONERS for name, entry in conditioner.components.items()}


def save(conditioner: Conditioner, folder: Path | str) -> dict[str, tuple[str, str]]:
    """Write a conditioner's component folders into `folder`.

    Returns:
        (library, class) by the component folder's name, for diffusers' model_index.json.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return conditioner.save(folder)


def load(folder: Path | str, *, whole: bool = False) -> Conditioner:
    """Load the conditioner that `save` wrote into `folder`; `NoCondition` if there is none.

    Args:
        folder: folder of a saved model.
        whole: whether tensors of which the conditioner has no use are an error too.

    Raises:
        ConditioningError: there are several conditioners, weights are missing, or the pretrained encoder that the
            folder refers to is missing or has changed.
    """
    kind = kind_in(folder)
    return kind.load_whole(Path(folder)) if whole else kind.load(Path(folder))


def kind_in(folder: Path | str) -> type[Conditioner]:
    """Return the class of the conditioner that `save` wrote into `folder`; `NoCondition` if there is none.

    Raises:
        ConditioningError: there are several conditioners.
    """
    folder = Path(folder)
    present = {
        conditioner.marker: conditioner
        for conditioner in CONDITIONERS
        if conditioner.marker is not None and (folder / conditioner.marker).exists()
    }
    if len(present) > 1:
        raise ConditioningError(f"{folder} holds several conditioners ({', '.join(present)}), expected at most one")
    return next(iter(present.values()), NoCondition)


def of_config(config: ConditionerConfig) -> type[Conditioner]:
    """Return the class of the conditioner that a config describes."""
    return next(kind for kind in CONDITIONERS if kind.Config is type(config))
