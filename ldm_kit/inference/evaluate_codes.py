"""Measures of a semantic model's codes and edits as figures of an evaluation, where pictures' attributes are known."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from ldm_kit.config import UserError
from ldm_kit.data.peers import everyone, from_first
from ldm_kit.editing.code_measures import CodeMeasures, EditOptions, MeasuredEdits, measure_edits
from ldm_kit.editing.options import RoundTripSteps
from ldm_kit.editing.report_data import ReportData, data_of
from ldm_kit.inference.evaluate_plan import DCI
from ldm_kit.inference.evaluate_reference import Reference
from ldm_kit.inference.evaluate_semantic import Semantics
from ldm_kit.inference.requests import EvaluationRequest
from ldm_kit.metrics.dci import check_packages
from ldm_kit.metrics.disentanglement import mutual_information_gap
from ldm_kit.metrics.edit_errors import EditError
from ldm_kit.models.measures import CODES, EDITS, Bootstrap, Estimated, Figure

MIN_LABELLED = 2  # pictures with a value, and pictures without it, from which a probe can be learned


def unknown_attributes(reference: Reference, count: int) -> dict[str, str]:
    """Return why a measure of codes or edits cannot be taken with a reference, by the measure's name.

    `count` is the most pictures whose codes are measured.
    """
    reasons: dict[str, str] = {}
    try:
        data = data_of(reference.data, reference.split, count)
    except UserError as error:
        return dict.fromkeys((*CODES, *EDITS), f"of the reference {reference.name} {error}")
    if not _learnable(data):
        reason = f"no attribute of the reference {reference.name} has two pictures with a value, and two without"
        return dict.fromkeys((*CODES, *EDITS), reason)
    if len(data.columns) == 1:  # every vote is for the only factor
        reason = f"the reference {reference.name} has one attribute, of which any code reaches 1; expected two or more"
        reasons["factor_vae_score"] = reason
    if data.built_in is None:
        reason = f"the reference {reference.name} cannot render edits; expected faces, shapes or openmoji"
        reasons |= dict.fromkeys(EDITS, reason)
    elif not len(reference.split.heldout):
        reasons |= dict.fromkeys(EDITS, f"the reference {reference.name} holds out no picture to edit")
    try:
        check_packages()
    except UserError as error:
        reasons |= dict.fromkeys(DCI, str(error))
    return reasons


def _learnable(data: ReportData) -> bool:
    counts = (
        (sum(mark is True for mark in marks), sum(mark is False for mark in marks))
        for column in data.columns
        for marks in map(column.positive, column.kinds)
    )
    return any(min(pair) >= MIN_LABELLED for pair in counts)


def code_figures(
    subject: Semantics, reference: Reference, names: Sequence[str], request: EvaluationRequest
) -> tuple[list[Figure], dict[str, Any]]:
    """Measure the codes of training pictures, and edits of held-out ones; every process must call it.

    Args:
        subject: the semantic model.
        reference: data set whose pictures' attributes are known.
        names: names of measures; those that are neither in CODES nor in EDITS are passed over.
        request: numbers of codes, edits and draws, and the seed.

    Returns:
        The figures, and a report for the JSON file, as `edit.py report` writes it.
    """
    if not {*CODES, *EDITS} & {*names}:
        return [], {}
    data, bootstrap = (
        data_of(reference.data, reference.split, request.codes),
        Bootstrap(request.bootstrap, request.seed),
    )
    measures = CodeMeasures.of(subject.semantic, data, seed=request.seed)
    if {"probe_auroc", *EDITS} & {*names}:
        measures = measures.learn()
    report, estimates = from_first(everyone(), lambda: _measure(measures, names, bootstrap))
    figures = [_figure(name, estimate, len(data.pictures)) for name, estimate in estimates.items()]
    if {*EDITS} & {*names} and data.built_in is not None and measures.directions is not None:
        steps = RoundTripSteps(steps=subject.decode_steps, invert_steps=subject.encode_steps)
        options = EditOptions(steps, request.edits, seed=request.seed)
        device = str(subject.semantic.device)
        edits = measure_edits(subject.semantic, measures.directions, data.built_in, options, device)
        figures += edit_figures(edits, names, bootstrap)
        report["edits"] = edits.report
    return figures, {"report": {"pictures": len(data.pictures), "fingerprint": data.pictures.fingerprint, **report}}


def _figure(name: str, estimate: Estimated, count: int) -> Figure:
    title, better = (CODES | EDITS)[name]
    return Figure(name, title, *estimate, better, count)


def _measure(
    measures: CodeMeasures, names: Sequence[str], bootstrap: Bootstrap
) -> tuple[dict[str, Any], dict[str, Estimated]]:
    """Return the report's sections on codes and probes, and the measures that are named."""
    scores = measures.scores([*names, *(["dci"] if {*DCI} & {*names} else [])])
    report: dict[str, Any] = {"codes": scores}
    estimates: dict[str, Estimated] = {}
    if "probe_auroc" in names:
        report["probes"] = measures.probes()
        estimates["probe_auroc"] = _probed(measures, report["probes"], bootstrap)
    for name in (name for name in CODES if name in names and name != "probe_auroc"):
        if name == "mig":
            estimates[name] = _gap(measures, scores[name], bootstrap)
        elif name == "tad":
            estimates[name] = Estimated(scores[name]["total"], None)
        else:
            estimates[name] = Estimated(scores["dci"][name.removeprefix("dci_")] if name in DCI else scores[name], None)
    return report, {name: estimates[name] for name in CODES if name in estimates}


