"""`edit.py learn`: directions from a table of labels, from a built-in data set, or from folders of examples."""

from pathlib import Path

from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data import sources
from ldm_kit.data.faces.dataset import FacesConfig
from ldm_kit.data.folder import load_all
from ldm_kit.data.images import PictureSet
from ldm_kit.data.openmoji import dataset as openmoji
from ldm_kit.data.openmoji.dataset import OpenMojiConfig
from ldm_kit.data.shapes.dataset import ShapesConfig
from ldm_kit.editing import labels
from ldm_kit.editing.context import ModelContext
from ldm_kit.editing.fit_directions import FitOptions, learn, learn_few
from ldm_kit.editing.image_io import folder_config
from ldm_kit.editing.labels import Column
from ldm_kit.editing.options import TrainingExamples
from ldm_kit.models.directions import FILE, Directions
from ldm_kit.models.protocol import Semantic, encode_pictures, encoder_digest, normalise
from ldm_kit.paths import check_writable

_BUILT_IN: dict[str, type[FacesConfig | ShapesConfig]] = {"faces": FacesConfig, "shapes": ShapesConfig}


def learn_attributes(context: ModelContext, examples: TrainingExamples) -> Directions:
    """Learn attribute directions, add them to the directions saved with the model, and return the new ones.

    Args:
        context: the model.
        examples: the pictures to learn from: a folder with a table of labels, a built-in data set, or a folder of
            examples.

    Raises:
        UserError: the labels do not match the pictures, there are too few pictures, the model is not semantic, or the
            model's folder cannot be written to.
    """
    check_writable(context.directions)
    model = context.load_semantic_model()
    key = encoder_digest(model)
    fit = _from_labels if examples.positive is None else _from_examples
    new = fit(model, examples, key)
    folder = context.directions
    old = Directions.load(folder, key) if (folder / f"{FILE}.json").exists() else None
    (new if old is None else old.merge(new)).save(folder)
    return new


def _from_labels(model: Semantic, examples: TrainingExamples, key: str) -> Directions:
    pictures, columns, groups = _labelled_pictures(model, examples)
    z = normalise(model, encode_pictures(model, pictures))
    return learn(z, columns, groups, key, FitOptions(estimator=examples.estimator))


def _labelled_pictures(model: Semantic, examples: TrainingExamples) -> tuple[PictureSet, list[Column], list[str]]:
    if examples.dataset is not None:
        return _rendered(model, _BUILT_IN[examples.dataset])
    return _openmoji(model) if examples.openmoji else _labelled(model, examples)


def _rendered(model: Semantic, kind: type[FacesConfig | ShapesConfig]) -> tuple[PictureSet, list[Column], list[str]]:
    """Load the training part of faces or shapes; return its pictures, their factors, and the pictures' names.

    Raises:
        UserError: the model's pictures are not in colour, or the package that draws the data set is not installed.
    """
    config = kind(resolution=model.resolution)
    if model.channels != config.channels:
        raise UserError(f"{config.source} are in colour, but this model's pictures have {model.channels} channels")
    pictures = sources.load(config).train
    return pictures, labels.from_factors(pictures), [record.name for record in pictures.records]


def _openmoji(model: Semantic) -> tuple[PictureSet, list[Column], list[str]]:
    """Load OpenMoji's training set at `model`'s size; return its pictures, their attributes, and each one's group name.

    The group name is the caption without gender and skin tone, such as "astronaut". All drawings of a group are held
    out, or none.
    """
    if model.channels != 3:
        raise UserError(f"OpenMoji is in colour, but this model's pictures have {model.channels} channels")
    pictures = openmoji.load(OpenMojiConfig(resolution=model.resolution)).train
    return pictures, labels.from_openmoji(pictures), [record.fields["role"] for record in pictures.records]


def _labelled(model: Semantic, examples: TrainingExamples) -> tuple[PictureSet, list[Column], list[str]]:
    """Load a folder's pictures at `model`'s size; return them, their attributes, and a group name for each picture.

    The attributes come from the table `examples.labels`. The group name is the picture's value in the column
    `examples.pair`; without such a column or value, the picture's name. All pictures of a group are held out, or none.
    """
    assert examples.images is not None
    assert examples.labels is not None
    pictures = load_all(folder_config(model, examples.images))
    names = [record.name for record in pictures.records]
    columns = labels.from_file(examples.labels, names, columns=examples.column, pair=examples.pair)
    pairs = next((column.pairs for column in columns if column.pairs is not None), None)
    groups = names if pairs is None else [pair or name for pair, name in zip(pairs, names, strict=True)]
    return pictures, columns, groups


def _from_examples(model: Semantic, examples: TrainingExamples, key: str) -> Directions:
    assert examples.positive is not None

    def encode(folder: Path) -> Tensor:
        return normalise(model, encode_pictures(model, load_all(folder_config(model, folder))))

    others = examples.negative or examples.images
    positives = encode(examples.positive)
    return learn_few(positives, None if others is None else encode(others), examples.name or "", key)


def describe_directions(directions: Directions) -> list[str]:
    """Return a line of text on each direction: name, held-out scores, estimator, numbers of pictures, strength."""
    lines: list[str] = []
    for record in directions.records:
        scores = "not measured"
        if record.auroc is not None and record.average_precision is not None:
            scores = f"AUROC {record.auroc:.3f}, average precision {record.average_precision:.3f}"
        counts = f"{record.positives} with, {record.others} without"
        lines.append(f"{record.name}: {scores} ({record.estimator}, {counts}, typical strength {record.typical:.2f})")
    return lines
