"""`edit.py report`: measure how disentangled a semantic model's codes are, and how exact its edits are."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.factors import known_factors, pixel_digests
from ldm_kit.editing import operations
from ldm_kit.editing.built_in import BuiltIn
from ldm_kit.editing.context import ModelContext
from ldm_kit.editing.edit_errors import EditJudge
from ldm_kit.editing.fit_directions import FitOptions, learn
from ldm_kit.editing.report_data import ReportData, load_data
from ldm_kit.editing.report_options import ReportOptions
from ldm_kit.metrics.dci import check_packages, dci
from ldm_kit.metrics.disentanglement import (
    Groups,
    factor_vae_score,
    mutual_information_gap,
    total_auroc_difference,
)
from ldm_kit.metrics.edit_errors import summarise
from ldm_kit.metrics.factor_reader import ReaderConfig
from ldm_kit.models.directions import Directions
from ldm_kit.models.factor_readers import factor_reader, reader_accuracy
from ldm_kit.models.folder import device_named
from ldm_kit.models.protocol import encode_pictures, encoder_digest, normalise
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.paths import check_writable_file
from ldm_kit.viz.png import unused_path, write_atomic

FORMAT = "ldm_kit report 1"
Report = dict[str, Any]


def report_model(context: ModelContext, options: ReportOptions) -> tuple[Report, Path]:
    """Measure a semantic model, write the report as JSON, and return it with the path of its file.

    Attribute directions are learned from the pictures, as by `edit.py learn`, but not saved. If the data set knows the
    factors of its pictures (such as hair colour), held-out pictures are edited and compared with the exact results,
    which the data set renders. A classifier, which was not trained on them, says which factors an edit changed.

    Args:
        context: the model.
        options: the data, and what is measured.

    Raises:
        UserError: the model is not semantic, the data have no labels, a factor does not exist, the group size does not
            divide the length of a code, a package is missing, or the file cannot be written.
    """
    default = context.folder / "reports" / f"{options.source}.json"
    out = options.out if "out" in options.model_fields_set else unused_path(default)
    check_writable_file(out)
    check_packages()
    model = context.load_semantic_model()
    options, note = operations.resolve_steps(model, options)
    groups = _groups(model, options.group_size)
    data = load_data(model, options)
    z = normalise(model, encode_pictures(model, data.pictures))
    directions = learn(z, data.columns, data.names, "report", FitOptions(estimator=options.estimator))
    report: Report = {
        "format": FORMAT,
        "model": encoder_digest(model),
        "options": options.model_dump(mode="json", exclude={"images", "labels", "out"}),
        "note": note,
        "data": {"name": options.source, "pictures": len(z), "fingerprint": data.pictures.fingerprint},
        "codes": _codes(z, data, groups, options),
        "probes": _probes(directions, data),
    }
    if data.built_in is not None and options.edits:
        report["edits"] = _edits(context, model, directions, data.built_in, options)
    write_atomic(out, (json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return report, out


def _groups(model: SemanticModel, size: int) -> Groups | None:
    """Divide the dimensions of the model's codes into groups of `size` successive ones; return each group's dimensions.

    None, for a size of 1, means that each dimension counts by itself. Raises UserError if `size` does not divide the
    number of dimensions.
    """
    if model.z_width % size:
        raise UserError(f"--group_size {size} does not divide a code of {model.z_width} dimensions")
    return None if size == 1 else [range(i, i + size) for i in range(0, model.z_width, size)]


def _codes(z: Tensor, data: ReportData, groups: Groups | None, options: ReportOptions) -> Report:
    """Return the report's scores of disentanglement, by name: DCI, FactorVAE score, MIG and TAD.

    Args:
        z: normalised codes [N, D] of the pictures.
        data: the pictures' attributes.
        groups: dimensions of z that count as one; None: each counts by itself.
        options: regressor of DCI, and seed.
    """
    factors = data.factor_numbers
    scores = dci(z, factors, groups, regressor=options.regressor, seed=options.seed)
    names = [column.name for column in data.columns]
    return {
        "dimensions": z.shape[1],
        "groups": z.shape[1] if groups is None else len(groups),
        "dci": {
            "regressor": options.regressor,
            "disentanglement": scores.disentanglement,
            "completeness": scores.completeness,
            "informativeness": scores.informativeness,
            "accuracy": dict(zip(names, scores.accuracy.tolist(), strict=True)),
            "importance": dict(zip(names, scores.importance.T.tolist(), strict=True)),
        },
        "factor_vae_score": factor_vae_score(z, factors, groups, seed=options.seed),
        "mig": mutual_information_gap(z, factors, groups),
        "tad": total_auroc_difference(z, data.attributes, groups)._asdict(),
    }


def _probes(directions: Directions, data: ReportData) -> dict[str, float | None]:
    """Return for each attribute the held-out AUROC of the directions of its values, averaged over the values.

    The directions, learned from `data`, hold these AUROCs. None: no AUROC was measured for any value.
    """
    means: dict[str, float | None] = {}
    for column in data.columns:
        names = {column.name, *(f"{column.name}: {value}" for value in column.kinds)}
        scores = [one.auroc for one in directions.records if one.name in names and one.auroc is not None]
        means[column.name] = statistics.fmean(scores) if scores else None
    return means


def _edits(
    context: ModelContext, model: SemanticModel, directions: Directions, data: BuiltIn, options: ReportOptions
) -> Report:
    """Edit held-out pictures; return a summary of the edits' errors, over all factors and for each factor.

    The summary also has the accuracy of the reader, the classifier of factors that judges the edits. Edits whose exact
    picture is a training picture are left out.
    """
    heldout, seen = known_factors(data.split.heldout), pixel_digests(data.split.train)
    config = ReaderConfig(count=options.reader_count, epochs=options.reader_epochs, seed=options.seed)
    reader = factor_reader(data.config, data.split, config, str(device_named(context.device)))
    judge = EditJudge(model, directions, reader, options, options.scale)
    errors = judge.measure(heldout, options.edits, options.factor, options.seed, seen)
    return {
        "reader": reader_accuracy(reader, heldout),
        "all": summarise([error for some in errors.values() for error in some]),
        "factors": {factor: summarise(some) for factor, some in errors.items()},
    }


def describe(report: Report) -> str:
    """Return a report as text: the measures of the codes, and a markdown table with a row for each factor."""
    codes, data = report["codes"], report["data"]
    scores, tad = codes["dci"], codes["tad"]
    dimensions = f"{codes['dimensions']} dimensions"
    grouped = "" if codes["groups"] == codes["dimensions"] else f" in {codes['groups']} groups"
    lines = [
        f"codes of {data['pictures']} pictures of {data['name']}: {dimensions}{grouped}",
        f"DCI ({scores['regressor']}): disentanglement {scores['disentanglement']:.3f}, "
        f"completeness {scores['completeness']:.3f}, informativeness {scores['informativeness']:.3f}",
        f"FactorVAE score {codes['factor_vae_score']:.3f} (chance {1 / len(report['probes']):.3f}), "
        f"MIG {codes['mig']:.3f}, "
        f"TAD {tad['total']:.3f} ({tad['captured']} of {tad['attributes']} attributes captured)",
        "",
        *_table(report),
    ]
    return "\n".join(lines)


def _table(report: Report) -> list[str]:
    edits = report.get("edits")
    head = ["factor", "probe AUROC", "predicted"]
    rows = [[name, _number(auroc), _share(report["codes"]["dci"]["accuracy"][name])] for name, auroc in
            report["probes"].items()]  # fmt: skip
    if edits is None:
        return _lines([head, *rows])
    head += ["reader", "edits", "right", "of the truth", "others unchanged", "closer", "distance", "nearest"]
    rows = [row + _edit_cells(edits["reader"].get(row[0]), edits["factors"].get(row[0], {})) for row in rows]
    shares = [share for share in edits["reader"].values() if share is not None]
    total = ["all", "", "", *_edit_cells(statistics.fmean(shares) if shares else None, edits["all"])]
    return _lines([head, *rows, total])


def _edit_cells(reader: float | None, errors: Mapping[str, Any]) -> list[str]:
    shares = [_share(errors.get(name)) for name in ("right", "readable", "unchanged", "closer")]
    return [_share(reader), str(errors.get("edits", 0)), *shares, _number(errors.get("ratio")),
            _share(errors.get("nearest"))]  # fmt: skip


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines of markdown; the first of `rows` is the head."""
    head, *others = [f"| {' | '.join(row)} |" for row in rows]
    return [head, "|" + "---|" * len(rows[0]), *others]


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
