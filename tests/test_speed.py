"""The speed benchmark's own arithmetic: turns, ratios, phases, the page."""

import itertools
import subprocess
import sys
from functools import partial
from multiprocessing import get_context
from pkgutil import resolve_name

import pytest

from benchmarks import profile_step
from benchmarks.speed import machine, turns
from benchmarks.speed.page import put, table
from benchmarks.speed.sections import Bench, Size
from benchmarks.speed.turns import Measured, Plan, in_turns
from benchmarks.speed.world import LDM, World
from ldm_kit.config import read
from ldm_kit.methods.latent import LatentRun


@pytest.fixture
def _light(monkeypatch):
    monkeypatch.setattr(turns, "CONTEXT", get_context("spawn"))  # the usual one imports all of torch and diffusers


@pytest.mark.usefixtures("_light")
def test_every_variant_has_every_turn_and_a_failure_is_told():
    found = in_turns({"a": itertools.count, "b": itertools.count}, Plan(blocks=3, steps=2, warmup=1))
    assert {name: len(one.wall) for name, one in found.items()} == {"a": 3, "b": 3}
    with pytest.raises(RuntimeError, match=r"b failed:\n(.*\n)+TypeError: 'int' object"):
        in_turns({"b": partial(iter, 5)}, Plan(1, 1, 1))


def test_ratios_are_of_medians_and_faster_is_more():
    slow, fast = Measured([4.0, 6.0, 50.0], [4.0, 4.0, 4.0]), Measured([2.0, 2.0, 1.0], [1.0, 1.0, 1.0])
    assert fast.times(slow) == 3
    assert fast.spread(slow) == (2, 50)
    assert fast.times_cpu(slow) == 4


def test_a_section_replaces_itself_alone(tmp_path):
    page = tmp_path / "page.md"
    put("one", "first", page)
    put("two", "second", page)
    put("one", table(("a", "b"), [("\\1", "2")]), page)
    text = page.read_text()
    assert "first" not in text
    assert text.index("| \\1 | 2 |") < text.index("second")
    assert text.count("<!--") == 4


def test_the_first_size_is_the_demos_and_each_next_one_larger(tmp_path):
    bench = Bench(World(tmp_path, tmp_path, 1), Plan(1, 1, 1))
    demo = read(LatentRun, LDM, [])
    assert bench.sizes[0] == Size("demo", demo.unet.widths, demo.train.batch_size)
    assert bench.size in bench.sizes
    wanted = [read(LatentRun, LDM, list(size.overrides)) for size in bench.sizes]
    assert [one.unet.widths for one in wanted] == sorted({one.unet.widths for one in wanted})
    assert "64 and 64 channels wide, batch 3" in Size("", (64, 64), 3).shown


def test_arithmetic_grows_with_the_batch():
    given = ("unet.widths=[32]", "unet.attention_levels=[true]", "unet.norm_num_groups=8")
    one, two = (machine.step_flops(read(LatentRun, LDM, [*given, f"train.batch_size={n}"]), 16, 4) for n in (1, 2))
    assert 1.9 < two / one <= 2


def test_all_that_the_profile_wraps_is_there():
    for target in profile_step.PHASES:
        assert callable(resolve_name(target)), target


def test_time_belongs_to_the_innermost_phase(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(profile_step, "_now", lambda: (float(tick := next(ticks)), float(tick)))
    clock = profile_step.Clock()
    with clock.phase("outer"), clock.phase("inner"):
        pass
    assert clock.spent == {profile_step.REST: [1, 1], "outer": [2, 2], "inner": [1, 1]}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::convolution_backward", "convolution"),
        ("autograd::engine::evaluate_function: ConvolutionBackward0", "autograd's bookkeeping"),
        ("aten::native_group_norm_backward", "norms"),
        ("aten::bmm", "attention"),
        ("aten::mm", "linear maps"),
        ("aten::_to_copy", "casts and copies"),
        ("aten::sum", profile_step.OTHER),
    ],
)
def test_operations_are_told_apart(name, kind):
    assert profile_step.kind(name) == kind


@pytest.mark.slow
def test_a_quick_run_of_all_variants():
    command = [sys.executable, "-m", "benchmarks.speed", "--quick", "--no_page"]
    done = subprocess.run([*command, "stage2", "stage1", "sampling"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| ours") == 3 + 2 * 2 + 2
