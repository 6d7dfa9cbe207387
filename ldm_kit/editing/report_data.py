"""The pictures that `edit.py report` measures a model on, and what is known about each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data import sources
from ldm_kit.data.faces.dataset import FacesConfig
from ldm_kit.data.factors import FactorSet, check_factor, known_factors
from ldm_kit.data.folder import load_all
from ldm_kit.data.images import PictureSet
from ldm_kit.data.openmoji.dataset import OpenMojiConfig
from ldm_kit.data.shapes.dataset import ShapesConfig
from ldm_kit.data.sources import DataConfig
from ldm_kit.editing import labels
from ldm_kit.editing.image_io import folder_config
from ldm_kit.editing.labels import Column
from ldm_kit.editing.report_options import ReportOptions
from ldm_kit.models.protocol import Semantic


@dataclass(frozen=True, eq=False)
class ReportData:
    """Pictures to measure codes on, and, for a set that knows its factors, held-out pictures to edit."""

    pictures: PictureSet  # N pictures
    columns: Sequence[Column]  # attributes, each with a value of every picture
    names: Sequence[str]  # N names; pictures of one name are held out from a probe together
    config: DataConfig | None  # of a built-in set; None: a folder, whose edits have no known result
    heldout: FactorSet | None  # pictures to edit; None for a folder

    @property
    def factor_numbers(self) -> Tensor:
        """The number of each attribute's value among its values, int64 [N, F]; -1: not known."""
        return torch.stack([_numbers(column) for column in self.columns], dim=1)

    @property
    def attributes(self) -> Tensor:
        """Whether a picture has each value of each attribute, int64 [N, A]; -1: not known.

        An attribute of two values counts once.
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
    """Load the pictures that a report is about, at a model's size.

    Raises:
        UserError: pictures that are not as the model's, no label of two values, a factor that does not exist, or a
            missing package.
    """
    data = _built_in(model, options) if options.dataset is not None else _labelled(model, options)
    columns = [column for column in data.columns if len({*column.values} - {None}) > 1]
    if not columns:
        raise UserError(f"{options.source} has no label with two values; a report needs one that differs")
    return ReportData(data.pictures, columns, data.names, data.config, data.heldout)


def _built_in(model: Semantic, options: ReportOptions) -> ReportData:
    config = _config(model, options)
    if model.channels != config.channels:
        raise UserError(f"{config.source} are in colour, but this model's pictures have {model.channels} channels")
    split = sources.load(config)
    heldout = known_factors(split.heldout)
    for factor in options.factor:
        check_factor(heldout.factors, factor)
    records = split.train.records
    names = [record.fields.get("role", record.name) for record in records]  # OpenMoji: drawings of one role together
    return ReportData(split.train, labels.from_factors(split.train), names, config, heldout)


def _config(model: Semantic, options: ReportOptions) -> DataConfig:
    if options.dataset == "openmoji":
        return OpenMojiConfig(resolution=model.resolution)
    kind = FacesConfig if options.dataset == "faces" else ShapesConfig
    return kind(resolution=model.resolution, count=options.count)


def _labelled(model: Semantic, options: ReportOptions) -> ReportData:
    assert options.images is not None
    assert options.labels is not None
    pictures = load_all(folder_config(model, options.images))
    names = [record.name for record in pictures.records]
    return ReportData(pictures, labels.from_file(options.labels, names, columns=options.column), names, None, None)
