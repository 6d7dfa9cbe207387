"""Measures of a semantic model's codes and edits, which `edit.py report` and `ldm-kit evaluate` both take."""

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.factors import known_factors, pixel_digests
from ldm_kit.data.peers import everyone, from_first
from ldm_kit.editing.built_in import BuiltIn
from ldm_kit.editing.edit_errors import EditJudge
from ldm_kit.editing.fit_directions import FitOptions, heldout_rows, learn
from ldm_kit.editing.options import RoundTripSteps
from ldm_kit.editing.report_data import ReportData
from ldm_kit.metrics.auroc import auroc_of_draws
from ldm_kit.metrics.dci import Regressor, dci
from ldm_kit.metrics.disentanglement import (
    Groups,
    factor_vae_score,
    mutual_information_gap,
    total_auroc_difference,
)
from ldm_kit.metrics.edit_errors import EditError, summarise
from ldm_kit.metrics.factor_reader import ReaderConfig
from ldm_kit.models.directions import Directions
from ldm_kit.models.factor_readers import factor_reader, reader_accuracy
from ldm_kit.models.protocol import Semantic, encode_pictures, normalise

Report = dict[str, Any]
SCORES = ("dci", "factor_vae_score", "mig", "tad")  # scores of disentanglement, as a report names them


@dataclass(frozen=True, eq=False)
class CodeMeasures:
    """Codes of pictures whose attributes are known, and the measures of them.

    Attributes:
        z: normalised codes [N, D].
        data: the N pictures and their attributes.
        groups: dimensions of z that count as one; None: each counts by itself.
        regressor: kind of tree ensemble of DCI.
        estimator: how attribute directions are learned.
        seed: seed of DCI's ensembles and of the votes of the FactorVAE score.
        directions: attribute directions learned from the codes, see `learn`; None: `probes` cannot be measured.
    """

    z: Tensor
    data: ReportData
    groups: Groups | None = None
    regressor: Regressor = "forest"
    estimator: Literal["classifier", "means"] = "classifier"
    seed: int = 0
    directions: Directions | None = None

    @classmethod
    def of(cls, model: Semantic, data: ReportData, **settings: Any) -> "CodeMeasures":
        """Encode the pictures of `data`; several processes encode a share each. `settings`: further attributes."""
        return cls(normalise(model, encode_pictures(model, data.pictures)), data, **settings)

    def learn(self) -> "CodeMeasures":
        """Return these measures with attribute directions; every process must call it, and the first one learns them.

        Raises:
            UserError: no attribute has two pictures with it and two without.
        """
        options = FitOptions(estimator=self.estimator)
        given = self.z, self.data.columns, self.data.names, "report", options
        return replace(self, directions=from_first(everyone(), lambda: learn(*given)))

    def scores(self, names: Collection[str] = SCORES) -> Report:
        """Return numbers of dimensions and groups, and scores of disentanglement by name: DCI, FactorVAE, MIG, TAD.

        `names` are those of the scores to compute, some of SCORES.
        """
        factors, dimensions = self.data.factor_numbers, self.z.shape[1]
        report: Report = {
            "dimensions": dimensions,
            "groups": dimensions if self.groups is None else len(self.groups),
        }
        if "dci" in names:
            report["dci"] = self._dci(factors)
        if "factor_vae_score" in names:
            report["factor_vae_score"] = factor_vae_score(self.z, factors, self.groups, seed=self.seed)
        if "mig" in names:
            report["mig"] = mutual_information_gap(self.z, factors, self.groups)
        if "tad" in names:
            report["tad"] = total_auroc_difference(self.z, self.data.attributes, self.groups)._asdict()
        return report

    def _dci(self, factors: Tensor) -> Report:
        scores = dci(self.z, factors, self.groups, regressor=self.regressor, seed=self.seed)
        names = [column.name for column in self.data.columns]
        return {
            "regressor": self.regressor,
            "disentanglement": scores.disentanglement,
            "completeness": scores.completeness,
            "informativeness": scores.informativeness,
            "accuracy": dict(zip(names, scores.accuracy.tolist(), strict=True)),
            "importance": dict(zip(names, scores.importance.T.tolist(), strict=True)),
        }

    def probes(self) -> dict[str, float | None]:
        """Return for each attribute the held-out AUROC of the directions of its values, averaged over the values.

        None: no AUROC was measured for any value.
        """
        assert self.directions is not None
        means: dict[str, float | None] = {}
        for column in self.data.columns:
            names = {column.name, *(f"{column.name}: {value}" for value in column.kinds)}
            scores = [one.auroc for one in self.directions.records if one.name in names and one.auroc is not None]
            means[column.name] = statistics.fmean(scores) if scores else None
        return means

    @property
    def probed(self) -> Tensor:
        """Which pictures are held out when directions are learned, to measure them, bool [N]."""
        return heldout_rows(self.data.names, FitOptions())

    def probe_draws(self, counts: Tensor) -> Tensor:
        """Return the mean over attributes of `probes` for each draw of held-out pictures with repetition.

        Args:
            counts: how often each of M held-out pictures (`probed`) is in each draw, [draws, M].

        Returns:
            float64 [draws]; NaN where no attribute can be measured.
        """
        assert self.directions is not None
        held, measured = self.probed, {one.name for one in self.directions.records if one.auroc is not None}
        attributes: list[Tensor] = []
        for column in self.data.columns:
            draws: list[Tensor] = []
            for value in column.kinds:
                name = column.name if column.binary else f"{column.name}: {value}"
                if name in measured:
                    marks = column.positive(value)
                    labelled = torch.tensor([mark is not None for mark in marks])[held]
                    positive = torch.tensor([mark is True for mark in marks])[held][labelled]
                    logits = self.directions[name].logit(self.z[held][labelled])
                    draws.append(auroc_of_draws(logits, positive, counts[:, labelled]))
            if draws:
                attributes.append(torch.stack(draws).nanmean(0))
        return torch.stack(attributes).nanmean(0) if attributes else torch.full((len(counts),), torch.nan).double()