def _probed(measures: CodeMeasures, probes: Mapping[str, float | None], bootstrap: Bootstrap) -> Estimated:
    """Return the mean over attributes, with an interval over the pictures that are held out from the probes."""
    scores = [score for score in probes.values() if score is not None]
    if not scores:
        return Estimated(None, None)
    counts = bootstrap.counts(int(measures.probed.sum()))[1:]
    value = torch.tensor([sum(scores) / len(scores)]).double()
    return bootstrap.estimate(torch.cat([value, measures.probe_draws(counts)]), share=True)


def _gap(measures: CodeMeasures, value: float, bootstrap: Bootstrap) -> Estimated:
    factors, values = measures.data.factor_numbers, [value]
    for counts in tqdm(bootstrap.counts(len(measures.z))[1:], desc="MIG", unit="draw", leave=False, delay=2.0):
        rows = torch.arange(len(counts)).repeat_interleave(counts)
        values.append(mutual_information_gap(measures.z[rows], factors[rows], measures.groups))
    return bootstrap.estimate(torch.tensor(values).double(), share=True)


def edit_figures(edits: MeasuredEdits, names: Sequence[str], bootstrap: Bootstrap) -> list[Figure]:
    """Return the figures of edits: shares with Wilson's intervals, means with bootstrap intervals over the edits."""
    errors = edits.all
    return [_figure(name, _edited(name, errors, bootstrap), len(errors)) for name in EDITS if name in names]


def _edited(name: str, errors: Sequence[EditError], bootstrap: Bootstrap) -> Estimated:
    match name:
        case "edit_right":
            marks = [error.right for error in errors]
        case "edit_closer":
            marks = [error.ratio < 1 for error in errors]
        case "edit_nearest":
            marks = [error.rank == 1 for error in errors]
        case "edit_unchanged":
            return _mean([error.unchanged / error.others for error in errors if error.others], bootstrap)
        case _:
            return _mean([error.ratio for error in errors], bootstrap)
    return bootstrap.share(torch.tensor(marks)) if marks else Estimated(None, None)


def _mean(values: Sequence[float], bootstrap: Bootstrap) -> Estimated:
    return bootstrap.mean(torch.tensor(values).double()) if values else Estimated(None, None)
