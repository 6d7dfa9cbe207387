"""The pictures that `edit.py report` measures a semantic model on, and the attributes of each picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.batches import spread
from ldm_kit.data.factors import check_factor, known_factors
from ldm_kit.data.folder import load_all
from ldm_kit.data.images import PictureSet, Split, subset
from ldm_kit.data.sources import DataConfig
from ldm_kit.editing import labels
from ldm_kit.editing.built_in import BuiltIn, load_built_in
from ldm_kit.editing.image_io import folder_config
from ldm_kit.editing.labels import Column
from ldm_kit.editing.options import BuiltInName
from ldm_kit.editing.report_options import ReportOptions
from ldm_kit.models.protocol import Semantic


@dataclass(frozen=True, eq=False)
class ReportData:
    """Pictures whose codes are measured, their F attributes, and the data set whose held-out pictures are edited."""

    pictures: PictureSet  # N pictures
    columns: Sequence[Column]  # F attributes, each with a value of every picture
    names: Sequence[str]  # N names; pictures of equal names are held out together when directions are tested
    built_in: BuiltIn | None  # built-in set of `pictures`; None: a folder, for which exact results of edits are unknown

    @property
    def factor_numbers(self) -> Tensor:
        """The value of each attribute in each picture, int64 [N, F], as an index into the attribute's sorted values.

        The index is -1 where the value is not known.
        """
        return torch.stack([_numbers(column) for column in self.columns], dim=1)

    @property
    def attributes(self) -> Tensor:
        """Binary attributes int64 [N, A]: 1 if the picture has a value of an attribute, 0 if not, -1 if not known.

        There is a column for each value of each attribute, but only one for an attribute of two values.
        """
        marks = [
            column.positive(value)
            for column in self.columns
            for value in (column.kinds[:1] if len(column.kinds) == 2 else column.kinds)
        ]
        return torch.tensor([[-1 if mark is None else int(mark) for mark in one] for one in marks]).T


def _numbers(column: Column) -> Tensor:
    numbers = {value: i for i, value in enumerate(sorted({value for value in column.values if value is not None}))}
    return torch.tensor([-1 if value is None else numbers[value] for value in column.values])


def load_data(model: Semantic, options: ReportOptions) -> ReportData:
    """Load the pictures that a report is about, at a model's size, with those attributes that vary among them.

    Args:
        model: the semantic model that is measured.
        options: the data set or folder, and the number of pictures.

    Raises:
        UserError: the pictures have other channels than the model's, no attribute varies, a factor in `options` does
            not exist, or a package is missing.
    """
    data = _labelled(model, options) if options.dataset is None else _built_in(model, options.dataset, options)
    columns = [column for column in data.columns if len({*column.values} - {None}) > 1]
    if not columns:
        raise UserError(f"{options.source} has no label with two values; a report needs one that differs")
    return replace(data, columns=columns)


def data_of(config: DataConfig | None, split: Split, count: int) -> ReportData:
    """Return at most `count` training pictures of a data set with their attributes, evenly spaced over the set.

    Attributes are the factors of a set that knows them, such as faces; else the classes of its pictures, and further
    values that a table has of them, where at most 32 are different, and each is shared by two pictures on average.

    Args:
        config: config of the data set; None: the pictures came from a program.
        split: its pictures; without training pictures the held-out ones are taken.
        count: most pictures.

    Raises:
        UserError: no attribute of the pictures has two values.
    """
    whole = split.train if len(split.train) else split.heldout
    pictures = subset(whole, spread(len(whole), count)) if count < len(whole) else whole
    data = _with_factors(config, split, pictures) or _with_classes(pictures)
    columns = [column for column in data.columns if len({*column.values} - {None}) > 1]
    if not columns:
        raise UserError("no attribute of its pictures is known that has two values")
    return replace(data, columns=columns)


def _with_factors(config: DataConfig | None, split: Split, pictures: PictureSet) -> ReportData | None:
    try:
        columns = labels.from_factors(pictures)
    except UserError:
        return None
    names = [record.fields.get("role", record.name) for record in pictures.records]
    return ReportData(pictures, columns, names, None if config is None else BuiltIn(config, split, columns, names))


def _with_classes(pictures: PictureSet) -> ReportData:
    records = pictures.records
    classes = tuple(None if record.label is None else pictures.classes[record.label] for record in records)
    fields = sorted({name for record in records for name in record.fields})
    columns = [Column(name, tuple(record.fields.get(name) or None for record in records)) for name in fields]
    shared = [column for column in columns if _shared(column)]
    return ReportData(pictures, [Column("class", classes), *shared], [record.name for record in records], None)


def _shared(column: Column) -> bool:
    """Return whether pictures share the values of a column, in contrast to names and captions."""
    values = [value for value in column.values if value is not None]
    return 2 * len({*values}) <= min(len(values), 2 * labels.MAX_VALUES)


def _built_in(model: Semantic, name: BuiltInName, options: ReportOptions) -> ReportData:
    data = load_built_in(model, name, options.count)
    for factor in options.factor:
        check_factor(known_factors(data.split.heldout).factors, factor)
    return ReportData(data.split.train, labels.from_factors(data.split.train), data.names, data)


def _labelled(model: Semantic, options: ReportOptions) -> ReportData:
    assert options.images is not None
    assert options.labels is not None
    pictures = load_all(folder_config(model, options.images))
    names = [record.name for record in pictures.records]
    return ReportData(pictures, labels.from_file(options.labels, names, columns=options.column), names, None)