@dataclass(frozen=True)
class EditOptions:
    """Which edits are made and measured.

    Attributes:
        steps: numbers of DDIM steps, of inversion and of decoding.
        count: number of edits.
        factors: factors to edit; empty: all.
        scale: strength of an edit in units of the typical one.
        reader: how the classifier of factors is trained, which judges the edits.
        seed: seed of the edits' values.
    """

    steps: RoundTripSteps
    count: int
    factors: Sequence[str] = ()
    scale: float = 1.0
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    seed: int = 0


@dataclass(frozen=True)
class MeasuredEdits:
    """The errors of edits by factor, and the accuracy of the classifier that judged them."""

    errors: Mapping[str, Sequence[EditError]]
    accuracy: Mapping[str, float | None]

    @property
    def all(self) -> list[EditError]:
        """The errors of all edits."""
        return [error for some in self.errors.values() for error in some]

    @property
    def report(self) -> Report:
        """Summary of the edits' errors as JSON values, over all factors and for each factor; the reader's accuracy."""
        factors = {factor: summarise(some) for factor, some in self.errors.items()}
        return {"reader": {**self.accuracy}, "all": summarise(self.all), "factors": factors}


def measure_edits(
    model: Semantic, directions: Directions, data: BuiltIn, options: EditOptions, device: str
) -> MeasuredEdits:
    """Edit held-out pictures, and compare each with the exact picture of the edit; processes make a share each.

    Edits whose exact picture is a training picture are left out.

    Args:
        model: the semantic model.
        directions: its attribute directions.
        data: the data set, which knows the factors of its pictures.
        options: which edits are made.
        device: device of the classifier of factors.

    Raises:
        UserError: a factor to edit does not exist.
    """
    heldout, seen = known_factors(data.split.heldout), pixel_digests(data.split.train)
    reader = factor_reader(data.config, data.split, options.reader, device)
    judge = EditJudge(model, directions, reader, options.steps, options.scale)
    errors = judge.measure(heldout, options.count, options.factors, options.seed, seen)
    return MeasuredEdits(errors, reader_accuracy(reader, heldout))


def groups_of(width: int, size: int) -> Groups | None:
    """Divide the dimensions of codes into groups of `size` successive ones; return each group's dimensions.

    None, for a size of 1, means that each dimension counts by itself.

    Raises:
        UserError: `size` does not divide `width`, the number of dimensions.
    """
    if width % size:
        raise UserError(f"--group_size {size} does not divide a code of {width} dimensions")
    return None if size == 1 else [range(i, i + size) for i in range(0, width, size)]
