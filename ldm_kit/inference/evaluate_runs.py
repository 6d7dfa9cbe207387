"""Evaluation of several trainings of one model: the value of each, and their mean with an interval over trainings."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_kit.config import UserError
from ldm_kit.data.images import Split
from ldm_kit.inference.evaluate_autoencoders import Reconstructed
from ldm_kit.inference.evaluate_job import Job, prepare
from ldm_kit.inference.evaluate_reference import same_data
from ldm_kit.inference.evaluate_report import Evaluation, format_number, write_json
from ldm_kit.inference.evaluate_sampled import Sampled, Subject
from ldm_kit.inference.evaluate_semantic import Semantics
from ldm_kit.inference.requests import EvaluationRequest, GuideModels
from ldm_kit.metrics.intervals import t_interval
from ldm_kit.models.measures import Better, Figure
from ldm_kit.models.options import SamplingOptions


@dataclass(frozen=True)
class FigureOverRuns:
    """A measure's values of several trainings."""

    name: str  # name of the measure, as --measures takes it
    title: str
    figures: tuple[Figure, ...]  # of each training, with intervals over its pictures

    @property
    def values(self) -> list[float]:
        """The value of each training; trainings without one are left out."""
        return [figure.value for figure in self.figures if figure.value is not None]

    @property
    def value(self) -> float | None:
        """The mean over trainings; None if one has no value."""
        return statistics.fmean(self.values) if len(self.values) == len(self.figures) else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval, by Student's t, of the mean over trainings; None if a value is missing, or all are equal.

        Equal values, such as a precision of 0, tell nothing of how much trainings differ.
        """
        return None if self.value is None or len({*self.values}) == 1 else t_interval(self.values)

    @property
    def better(self) -> Better:
        """Whether lower or higher values are better."""
        return self.figures[0].better

    @property
    def json(self) -> dict[str, Any]:
        """Values, mean, deviation and interval as JSON values."""
        return {
            "title": self.title,
            "better": self.better,
            "values": [figure.json["value"] for figure in self.figures],
            "mean": self.value,
            "deviation": None if self.value is None else statistics.stdev(self.values),
            "interval": None if self.interval is None else [*self.interval],
        }


@dataclass(frozen=True)
class EvaluationOfRuns:
    """Measured values of several trainings; `str(result)` is a Markdown table of means, intervals and single values.

    Attributes:
        evaluations: the evaluation of each training, in the order in which they were given.
    """

    evaluations: tuple[Evaluation, ...]

    @property
    def figures(self) -> tuple[FigureOverRuns, ...]:
        """The measures, in the table's order."""
        columns = zip(*(evaluation.figures for evaluation in self.evaluations), strict=True)
        return tuple(FigureOverRuns(column[0].name, column[0].title, column) for column in columns)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what limits the values, each once."""
        return tuple(dict.fromkeys(text for evaluation in self.evaluations for text in evaluation.warnings))

    def __getitem__(self, name: str) -> FigureOverRuns:
        """Return the values of a measure, by the name that --measures takes; KeyError: it was not measured."""
        return {figure.name: figure for figure in self.figures}[name]

    def __iter__(self) -> Iterator[FigureOverRuns]:
        return iter(self.figures)

    @property
    def json(self) -> dict[str, Any]:
        """The whole result as JSON values: means and intervals over trainings, and each training's evaluation."""
        runs = [evaluation.json for evaluation in self.evaluations]
        measures = {figure.name: figure.json for figure in self.figures}
        return {"Software": runs[0]["Software"], "over_runs": measures, "runs": runs, "warnings": [*self.warnings]}

    def write(self, path: Path) -> Path:
        """Write the result to a new JSON file, and return its path; UserError: it exists, or cannot be written."""
        return write_json(path, self.json)

    def __str__(self) -> str:
        first, count = self.evaluations[0], len(self.evaluations)
        runs = [f"run {i}: {evaluation.judged_line}" for i, evaluation in enumerate(self.evaluations, 1)]
        columns = [f"run {i}" for i in range(1, count + 1)]
        names = ["name", "measure", "mean", "95 % interval", *columns, "better", "pictures"]
        head = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        spread = (
            f"95 % intervals by Student's t over these {count} runs; those over each run's pictures are in the JSON"
        )
        lines = [*runs, *first.setting_lines, spread, "", *head, *map(_row, self.figures)]
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])


