"""Build a conditioner from a config, save it with a model, load it from a saved model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import BeforeValidator, Field

from conditioning.base import Components, Conditioner, ConditionerConfig, ConditioningError
from conditioning.combined import FILE as COMBINED_FILE
from conditioning.combined import CombinedConditioner
from conditioning.combined_config import CombinedConfig
from conditioning.image import OpenEncoder
from conditioning.none import NoCondition
from conditioning.registry import BUILT_IN as BUILT_IN
from conditioning.registry import CONDITIONERS, PICTURES
from conditioning.registry import kind_of as kind_of


def _listed(section: Any) -> Any:
    """Return the raw `condition:` section, where a list of conditions becomes a section of kind combined."""
    return (
        {"kind": CombinedConfig.model_fields["kind"].default, "conditions": section} if _is_list(section) else section
    )


def _is_list(section: Any) -> bool:
    return isinstance(section, Sequence) and not isinstance(section, str)


if TYPE_CHECKING:
    ConditioningConfig = ConditionerConfig
else:
    ConditioningConfig = Annotated[
        Union[(*(conditioner.Config for conditioner in CONDITIONERS), *PICTURES, CombinedConfig)],
        Field(discriminator="kind"),
        BeforeValidator(_listed),
    ]


def build(
    config: ConditionerConfig,
    *,
    captions: Sequence[str] = (),
    classes: Sequence[str] = (),
    time_width: int | None = None,
    open_encoder: OpenEncoder | None = None,
) -> Conditioner:
    """Build the new conditioner that a config describes.

    Args:
        config: the `condition:` section of a run's config.
        captions: training captions, on which a text tokenizer is trained.
        classes: class names, in the order of labels.
        time_width: channels of the denoiser's time embedding, to which a vector is added.
        open_encoder: opens an image encoder by its name; None: folders of saved encoders alone can be opened.

    Raises:
        ConditioningError: an argument that the conditioner needs is missing, or a pretrained encoder cannot be loaded.
    """
    opener = {"open_encoder": open_encoder} if config.takes_pictures else {}
    return of_config(config).build(config, captions=captions, classes=classes, time_width=time_width, **opener)


def components() -> Components:
    """Return the component folders of all conditioners: by the folder's name, (library, classes that may be loaded)."""
    return CombinedConditioner.components  # of one conditioner of each kind, and of several


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
    if (folder / COMBINED_FILE).exists():
        return CombinedConditioner
    if len(present) > 1:
        raise ConditioningError(f"{folder} holds several conditioners ({', '.join(present)}), expected at most one")
    return next(iter(present.values()), NoCondition)


def of_config(config: ConditionerConfig) -> type[Conditioner]:
    """Return the class of the conditioner that a config describes."""
    return next(kind for kind in (*CONDITIONERS, CombinedConditioner) if kind.Config is type(config))
