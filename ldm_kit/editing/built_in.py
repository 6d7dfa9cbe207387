"""The built-in data sets whose attributes are known: their pictures at a model's size, and the attributes of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ldm_kit.config import UserError
from ldm_kit.data import sources
from ldm_kit.data.faces.dataset import FacesConfig
from ldm_kit.data.images import Split
from ldm_kit.data.openmoji.dataset import OpenMojiConfig
from ldm_kit.data.shapes.dataset import ShapesConfig
from ldm_kit.data.sources import DataConfig
from ldm_kit.editing import labels
from ldm_kit.editing.labels import Column
from ldm_kit.editing.options import BuiltInName
from ldm_kit.models.protocol import Semantic

_CONFIGS: dict[BuiltInName, Any] = {"faces": FacesConfig, "shapes": ShapesConfig, "openmoji": OpenMojiConfig}


@dataclass(frozen=True, eq=False)
class BuiltIn:
    """A built-in data set, and what is known of its training pictures.

    Attributes:
        config: the set's config.
        split: the set's pictures, split into training and held-out ones.
        columns: attributes of the training pictures.
        names: a name for each training picture: for OpenMoji the role, such as "astronaut"; else the picture's own
            name. When attribute directions are fitted, training pictures with equal names are held out together.
    """

    config: DataConfig
    split: Split
    columns: Sequence[Column]
    names: Sequence[str]


def load_built_in(model: Semantic, name: BuiltInName, count: int | None = None) -> BuiltIn:
    """Load a built-in data set at a model's size.

    Args:
        model: the model, whose resolution the pictures get.
        name: the set's name.
        count: number of pictures to render for faces and shapes, training and held-out ones together; None: the set's
            default. For OpenMoji it is ignored: all drawings are loaded.

    Raises:
        UserError: the model's pictures are not in colour, or a package that draws the set is not installed.
    """
    options = {} if count is None or name == "openmoji" else {"count": count}
    config = _CONFIGS[name](resolution=model.resolution, **options)
    if model.channels != config.channels:
        raise UserError(f"pictures of {name} are in colour, but this model's have {model.channels} channels")
    split = sources.load(config)
    columns = (labels.from_openmoji if name == "openmoji" else labels.from_factors)(split.train)
    return BuiltIn(config, split, columns, [record.fields.get("role", record.name) for record in split.train.records])
