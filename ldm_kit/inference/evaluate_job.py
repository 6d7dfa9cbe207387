"""A prepared evaluation: what is judged, reference, network and measures; it makes the pictures and measures them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import UserError
from ldm_kit.data import peers
from ldm_kit.data.images import Split, value_range_of
from ldm_kit.inference.evaluate_autoencoders import Reconstructed
from ldm_kit.inference.evaluate_codes import code_figures, unknown_attributes
from ldm_kit.inference.evaluate_latents import LATENTS, latent_figures
from ldm_kit.inference.evaluate_plan import of_other_networks, plan, unseen_by, without_factors
from ldm_kit.inference.evaluate_reference import Reference, open_reference, prompts_of, run_of
from ldm_kit.inference.evaluate_report import Evaluation
from ldm_kit.inference.evaluate_sampled import Sampled, Subject
from ldm_kit.inference.evaluate_semantic import Semantics
from ldm_kit.inference.evaluate_subjects import open_subject
from ldm_kit.inference.likelihood import check_times
from ldm_kit.inference.likelihood_terms import BoundOptions
from ldm_kit.inference.requests import EvaluationRequest, GuideModels
from ldm_kit.memory import BatchSize
from ldm_kit.models.factor_readers import factor_labels, factor_reader
from ldm_kit.models.feature_figures import Captions, embed_captions, feature_figures
from ldm_kit.models.feature_nets import FeatureNet, load_feature_net
from ldm_kit.models.folder import device_named
from ldm_kit.models.measures import (
    BITS,
    CLIP,
    CODES,
    EDITS,
    INCEPTION,
    PICTURES,
    PROMPTS,
    RANDOM,
    Bootstrap,
    Figure,
    picture_figures,
    prompt_figures,
)
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.picture_features import picture_features
from ldm_kit.models.sampler_options import check_seeds
from ldm_kit.models.set_measures import SETS

Columns = Mapping[str, Tensor]  # what is known of each of N judged pictures, [N, ...] by name; no pixels


@dataclass(eq=False)
class Job:
    """An evaluation that is ready to run, checked and loaded.

    Attributes:
        path: what is judged, as the user named it.
        request: what the user asked for.
        subject: what is judged.
        reference: the pictures that it is compared with.
        rows: row of the reference, or of the folder, of each picture that is judged.
        net: the network whose features are compared.
        names: the measures.
        warnings: sentences on measures that are left out.
        size: number of pictures at once.
        references: features [M, D] of the reference; None: not yet computed.
    """

    path: Path
    request: EvaluationRequest
    subject: Subject
    reference: Reference
    rows: list[int]
    net: FeatureNet
    names: Sequence[str]
    warnings: list[str]
    size: BatchSize
    references: Tensor | None = field(default=None)

    @property
    def bootstrap(self) -> Bootstrap:
        """How intervals are computed."""
        return Bootstrap(self.request.bootstrap, self.request.seed)

    @property
    def _bound(self) -> BoundOptions:
        return BoundOptions(self.request.times, self.request.seed)

    def run(self) -> Evaluation:
        """Make the pictures and measure them; of several processes each makes a share, and all return the result."""
        captions = embed_captions(self.names, self.net, self._captions())  # first, as a tokenizer may be missing
        if self.references is None and {*self.names} & {*SETS}:
            self.references = picture_features(self.reference.pictures, self.net, self.size)
        codes: list[Figure] = []
        report: dict[str, Any] = {}
        if isinstance(self.subject, Semantics):
            codes, report = code_figures(self.subject, self.reference, self.names, self.request)
        columns = self._judge()
        figures, warnings, details = peers.from_first(peers.everyone(), lambda: self._measure(columns, captions))
        return Evaluation((*figures, *codes), self._settings() | details | report, (*self.warnings, *warnings))

    def _measure(self, columns: Columns, captions: Captions | None) -> tuple[list[Figure], list[str], dict[str, Any]]:
        """Return figures, warnings, and details for the JSON file."""
        prefix = "r" if isinstance(self.subject, Reconstructed) else ""
        figures, warnings = feature_figures(
            self.names, self.net, columns, self.references, captions, bootstrap=self.bootstrap, prefix=prefix
        )
        details: dict[str, Any] = {}
        if "readings" in columns and self.reference.factors is not None:
            factors = self.reference.factors
            labels = factor_labels(factors)[self.rows]
            more, shares = prompt_figures([*factors.factors], columns["readings"], labels, self.bootstrap)
            figures += [figure for figure in more if figure.name in self.names]
            details |= {"prompt_fidelity": shares.figures}
        values = {name: columns[name] for name in (*PICTURES, *RANDOM, *BITS) if name in columns}
        figures += picture_figures({k: v for k, v in values.items() if k in self.names}, self._titles(), self.bootstrap)
        if isinstance(self.subject, Reconstructed) and "latents" in columns:
            labels = [self.reference.pictures.records[row].label for row in self.rows]
            more, few, latents = latent_figures(self.names, columns, labels, self.subject.codes, self.bootstrap)
            return [*figures, *more], [*warnings, *few], details | latents
        return figures, warnings, details

    def _captions(self) -> list[str]:
        """Return the pictures' captions, if a measure needs them; "" for a picture without."""
        return prompts_of(self.reference, self.rows, classes=False) if CLIP in self.names else []

    def _judge(self) -> Columns:
        """Return what is known of each of the N pictures, of which this process makes every size-th one."""
        group = peers.everyone()
        own = range(group.rank, len(self.rows), group.size)
        shares = peers.agreed(group, lambda: self._judge_own(own) if own else {})[: len(self.rows)]
        columns: dict[str, Tensor] = {}
        for name, first in shares[0].items():
            columns[name] = first.new_empty(len(self.rows), *first.shape[1:])
            for rank, share in enumerate(shares):
                columns[name][rank :: group.size] = share[name]
        return columns

    def _judge_own(self, own: range) -> Columns:
        reader = None
        if {*PROMPTS} & {*self.names}:
            reader = factor_reader(self.reference.data, self.reference.split, device=str(self.net.device))
        rows, seeds = [self.rows[i] for i in own], [self.request.seed + i for i in own]
        columns: dict[str, list[Tensor]] = {}
        if isinstance(self.subject, Sampled) and {*BITS} & {*self.names}:
            bits = self.subject.bits(self.reference, rows, self._bound, self.size)
            columns |= {"bits_per_dim": [bits.total], "bits_per_dim_tanh": [bits.total_tanh]}
        if {*BITS, *CODES, *EDITS} >= {*self.names}:
            return {name: column for name, (column,) in columns.items()}
        with tqdm(total=len(own), desc=self.subject.kind, unit="picture", leave=False) as bar:
            for pictures, values in self.subject.batches(self.reference, rows, seeds, self.size):
                readings = {} if reader is None else {"readings": reader.read(pictures)}
                for name, column in {**self._features(pictures), **readings, **values}.items():
                    if not name.startswith("latent") or {*LATENTS} & {*self.names}:
                        columns.setdefault(name, []).append(column)
                bar.update(len(pictures))
        return {name: torch.cat(batches) for name, batches in columns.items()}

    def _features(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return the features of B pictures and, if the network gives them, class probabilities."""
        if not {*SETS, INCEPTION, CLIP} & {*self.names}:
            return {}
        features, probabilities = zip(*self.size.map(pictures, self.net), strict=True)
        more = {} if probabilities[0] is None else {"probabilities": torch.cat(probabilities)}
        return {"features": torch.cat(features), **more}

    def _titles(self) -> dict[str, str]:
        """Return titles with the perceptual distance's network, and with the number of times of estimated bits/dim."""
        if isinstance(self.subject, Reconstructed | Semantics):
            return self.subject.titles
        times = self.request.times
        return {} if times is None else {key: f"{one.title}, {times} random times" for key, one in BITS.items()}

    def _settings(self) -> dict[str, Any]:
        """Return what the result depends on, as JSON values."""
        reference, net, request = self.reference, self.net, self.request
        return {
            "judged": {"path": str(self.path), "count": len(self.rows), **self.subject.description},
            "reference": {
                "name": reference.name,
                "split": reference.split_name,
                "count": len(reference.pictures),
                "fingerprint": reference.pictures.fingerprint,
            },
            "features": {"name": net.name, "spec": request.features, "resize": net.resize, "sha256": net.sha256},
            "seed": request.seed,
            **({"times": request.times} if {*BITS} & {*self.names} else {}),
            "bootstrap": request.bootstrap,
        }


Check = Callable[[Path, Subject, EvaluationRequest, Job], None]  # raises a UserError where a run is not like a job's


def prepare(
    path: Path,
    request: EvaluationRequest,
    options: SamplingOptions | None = None,
    guides: GuideModels | None = None,
    *,
    data: Split | None = None,
    like: Job | None = None,
    check: Check | None = None,
) -> Job:
    """Open what is judged, the reference and the network, and check that all fit. See `evaluate` for the arguments.

    Args:
        path: what is judged.
        request: how it is judged.
        options: how a model is sampled.
        guides: models that guide it.
        data: the reference, if the request names none.
        like: job of another run, whose reference and network are used again; None: they are opened.
        check: function of `path`, what is judged, `request` and `like`, called before anything else is opened.

    Raises:
        UserError: something is missing, unknown or does not fit.
    """
    subject = open_subject(path, request, options, guides)
    if like is not None and check is not None:
        check(path, subject, request, like)
    captions = isinstance(subject, Sampled | Semantics) and subject.takes_prompts
    reference = (
        open_reference(request, run_of(path), subject.shape, data, captions=captions, values=value_range_of(subject))
        if like is None
        else like.reference
    )
    rows = subject.rows(reference, request.count)
    if isinstance(subject, Sampled | Semantics):
        _check_seeds(request.seed, len(rows))
    if isinstance(subject, Sampled):
        check_times(request.times, len(subject.pipeline.schedule))
    reasons = {**without_factors(reference), **subject.impossible, **of_other_networks(request), **unseen_by(subject)}
    if isinstance(subject, Semantics):
        reasons |= unknown_attributes(reference, request.codes)
    few = subject.few(reference, len(rows)) if isinstance(subject, Reconstructed) else {}
    names, warnings = plan(request.chosen, reasons, len(rows), len(reference.pictures), few)
    warnings += [reference.scaled] * bool(reference.scaled)
    if isinstance(subject, Semantics):
        subject.names = names
    if request.chosen is None and isinstance(subject, Reconstructed | Semantics) and subject.weights_missing:
        warnings.append(f"left out: {subject.missing}")
    if request.times is not None and not {*BITS} & {*names}:
        raise UserError(f"--times {request.times} is for {' and '.join(BITS)}, which --measures does not name")
    if "edits" in request.model_fields_set and not {*EDITS} & {*names}:
        raise UserError(f"--edits {request.edits} is for {', '.join(EDITS)}, which --measures does not name")
    if like is not None:
        return replace(like, path=path, subject=subject, rows=rows, names=names, warnings=warnings)
    net = load_feature_net(request.features, request.feature_size, device_named(request.device))
    return Job(path, request, subject, reference, rows, net, names, warnings, BatchSize.of(request.batch_size))


def _check_seeds(seed: int, count: int) -> None:
    try:
        check_seeds(seed, count)
    except ValueError as error:
        raise UserError(str(error)) from None
