"""`edit.py learn`: directions from a table of labels, from a built-in data set, or from folders of examples."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ldm_kit.data.folder import load_all
from ldm_kit.data.images import PictureSet
from ldm_kit.editing import labels
from ldm_kit.editing.built_in import load_built_in
from ldm_kit.editing.context import ModelContext
from ldm_kit.editing.fit_directions import FitOptions, learn, learn_few
from ldm_kit.editing.image_io import folder_config
from ldm_kit.editing.labels import Column
from ldm_kit.editing.options import TrainingExamples
from ldm_kit.models.directions import FILE, Directions
from ldm_kit.models.protocol import Semantic, encode_pictures, encoder_digest, normalise
from ldm_kit.paths import check_writable


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


def _labelled_pictures(
    model: Semantic, examples: TrainingExamples
) -> tuple[PictureSet, Sequence[Column], Sequence[str]]:
    """Load the pictures to learn from; return them, their attributes, and a group name for each picture.

    All pictures of a group are held out from the fit, or none is.
    """
    name = "openmoji" if examples.openmoji else examples.dataset
    if name is None:
        return _labelled(model, examples)
    data = load_built_in(model, name)
    return data.split.train, data.columns, data.names


def _labelled(model: Semantic, examples: TrainingExamples) -> tuple[PictureSet, list[Column], list[str]]:
    """Load a folder's pictures at `model`'s size; return them, their attributes, and a group name for each picture.

    The attributes come from the table `examples.labels`. The group name is the picture's value in the column
    `examples.pair`; without such a column or value, the picture's name. See `_labelled_pictures`.
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
