"""Learning directions from what the user has: a table of labels, OpenMoji's fields, or folders of examples."""

from dataclasses import dataclass, field
from pathlib import Path

from ldm_kit.config import UserError
from ldm_kit.data.folder import load_all
from ldm_kit.data.images import PictureSet
from ldm_kit.data.openmoji import dataset as openmoji
from ldm_kit.data.openmoji.dataset import OpenMojiConfig
from ldm_kit.editing import labels
from ldm_kit.editing.context import EditContext, folder_config
from ldm_kit.editing.fit_directions import FitOptions, learn, learn_few
from ldm_kit.editing.labels import Column
from ldm_kit.models.directions import Directions
from ldm_kit.models.protocol import Semantic, encode_pictures, encoder_digest, normalise

FILE = "directions.json"


@dataclass(frozen=True)
class TrainingExamples:
    """What to learn from: a folder with a table of labels, OpenMoji, or a folder of examples with a name for them."""

    images: Path | None = None
    labels: Path | None = None
    openmoji: bool = False
    positive: Path | None = None
    negative: Path | None = None
    name: str | None = None
    columns: tuple[str, ...] = ()
    pair: str | None = None
    how: FitOptions = field(default_factory=FitOptions)

    def refuse(self) -> None:
        """Refuse a lesson that is none, or several at once; raises UserError."""
        given = [self.labels is not None, self.openmoji, self.positive is not None]
        if sum(given) != 1:
            raise UserError("expected one source: --labels FILE with --images DIR, --openmoji, or --positive DIR")
        if self.labels is not None and self.images is None:
            raise UserError("--labels needs --images DIR, the folder of the pictures that it labels")
        if self.positive is not None and not self.name:
            raise UserError("--positive needs --name, what its pictures have in common")
        if self.positive is None and (self.negative is not None or self.name):
            raise UserError("--negative and --name are for --positive DIR, a folder of examples")
        if self.labels is None and (self.columns or self.pair):
            raise UserError("--column and --pair are for --labels FILE")
        if self.images is not None and self.negative is not None:
            raise UserError("--negative and --images both say what --positive differs from; give one of them")


def learn_attributes(place: EditContext, lesson: TrainingExamples) -> Directions:
    """Learn directions, add them to the model's, save those, and give the new ones.

    Raises:
        UserError: no lesson, labels that do not match, too few pictures, or no semantic model.
    """
    lesson.refuse()
    model = place.open()
    key = encoder_digest(model)
    new = _from_examples(model, lesson, key) if lesson.positive is not None else _from_labels(model, lesson, key)
    folder = place.directions
    known = Directions.load(folder, key) if (folder / FILE).exists() else None
    (new if known is None else known.joined(new)).save(folder)
    return new


def _from_labels(model: Semantic, lesson: TrainingExamples, key: str) -> Directions:
    pictures, columns, groups = _openmoji(model) if lesson.openmoji else _labelled(model, lesson)
    return learn(normalise(model, encode_pictures(model, pictures)), columns, groups, key, lesson.how)


def _openmoji(model: Semantic) -> tuple[PictureSet, list[Column], list[str]]:
    """The training part; all drawings of a role are on one side of the measurement."""
    if model.channels != 3:
        raise UserError(f"OpenMoji is in colour, but this model's pictures have {model.channels} channels")
    pictures = openmoji.load(OpenMojiConfig(resolution=model.resolution)).train
    return pictures, labels.from_openmoji(pictures), [record.fields["role"] for record in pictures.records]


def _labelled(model: Semantic, lesson: TrainingExamples) -> tuple[PictureSet, list[Column], list[str]]:
    assert lesson.images is not None
    assert lesson.labels is not None
    pictures = load_all(folder_config(model, lesson.images))
    names = [record.name for record in pictures.records]
    columns = labels.from_file(lesson.labels, names, columns=lesson.columns, pair=lesson.pair)
    pairs = next((column.pairs for column in columns if column.pairs is not None), None)
    groups = names if pairs is None else [pair or name for pair, name in zip(pairs, names, strict=True)]
    return pictures, columns, groups


def _from_examples(model: Semantic, lesson: TrainingExamples, key: str) -> Directions:
    assert lesson.positive is not None
    positives = normalise(model, encode_pictures(model, load_all(folder_config(model, lesson.positive))))
    other = lesson.negative or lesson.images
    others = None if other is None else normalise(model, encode_pictures(model, load_all(folder_config(model, other))))
    return learn_few(positives, others, lesson.name or "", key)


def describe_directions(directions: Directions) -> list[str]:
    """A line for each direction: name, estimator, pictures, typical strength, and how well it reads new pictures."""
    lines: list[str] = []
    for about in directions.abouts:
        read = "not measured"
        if about.auroc is not None and about.average_precision is not None:
            read = f"AUROC {about.auroc:.3f}, average precision {about.average_precision:.3f}"
        count = f"{about.positives} with, {about.others} without"
        lines.append(f"{about.name}: {read} ({about.estimator}, {count}, typical strength {about.typical:.2f})")
    return lines
