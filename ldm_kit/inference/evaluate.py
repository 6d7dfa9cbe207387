"""Evaluate a model, an autoencoder or a folder of pictures against reference pictures: measures with intervals."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_kit import config as configs
from ldm_kit.config import UserError
from ldm_kit.data.images import Split
from ldm_kit.inference.evaluate_plan import check_names, plan
from ldm_kit.inference.evaluate_reference import Reference, open_reference, prompts_of
from ldm_kit.inference.evaluate_report import Evaluation
from ldm_kit.inference.evaluate_subjects import Reconstructed, Sampled, Subject, open_subject, run_of
from ldm_kit.inference.requests import EvaluationRequest, GuideModels
from ldm_kit.memory import BatchSize
from ldm_kit.models.factor_readers import factor_labels, factor_reader
from ldm_kit.models.feature_nets import FeatureNet, load_feature_net
from ldm_kit.models.folder import device_named
from ldm_kit.models.measures import (
    CLIP,
    INCEPTION,
    PROMPTS,
    Bootstrap,
    Figure,
    clip_figure,
    inception_figure,
    picture_figures,
    prompt_figures,
)
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.sampler_options import check_seeds
from ldm_kit.models.set_measures import set_figures
from ldm_kit.paths import check_writable, check_writable_file
from ldm_kit.viz.png import unused_path

_log = logging.getLogger("ldm_kit.inference")


def evaluate(
    path: Path | str,
    options: SamplingOptions | None = None,
    guides: GuideModels | None = None,
    *,
    data: Split | None = None,
    **request: Any,
) -> Evaluation:
    """Measure how good a model's pictures are, compared with reference pictures.

    Args:
        path: a saved diffusion model or autoencoder, a run or a checkpoint of one, or a folder of pictures.
        options: how a model is sampled; None, and values not given: as its run was judged.
        guides: folders of the models that guide sampling; None: no guides.
        data: the reference, if `reference` is not given; None: the data of the run.
        request: fields of `ldm_kit.inference.requests.EvaluationRequest`, such as `reference="faces"`, `split="train"`,
            `count=200`, `features="inception"`, `measures="fd,kid"`; `ldm-kit evaluate --help` explains each. Without
            `out` nothing is written.

    Returns:
        The values with their 95 % intervals: `result["fd"].value`; `print(result)` shows a table.

    Raises:
        UserError: something is missing, unknown or does not fit, before anything is sampled; or the result cannot be
            written, which is then logged.
    """
    checked = configs.check(EvaluationRequest, request, "evaluate")
    result = run_evaluation(Path(path), checked, options, guides, data=data)
    try:
        if checked.out is not None:
            result.write(checked.out)
    except UserError:
        _log.warning("%s", result)  # it took long to measure
        raise
    return result


def run_evaluation(
    path: Path,
    request: EvaluationRequest,
    options: SamplingOptions | None = None,
    guides: GuideModels | None = None,
    *,
    data: Split | None = None,
) -> Evaluation:
    """Evaluate what is at `path` as a request says; write nothing, but check that its file can be. See `evaluate`."""
    check_names(request.chosen)
    if request.out is not None:
        check_writable_file(request.out)
    subject = open_subject(path, request, options, guides)
    captions = isinstance(subject, Sampled) and subject.takes_prompts
    reference = open_reference(request, run_of(path), subject.shape, data, captions=captions)
    rows = subject.rows(reference, request.count)
    if isinstance(subject, Sampled):
        _check_seeds(request.seed, len(rows))
    impossible = {**_without_factors(reference), **subject.impossible}
    if not request.features.startswith("inception"):
        impossible[INCEPTION] = "it is defined for --features inception alone"
    if not request.features.startswith("open_clip:"):
        impossible[CLIP] = "it needs a network that reads captions; expected --features open_clip:ARCHITECTURE/WEIGHTS"
    names, warnings = plan(request.chosen, impossible, len(rows), len(reference.pictures))
    if request.chosen is None and isinstance(subject, Reconstructed) and subject.weights_missing:
        warnings.append(f"left out: {subject.missing}")
    device = device_named(request.device)
    job = _Job(
        subject, reference, rows, load_feature_net(request.features, request.feature_size, device), names,
        BatchSize.of(request.batch_size), Bootstrap(request.bootstrap, request.seed),
    )  # fmt: skip
    figures, more, details = job.run()
    return Evaluation(tuple(figures), job.settings(path, request) | details, (*warnings, *more))


def default_out(path: Path) -> Path:
    """Return the free file to write to if none is named: in the run's folder, or else in the current one.

    Raises:
        UserError: the folder cannot be written to.
    """
    folder = run_of(path) or Path()
    check_writable(folder)
    return unused_path(folder / "evaluation.json")


def _check_seeds(seed: int, count: int) -> None:
    try:
        check_seeds(seed, count)
    except ValueError as error:
        raise UserError(str(error)) from None


def _without_factors(reference: Reference) -> dict[str, str]:
    if reference.factors is not None:
        return {}
    reason = f"the reference {reference.name} does not know what its pictures show; expected faces or shapes"
    return dict.fromkeys(PROMPTS, reason)


@dataclass(eq=False)
class _Job:
    """An evaluation that is ready to run: what is judged, reference, network and measures, checked and loaded."""

    subject: Subject
    reference: Reference
    rows: list[int]  # row of the reference, or of the folder, of each picture that is judged
    net: FeatureNet
    names: Sequence[str]  # the measures
    size: BatchSize
    bootstrap: Bootstrap

    def run(self) -> tuple[list[Figure], list[str], dict[str, Any]]:
        """Make the pictures and measure them; return the figures, warnings, and details for the JSON file."""
        given, texts = self._captions()
        references = self.reference.features(self.net, self.size)
        judged = self._judge()
        prefix = "r" if isinstance(self.subject, Reconstructed) else ""
        figures, warnings = set_figures(
            self.names, self.net, judged.features, references, self.bootstrap, prefix=prefix
        )
        details: dict[str, Any] = {}
        if texts is not None:
            figures.append(clip_figure(judged.features[given], texts, self.net.name, self.bootstrap))
        if INCEPTION in self.names and judged.probabilities is not None:
            figures.append(inception_figure(judged.probabilities, self.bootstrap))
        if judged.readings is not None and self.reference.factors is not None:
            labels = factor_labels(self.reference.factors)[self.rows]
            more, shares = prompt_figures([*self.reference.factors.factors], judged.readings, labels, self.bootstrap)
            figures += [figure for figure in more if figure.name in self.names]
            details = {"prompt_fidelity": shares.figures}
        values = {name: column for name, column in judged.values.items() if name in self.names}
        return [*figures, *picture_figures(values, self._titles(), self.bootstrap)], warnings, details

    def _captions(self) -> tuple[list[int], Tensor | None]:
        """Return which of the N pictures have captions, and these captions' features; None: no CLIP score is asked for.

        It is called before anything is sampled, as a tokenizer may be missing.
        """
        if CLIP not in self.names or self.net.texts is None:
            return [], None
        captions = prompts_of(self.reference, self.rows, classes=False)
        given = [i for i, caption in enumerate(captions) if caption]
        return given, self.net.texts([captions[i] for i in given])

    def _judge(self) -> "_JudgedData":
        reader = None
        if {*PROMPTS} & {*self.names}:
            reader = factor_reader(self.reference.data, self.reference.split, device=str(self.net.device))
        features, probabilities, readings = [], [], []
        values: dict[str, list[Tensor]] = {}
        with tqdm(total=len(self.rows), desc=self.subject.kind, unit="picture", leave=False) as bar:
            for pictures, measured in self.subject.batches(self.reference, self.rows, self.bootstrap.seed, self.size):
                for one in self.size.map(pictures, self.net):
                    features.append(one.features)
                    probabilities.append(one.probabilities)
                if reader is not None:
                    readings.append(reader.read(pictures))
                for name, column in measured.items():
                    values.setdefault(name, []).append(column)
                bar.update(len(pictures))
        return _JudgedData(
            torch.cat(features),
            None if probabilities[0] is None else torch.cat(probabilities),
            torch.cat(readings) if readings else None,
            {name: torch.cat(columns) for name, columns in values.items()},
        )

    def _titles(self) -> dict[str, str]:
        """Return the perceptual distance's title with the name of its network."""
        if not isinstance(self.subject, Reconstructed) or self.subject.perceptual is None:
            return {}
        config = self.subject.perceptual.config
        return {
            "perceptual": f"LPIPS ({config.net})" if config.spec == "lpips" else f"perceptual distance ({config.spec})"
        }

    def settings(self, path: Path, request: EvaluationRequest) -> dict[str, Any]:
        """Return what the result depends on, as JSON values."""
        reference, net = self.reference, self.net
        return {
            "judged": {"path": str(path), "count": len(self.rows), **self.subject.description},
            "reference": {
                "name": reference.name,
                "split": reference.split_name,
                "count": len(reference.pictures),
                "fingerprint": reference.pictures.fingerprint,
            },
            "features": {"name": net.name, "spec": request.features, "resize": net.resize, "sha256": net.sha256},
            "seed": request.seed,
            "bootstrap": request.bootstrap,
        }


@dataclass(frozen=True, eq=False)
class _JudgedData:
    """All numbers of the N pictures that are judged, from which the measures are computed; no pixels."""

    features: Tensor  # [N, D]
    probabilities: Tensor | None  # [N, K] of an Inception network's classes
    readings: Tensor | None  # int64 [N, F], the factors' values that a reader has read
    values: Mapping[str, Tensor]  # [N] by name of a measure of reconstructions
