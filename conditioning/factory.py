"""Config -> conditioner, and conditioner <-> component folders of a saved model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from conditioning import labels, pretrained, text
from conditioning.base import Conditioner, ConditioningError
from conditioning.labels import ClassConditioner, ClassConfig
from conditioning.none import NoCondition, NoConfig
from conditioning.pretrained import PretrainedConditioner, PretrainedTextConfig
from conditioning.text import TextConditioner, TextConfig

ConditioningConfig = Annotated[NoConfig | ClassConfig | TextConfig | PretrainedTextConfig, Field(discriminator="kind")]


def build(
    config: ConditioningConfig,
    *,
    captions: Sequence[str] = (),
    classes: Sequence[str] = (),
    time_width: int | None = None,
) -> Conditioner:
    """A fresh conditioner. captions: what a text tokenizer is trained on; classes: names, in the order of labels;
    time_width: channels of the denoiser's time embedding, to which a vector is added.

    Raises ConditioningError if what the kind needs is missing, or a pretrained encoder cannot be had.
    """
    match config:
        case NoConfig():
            return NoCondition()
        case ClassConfig():
            return ClassConditioner.build(config, classes, time_width)
        case TextConfig():
            return TextConditioner.build(config, captions)
        case PretrainedTextConfig():
            return PretrainedConditioner(config)


def save(conditioner: Conditioner, folder: Path | str) -> dict[str, tuple[str, str]]:
    """Write the component folders into `folder`; returns their entries for model_index.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return conditioner.save(folder)


def load(folder: Path | str) -> Conditioner:
    """The conditioner whose components lie in `folder`: detected by name, `NoCondition` when there is none.

    Raises ConditioningError if there are several, or a referenced encoder is missing or has other weights.
    """
    folder = Path(folder)
    loaders = {
        text.ENCODER: TextConditioner.load,
        labels.FOLDER: ClassConditioner.load,
        pretrained.REFERENCE: PretrainedConditioner.load,
    }
    found = [name for name in loaders if (folder / name).exists()]
    if len(found) > 1:
        raise ConditioningError(f"{folder} holds several conditioners ({', '.join(found)}), expected at most one")
    return loaders[found[0]](folder) if found else NoCondition()
