import json
import math

import matplotlib
import pytest
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ldm_kit.config import UserError
from ldm_kit.viz.curves import _panel, _series, _set_margins, curves


def write_metrics(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"step": 99, "lo')


def test_curves_draw_a_png_without_global_state(tmp_path):
    entries = [{"step": s, "loss": 1 / (s + 1), "lr": 1e-4, "phase": "train"} for s in range(100)]
    entries += [{"step": 50, "loss": float("nan")}, {"note": 1}, {"step": 60, "loss_b": -1.0}]
    write_metrics(tmp_path / "metrics.jsonl", entries)
    before = dict(matplotlib.rcParams)
    curves(tmp_path / "metrics.jsonl", tmp_path / "all.png")
    curves(tmp_path / "metrics.jsonl", tmp_path / "one.png", ["loss"])
    for name, size in (("all.png", (1800, 384)), ("one.png", (600, 384))):
        with Image.open(tmp_path / name) as image:
            assert image.size == size
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_losses_are_logarithmic_where_positive(tmp_path):
    write_metrics(tmp_path / "m.jsonl", [{"step": s, "loss": s + 1, "loss_d": s - 1, "lr": 1.0} for s in (0, 1, 2)])
    series = _series(tmp_path / "m.jsonl")
    assert series["loss"] == {0: 1, 1: 2, 2: 3}
    scales = []
    for key in series:
        axes = Figure().add_subplot()
        _panel(axes, key, series[key])
        scales.append(axes.get_yscale())
    assert dict(zip(series, scales, strict=True)) == {"loss": "log", "loss_d": "linear", "lr": "linear"}


def test_labels_of_a_logarithmic_axis_differ_however_narrow_it_is():
    for low, high in ((0.050, 0.058), (1e-8, 1.0)):
        axes = Figure().add_subplot()
        _panel(axes, "loss", {1: low, 2: high})
        ticks = (*axes.yaxis.get_majorticklocs(), *axes.yaxis.get_minorticklocs())
        shown = {x for x in ticks if low <= x <= high}
        kinds = (axes.yaxis.get_major_ticks, axes.yaxis.get_minor_ticks)
        labels = [
            tick.label1.get_text() for ticks in kinds for tick in _updated(axes, ticks) if tick.get_loc() in shown
        ]
        labels = [label for label in labels if label]
        assert len(labels) >= 2
        assert len({*labels}) == len(labels)


def _updated(axes, ticks):
    axes.yaxis._update_ticks()
    return ticks()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_panels_and_their_labels_lie_side_by_side(count):
    rows, columns = -(-count // 3), min(count, 3)
    figure = Figure(figsize=(5 * columns, 3.2 * rows))
    _set_margins(figure, rows, columns)
    for number in range(1, count + 1):
        _panel(figure.add_subplot(rows, columns, number), "lr", {1: 1.23456e-4 * number, 2: 1.3e-4 * number})
    boxes = [axes.get_tightbbox(FigureCanvasAgg(figure).get_renderer()) for axes in figure.axes]
    assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)
    assert all(box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height for box in boxes)
    assert not [1 for i, one in enumerate(boxes) for other in boxes[:i] if one.overlaps(other)]


def test_what_is_not_finite_leaves_a_gap_and_what_is_true_is_no_number(tmp_path):
    """A NaN, an infinity or a number beyond float64, as a value or as a step, spoils neither axes nor mean."""
    steps = [{"step": s, "loss": 1.0 + s} for s in range(100)]
    odd = [{"step": 20, "loss": float("inf")}, {"step": 21, "loss": -float("inf")}, {"step": 22, "loss": 10**400}]
    none = [{"step": True, "loss": 7.0}, {"step": float("inf"), "loss": 7.0}, {"step": 1, "flag": True}]
    lost = [{"step": s, "lost_loss": float("inf")} for s in (1, 2)]
    write_metrics(tmp_path / "m.jsonl", steps + odd + none + lost)
    series = _series(tmp_path / "m.jsonl")
    assert (list(series), len(series["loss"])) == (["loss", "lost_loss"], 100)
    assert [step for step, value in series["loss"].items() if math.isnan(value)] == [20, 21, 22]
    for key, scale in (("loss", "log"), ("lost_loss", "linear")):
        axes = Figure().add_subplot()
        _panel(axes, key, series[key])
        assert axes.get_yscale() == scale
        assert all(math.isfinite(limit) for limit in axes.get_ylim())
    axes = Figure().add_subplot()
    _panel(axes, "loss", series["loss"])
    mean = axes.lines[1]
    assert [x for x, y in zip(*mean.get_data(), strict=True) if math.isnan(y)] == list(range(18, 25))
    curves(tmp_path / "m.jsonl", tmp_path / "m.png")


def test_of_a_step_that_was_logged_twice_the_last_line_counts(tmp_path):
    entries = [{"step": step, "loss": loss} for step, loss in ((0, 1.0), (1, 9.0), (1, 2.0), (2, 3.0))]
    write_metrics(tmp_path / "m.jsonl", entries)
    assert _series(tmp_path / "m.jsonl")["loss"] == {0: 1, 1: 2, 2: 3}


def test_the_moving_mean_lies_on_a_straight_line():
    axes = Figure().add_subplot()
    _panel(axes, "psnr", {step: 2.0 * step for step in range(101)})
    points, mean = axes.lines
    assert len(points.get_xdata()) == 101
    assert mean.get_xdata()[0] == 2
    assert mean.get_ydata() == pytest.approx(2 * mean.get_xdata())


def test_curves_refuse_bad_input(tmp_path):
    path = tmp_path / "m.jsonl"
    with pytest.raises(UserError, match="cannot read"):
        curves(path, tmp_path / "a.png")
    path.write_text("[]\n{}\n")
    with pytest.raises(UserError, match="no line such as"):
        curves(path, tmp_path / "a.png")
    write_metrics(path, [{"step": 1, "loss": 1.0}])
    with pytest.raises(UserError, match="no 'los'; known: loss"):
        curves(path, tmp_path / "a.png", ["los"])
    assert not (tmp_path / "a.png").exists()
