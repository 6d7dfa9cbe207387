import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from ldm_kit.config import Config, UserError, check
from ldm_kit.diffusion.analytic import Gaussian
from ldm_kit.diffusion.respacing import trailing
from ldm_kit.diffusion.rng import initial_noise, step_noise
from ldm_kit.diffusion.samplers import ddim, ddpm
from ldm_kit.diffusion.schedule import linear
from ldm_kit.solvers.samplers import sample
from ldm_kit.solvers.table import (
    SAMPLERS,
    NamedSampler,
    SamplerName,
    check_sampler,
    find_sampler,
    names_where,
    sampler_help,
    sampler_names,
)

TOY = """
from ldm_kit.diffusion.samplers import ddim, ddpm
from ldm_kit.solvers.table import NamedSampler


def halves(denoiser, noise, times, cond=None):
    return ddim(denoiser, noise / 2, times, cond)


RECORD = NamedSampler(run=ddpm, adds_noise=True, options={"variance": "small"}, description="a toy")
NOTHING = 3
"""
ENTRIES = """
[ldm_kit.samplers]
toy-halves = toy_samplers:halves
toy-ddpm = toy_samplers:RECORD
toy-nothing = toy_samplers:NOTHING
ddim = toy_samplers:halves
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with samplers, as an installer would leave it."""
    info = tmp_path / "toy_samplers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy_samplers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    (tmp_path / "toy_samplers.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(SAMPLERS)
    yield
    SAMPLERS.clear()
    SAMPLERS.update(before)
    sys.modules.pop("toy_samplers", None)


class Options(Config):
    """As a run's config has it."""

    solver: SamplerName = "ddim"


EXACT, SEEDS = Gaussian(linear(), 2.0, 0.5), [3, 1]
NOISE, TIMES = initial_noise(SEEDS, (4,)), trailing(1000, 8)


def last(states):
    *_, state = states
    return state.x


@pytest.mark.usefixtures("installed")
def test_a_sampler_of_an_installed_package_is_found_by_its_name():
    assert sampler_names()[-3:] == ("toy-halves", "toy-ddpm", "toy-nothing")
    assert "toy-ddpm" in sampler_help()
    assert check(Options, {"solver": "toy-ddpm"}, "run.yaml").solver == "toy-ddpm"
    assert "toy_samplers" not in sys.modules  # names are known without an import
    assert torch.equal(last(sample("toy-halves", EXACT, NOISE, TIMES)), last(ddim(EXACT, NOISE / 2, TIMES)))
    ours = last(sample("euler-a", EXACT, NOISE, TIMES, seeds=SEEDS))
    assert torch.equal(last(sample("toy-ddpm", EXACT, NOISE, TIMES, seeds=SEEDS)), ours)
    assert torch.equal(last(sample("ddim", EXACT, NOISE, TIMES)), last(ddim(EXACT, NOISE, TIMES)))  # ours stays
    with pytest.raises(ValueError, match="toy-ddpm adds noise and needs one seed for each of 2 pictures"):
        sample("toy-ddpm", EXACT, NOISE, TIMES)
    with pytest.raises(ValueError, match="toy-halves has no eta, got 1"):
        sample("toy-halves", EXACT, NOISE, TIMES, eta=1.0)
    with pytest.raises(ValueError, match=r"'toy-nothing' of ldm_kit.samplers is 3; expected a NamedSampler"):
        find_sampler("toy-nothing")


def test_a_record_in_the_table_is_all_that_a_sampler_needs(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "own", NamedSampler(run=ddim, takes_eta=True))
    assert "own" in sampler_names()
    found, expected = (last(sample(name, EXACT, NOISE, TIMES, seeds=SEEDS, eta=0.5)) for name in ("own", "ddim"))
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match=r"heun has no eta, got 0\.5; expected ddim or own"):
        sample("heun", EXACT, NOISE, TIMES, eta=0.5)


def test_what_samplers_take():
    assert names_where(lambda one: one.shifts_mean) == ["ddpm", "ddpm-large"]
    assert names_where(lambda one: one.takes_eta) == ["ddim"]
    assert names_where(lambda one: one.adds_noise) == ["ddpm", "ddpm-large", "euler-a", "sde", "consistency"]
    assert names_where(lambda one: one.scheduler is None) == ["sde"]
    for record in SAMPLERS.values():
        assert callable(record.function)
        assert callable(replace(record, run=record.function).function)


@pytest.mark.parametrize(("name", "variance"), [("ddpm", "small"), ("ddpm-large", "large"), ("euler-a", "small")])
def test_the_variance_of_a_name_is_that_of_its_record(name, variance):
    expected = last(ddpm(EXACT, NOISE, TIMES, noise=partial(step_noise, SEEDS), variance=variance))
    assert torch.equal(last(sample(name, EXACT, NOISE, TIMES, seeds=SEEDS)), expected)


def test_an_unknown_name_is_refused_in_a_sentence():
    with pytest.raises(UserError, match=r"run.yaml: solver: unknown solver 'plms'; known are ddpm, ddpm-large, .*sde"):
        check(Options, {"solver": "plms"}, "run.yaml")
    assert check_sampler("diffusers:LMSDiscreteScheduler") == "diffusers:LMSDiscreteScheduler"
    with pytest.raises(ValueError, match="unknown solver ''"):
        check_sampler("")


def test_the_table_needs_no_torch():
    code = "import sys, ldm_kit.solvers.table as t; t.sampler_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
