"""Plot training curves from a run's metrics.jsonl, without matplotlib's global state (pyplot)."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm_kit.config import UserError
from ldm_kit.viz.png import write_atomic


def curves(metrics_jsonl: Path, out: Path, keys: Sequence[str] | None = None) -> None:
    """Plot training metrics against the step, one panel for each, with a centred moving mean over 5 % of the points.

    Metrics with "loss" in their name have a logarithmic axis if all their finite values are positive. Values that are
    not finite leave a gap; true and false are not plotted. If a step was logged twice, the later line counts; lines
    that are not complete JSON are skipped.

    Args:
        metrics_jsonl: file with a JSON object in each line: `step`, and a number for each metric.
        out: the image file to write; its suffix selects png, svg or pdf.
        keys: names of the metrics to plot; None: all.

    Raises:
        UserError: the file cannot be read, has no line with a step and a metric, or has no value of one of the `keys`.
    """
    from matplotlib.figure import Figure  # slow to import

    series = _series(metrics_jsonl)
    if unknown := [key for key in keys or () if key not in series]:
        raise UserError(f"{metrics_jsonl} holds no {unknown[0]!r}; known: {', '.join(series)}")
    keys = list(keys or series)
    columns = min(len(keys), 3)
    rows = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(5 * columns, 3.2 * rows))
    _set_margins(figure, rows, columns)  # a computed layout would draw the figure twice
    for number, key in enumerate(keys, 1):
        _panel(figure.add_subplot(rows, columns, number), key, series[key])
    buffer = io.BytesIO()
    figure.savefig(buffer, format=out.suffix.lstrip(".") or "png", dpi=120)
    write_atomic(out, buffer.getvalue())


def logged_keys(metrics_jsonl: Path) -> list[str]:
    """Return the names of the metrics in a metrics.jsonl.

    Raises:
        UserError: the file cannot be read, or has no line with a step and a metric.
    """
    return list(_series(metrics_jsonl))


def _series(path: Path) -> dict[str, dict[float, float]]:
    """Return the values of all metrics in a metrics.jsonl as {metric: {step: value}}."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the metrics {path}: {error.strerror}") from None
    series: dict[str, dict[float, float]] = {}
    for entry in map(_parse, lines):
        numbers = {key: number for key, value in entry.items() if (number := _number(value)) is not None}
        step = numbers.pop("step", math.nan)
        if math.isfinite(step):
            for key, value in numbers.items():
                series.setdefault(key, {})[step] = value
    if not series:
        raise UserError(f"{path} holds no line such as " + '{"step": 10, "loss": 0.5}')
    return series


def _number(value: Any) -> float | None:
    """Return a value from a metrics file as a float: NaN if it is not finite, None if it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # an integer beyond the largest float
        return math.nan


def _parse(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _set_margins(figure: Any, rows: int, columns: int) -> None:
    """Leave room around each panel of a figure with `rows` x `columns` panels.

    In inches: 0.95 on the left, 0.15 on the right, 0.35 above and 0.55 below.
    """
    width, height = figure.get_size_inches()
    plot_width, plot_height = width / columns - 1.1, height / rows - 0.9
    figure.subplots_adjust(
        left=0.95 / width,
        right=1 - 0.15 / width,
        top=1 - 0.35 / height,
        bottom=0.55 / height,
        wspace=1.1 / plot_width,
        hspace=0.9 / plot_height,
    )


def _log_formatter() -> Any:
    """Return a matplotlib formatter for logarithmic axes with labels like 0.05, which are drawn faster than 10^-2."""
    from matplotlib.ticker import LogFormatter

    class PlainLogFormatter(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:.4g}" if super().__call__(x, pos) else ""

    return PlainLogFormatter()


def _panel(axes: Any, key: str, points: Mapping[float, float]) -> None:
    steps = np.array(sorted(points), dtype=float)
    values = np.array([points[step] for step in steps], dtype=float)
    window = len(values) // 20
    axes.plot(steps, values, color="C0", alpha=0.35 if window > 1 else 1.0, linewidth=1, marker="." * (len(steps) == 1))
    if window > 1:
        mean = np.convolve(values, np.full(window, 1 / window), "valid")
        axes.plot(steps[(window - 1) // 2 :][: len(mean)], mean, color="C0", linewidth=1.5)
    finite = values[np.isfinite(values)]
    if "loss" in key and len(finite) and (finite > 0).all():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_log_formatter())
        axes.yaxis.set_minor_formatter(_log_formatter())
    axes.set_title(key, parse_math=False)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
