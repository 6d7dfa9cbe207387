"""The speed benchmark's own arithmetic: interleaving, ratios, phases, pages."""

import itertools
import subprocess
import sys
from functools import partial
from multiprocessing import get_context
from pkgutil import resolve_name

import pytest

from benchmarks import profiling, tables
from benchmarks.kit import read_latent
from benchmarks.speed import interleave, machine
from benchmarks.speed.interleave import Plan, Timing, time_interleaved
from benchmarks.speed.sections import Bench, Size
from benchmarks.speed.workspace import Workspace
from ldm_kit.config import UserError


@pytest.fixture
def _light(monkeypatch):
    monkeypatch.setattr(interleave, "CONTEXT", get_context("spawn"))  # the usual one imports all of torch and diffusers


@pytest.mark.usefixtures("_light")
def test_every_variant_has_every_block_and_a_failure_is_told():
    found = time_interleaved({"a": itertools.count, "b": itertools.count}, Plan(blocks=3, steps=2, warmup=1))
    assert {name: len(one.wall) for name, one in found.items()} == {"a": 3, "b": 3}
    with pytest.raises(RuntimeError, match=r"b failed:\n(.*\n)+TypeError: 'int' object"):
        time_interleaved({"b": partial(iter, 5)}, Plan(1, 1, 1))


def test_ratios_are_of_medians_and_faster_is_more():
    slow, fast = Timing([4.0, 6.0, 50.0], [4.0, 4.0, 4.0]), Timing([2.0, 2.0, 1.0], [1.0, 1.0, 1.0])
    assert fast.speedup(slow) == 3
    assert fast.spread(slow) == (2, 50)
    assert fast.speedup_cpu(slow) == 4


def test_a_section_replaces_itself_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n")
    tables.write_section(page, "one", "first")
    tables.write_section(page, "two", "second")
    tables.write_section(page, "one", tables.markdown(("a", "b"), [("\\1", 2)]))
    text = page.read_text()
    assert "first" not in text
    assert text.index("| \\1 | 2 |") < text.index("second")
    assert text.count("<!--") == 4


def test_rows_are_shown_by_their_formats():
    columns = {"name": ("", ""), "share": ("share", ".0%")}
    assert tables.format_rows(columns, [{"name": "a", "share": 0.5, "more": 1}]).endswith("| a | 50% |")
    assert tables.markdown(("a", "b"), [], align="left right").endswith("| --- | ---: |")


def test_a_page_is_found_in_docs_or_its_results(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    with pytest.raises(UserError, match="--no_page"):
        tables.page_of("a.md")
    (tmp_path / "a.md").touch()
    assert tables.page_of("a.md") == tmp_path / "a.md"
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.md").touch()
    assert tables.page_of("a.md") == tmp_path / "results" / "a.md"


def test_names_of_tables_are_checked():
    assert tables.chosen(None, "ab") == tables.chosen([], "ab") == ["a", "b"]
    with pytest.raises(UserError, match="unknown table 'c'; expected a, b"):
        tables.chosen(["a", "c"], "ab")


def test_the_first_size_is_the_demos_and_each_next_one_larger(tmp_path):
    bench = Bench(Workspace(tmp_path, tmp_path, 1), Plan(1, 1, 1))
    demo = read_latent()
    assert bench.sizes[0] == Size("demo", demo.unet.widths, demo.train.batch_size)
    assert bench.size in bench.sizes
    configs = [read_latent(*size.overrides) for size in bench.sizes]
    assert [one.unet.widths for one in configs] == sorted({one.unet.widths for one in configs})
    assert "64 and 64 channels wide, batch 3" in Size("", (64, 64), 3).text


def test_arithmetic_grows_with_the_batch():
    given = ("unet.widths=[32]", "unet.attention_levels=[true]", "unet.norm_num_groups=8")
    one, two = (machine.step_flops(read_latent(*given, f"train.batch_size={n}"), 16, 4) for n in (1, 2))
    assert 1.9 < two / one <= 2


def test_all_that_the_profile_wraps_is_there():
    for target in profiling.PHASES:
        assert callable(resolve_name(target)), target


def test_time_belongs_to_the_innermost_phase(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(profiling, "_now", lambda: (float(tick := next(ticks)), float(tick)))
    clock = profiling.Clock()
    with clock.phase("outer"), clock.phase("inner"):
        pass
    assert clock.spent == {profiling.REST: [1, 1], "outer": [2, 2], "inner": [1, 1]}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::convolution_backward", "convolution"),
        ("autograd::engine::evaluate_function: ConvolutionBackward0", "autograd's bookkeeping"),
        ("aten::native_group_norm_backward", "norms"),
        ("aten::bmm", "attention"),
        ("aten::mm", "linear maps"),
        ("aten::_to_copy", "casts and copies"),
        ("aten::sum", profiling.OTHER),
    ],
)
def test_operations_are_told_apart(name, kind):
    assert profiling.kind_of(name) == kind


@pytest.mark.slow
def test_a_quick_run_of_all_variants():
    command = [sys.executable, "-m", "benchmarks.speed", "--quick", "--no_page"]
    done = subprocess.run([*command, "stage2", "stage1", "sampling"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| ours") == 3 + 2 * 2 + 2
