"""`edit.py report`: measure how disentangled a semantic model's codes are, and how exact its edits are."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm_kit.editing import operations
from ldm_kit.editing.code_measures import CodeMeasures, EditOptions, Report, groups_of, measure_edits
from ldm_kit.editing.context import ModelContext
from ldm_kit.editing.report_data import load_data
from ldm_kit.editing.report_options import ReportOptions
from ldm_kit.metrics.dci import check_packages
from ldm_kit.metrics.factor_reader import ReaderConfig
from ldm_kit.models.folder import device_named
from ldm_kit.models.protocol import encoder_digest
from ldm_kit.paths import check_writable_file
from ldm_kit.viz.png import unused_path, write_atomic

FORMAT = "ldm_kit report 1"


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
    groups = groups_of(model.z_width, options.group_size)
    data = load_data(model, options)
    settings = {"regressor": options.regressor, "estimator": options.estimator, "seed": options.seed}
    measures = CodeMeasures.of(model, data, groups=groups, **settings).learn()
    report: Report = {
        "format": FORMAT,
        "model": encoder_digest(model),
        "options": options.model_dump(mode="json", exclude={"images", "labels", "out"}),
        "note": note,
        "data": {"name": options.source, "pictures": len(measures.z), "fingerprint": data.pictures.fingerprint},
        "codes": measures.scores(),
        "probes": measures.probes(),
    }
    if data.built_in is not None and options.edits and measures.directions is not None:
        given, device = edit_options(options), str(device_named(context.device))
        report["edits"] = measure_edits(model, measures.directions, data.built_in, given, device).report
    write_atomic(out, (json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return report, out


def edit_options(options: ReportOptions) -> EditOptions:
    """Return which edits a report makes."""
    reader = ReaderConfig(count=options.reader_count, epochs=options.reader_epochs, seed=options.seed)
    return EditOptions(options, options.edits, options.factor, options.scale, reader, options.seed)


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
