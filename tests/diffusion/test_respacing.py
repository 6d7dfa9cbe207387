from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from ldm_kit.diffusion.respacing import leading, linspace, respaced_timesteps, respacing_sections, timesteps, trailing
from ldm_kit.diffusion.schedule import scaled_linear

WORDS = {"trailing": trailing, "leading": leading, "linspace": linspace}


@given(total=st.integers(2, 1200), data=st.data())
def test_walks_are_the_named_grids(total, data):
    steps = data.draw(st.integers(1, total))
    for word, grid in WORDS.items():
        assert timesteps(total, steps, word) == respaced_timesteps(total, steps, word) == grid(total, steps)
    assert timesteps(total, steps) == trailing(total, steps)


@given(total=st.integers(2, 1200), data=st.data())
def test_sections_are_equal_parts_of_falling_times(total, data):
    parts = data.draw(st.integers(1, min(total, 6)))
    counts = data.draw(st.lists(st.integers(1, total // parts), min_size=parts, max_size=parts))
    times = respacing_sections(total, ",".join(map(str, counts)))
    assert times[-1] == -1
    assert all(t > u for t, u in pairwise(times))
    start = 0
    for i, count in enumerate(counts):
        end = start + total // parts + (i < total % parts)
        inside = [t for t in times if start <= t < end]
        assert len(inside) == count
        assert inside[-1] == start
        assert count == 1 or inside[0] == end - 1
        start = end
    assert respacing_sections(total, str(counts[0])) == respaced_timesteps(total, 1, str(counts[0]))


@given(total=st.integers(2, 1200), data=st.data())
def test_ddim_sections_have_the_smallest_stride_that_fits(total, data):
    stride = data.draw(st.integers(1, total - 1))
    count = len(range(0, total, stride))
    times = respacing_sections(total, f"ddim{count}")
    step = times[0] - times[1] if count > 1 else stride
    assert len(times) == count + 1
    assert times[-2:] == [0, -1]
    assert {t - u for t, u in pairwise(times[:-1])} <= {step}
    assert step == min(i for i in range(1, total) if len(range(0, total, i)) == count)


@pytest.mark.parametrize("steps", [10, 25, 50, 100, 250])
def test_one_section_is_the_linspace_of_diffusers(steps):
    solver = DDPMScheduler(timestep_spacing="linspace")
    solver.set_timesteps(steps)
    assert respacing_sections(1000, str(steps))[:-1] == solver.timesteps.tolist()


@pytest.mark.parametrize("steps", [3, 7, 30, 60, 300, 700])  # none divides 1000
def test_trailing_rounds_to_the_nearest_as_diffusers_does(steps):
    solver = DDIMScheduler(timestep_spacing="trailing")
    solver.set_timesteps(steps)
    assert trailing(1000, steps)[:-1] == solver.timesteps.tolist()
    assert trailing(1000, 3) == [999, 666, 332, -1]
    assert trailing(8, 5) == [7, 5, 4, 2, 1, -1]


def test_sections_by_hand():
    assert respacing_sections(10, "ddim5") == [8, 6, 4, 2, 0, -1]
    assert respacing_sections(10, "2,3") == [9, 7, 5, 4, 0, -1]
    assert respacing_sections(11, "2,3") == [10, 8, 6, 5, 0, -1]  # the first section has the odd one
    assert respacing_sections(6, "3") == [5, 2, 0, -1]  # 2.5 is rounded to even
    assert respacing_sections(8, "3") == [7, 4, 0, -1]  # and so is 3.5
    assert respacing_sections(1000, "1") == [0, -1]
    lsun = respacing_sections(1000, "90,60,60,20,20")
    assert [sum(lo <= t < lo + 200 for t in lsun) for lo in range(0, 1000, 200)] == [90, 60, 60, 20, 20]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("ddim60", "no integer stride takes 60 of 1000 training times; the nearest that exist: ddim59 and ddim63"),
        ("ddim300", "ddim250 and ddim334"),
        ("ddim999", "ddim500 and ddim1000"),
        ("ddim1", "the nearest that exist: ddim2$"),
        ("ddim1001", "the nearest that exist: ddim1000$"),
        ("501,1", "section 1 of 501,1 has 500 of 1000 training times and cannot give 501"),
        ("10,0", "section 2 of 10,0 has 500 of 1000 training times and cannot give 0"),
        ("even", "cannot read the respacing 'even'; expected ddimN, or sections such as"),
        ("10,-3", "cannot read the respacing"),
        ("ddim", "cannot read the respacing"),
        ("", "cannot read the respacing"),
    ],
)
def test_impossible_sections_are_one_sentence(spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        respacing_sections(1000, spec)


def test_an_unknown_spacing_names_all_there_are():
    for spacing in ("even", "ddim", "10;20"):
        with pytest.raises(
            ValueError, match=r"unknown spacing .*; expected trailing, leading, linspace, ddimN, or sec"
        ):
            respaced_timesteps(1000, 10, spacing)
    with pytest.raises(ValueError, match="cannot walk 1000 training times in 1001 steps"):
        respaced_timesteps(1000, 1001, "leading")


def test_respaced_betas_rise_and_lie_above_those_that_they_stand_for():
    whole, few = (torch.tensor(trailing(1000, steps)).flip(0) for steps in (1000, 10))
    betas = scaled_linear().beta(whole[1:], whole[:-1])
    assert torch.allclose(betas, torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double().square(), atol=1e-9)
    expected = 1 - (1 - betas).unflatten(0, (10, 100)).prod(1)
    assert torch.allclose(scaled_linear().beta(few[1:], few[:-1]), expected)