def _row(figure: FigureOverRuns) -> str:
    interval = "-" if figure.interval is None else "[" + ", ".join(map(format_number, figure.interval)) + "]"
    values = [format_number(each.value) for each in figure.figures]
    better = "-" if figure.better == "neither" else figure.better
    cells = [figure.name, figure.title, format_number(figure.value), interval, *values, better]
    return f"| {' | '.join([*cells, figure.figures[0].counts])} |"


def evaluate_runs(
    paths: Sequence[Path],
    request: EvaluationRequest,
    options: SamplingOptions | None,
    guides: GuideModels | None,
    data: Split | None,
) -> EvaluationOfRuns:
    """Evaluate several trainings against one reference, with the same seeds and captions; see `evaluate`.

    All are opened and compared before the first is sampled, one at a time, so that few models are in memory.

    Raises:
        UserError: something is missing or does not fit, or the trainings are not comparable.
    """
    first = prepare(paths[0], request, options, guides, data=data)
    models = {_model(first): paths[0]}
    for path in paths[1:]:
        job = prepare(path, request, options, guides, data=data, like=first, check=_check_comparable)
        _check_measured_alike(job, first)
        if (model := _model(job)) in models and model is not None:
            raise UserError(f"{path} holds the same model as {models[model]}; expected models of different trainings")
        models[model] = path
    results = [first.run()]
    for path in paths[1:]:
        results.append(prepare(path, request, options, guides, data=data, like=first).run())
    return EvaluationOfRuns(tuple(results))


def _model(job: Job) -> Any:
    description = job.subject.description
    return description.get("model") or description.get("sha256")


def _check_comparable(path: Path, subject: Subject, request: EvaluationRequest, first: Job) -> None:
    """Check that what is at `path` can be compared with the first run; UserError: it cannot."""
    given, expected = _traits(subject), _traits(first.subject)
    for name, value in expected.items():
        if given.get(name) != value:
            raise UserError(
                f"{path} and {first.path} are not comparable: {name} {given.get(name)} and {value}; expected runs that "
                "differ in their training alone"
            )
    from_run = request.reference is None and first.reference.data is not None
    if from_run and not same_data(path, first.path):
        raise UserError(f"{path} and {first.path} were trained on different data; give --reference")


def _traits(subject: Subject) -> Mapping[str, Any]:
    """Return what must be equal for a mean over runs to mean anything, by its name in errors."""
    traits: dict[str, Any] = {"they are of kind": subject.kind, "channels and side are": subject.shape}
    if isinstance(subject, Sampled):
        traits |= {"prompts are": subject.prompts, **subject.settings}
    if isinstance(subject, Reconstructed):
        traits |= {"the class is": type(subject.vae).__name__, "latents have": subject.latent_shape(subject.shape[1])}
    if isinstance(subject, Semantics):
        model = subject.semantic
        traits |= {"codes have": model.z_width, "latents have": model.latent_shape, "prompts are": subject.prompts}
        traits |= {"the encoder is": type(model.encoder).__name__, "the decoder is": type(model.decoder).__name__}
        traits |= {"it has a prior:": model.prior is not None, **subject.reconstruction}
    return traits


def _check_measured_alike(job: Job, first: Job) -> None:
    """Check that a run is measured as the first one is; UserError: it has other measures or another count."""
    if job.names != first.names:
        (name, *_) = sorted({*job.names} ^ {*first.names})
        raise UserError(f"{job.path} and {first.path} have not the same measures, such as {name}; give --measures")
    if len(job.rows) != len(first.rows):
        raise UserError(
            f"{job.path} and {first.path} have {len(job.rows)} and {len(first.rows)} pictures; give --count"
        )
