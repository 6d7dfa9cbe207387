import math

import pytest
import torch

from ldm_kit.diffusion.posterior import chain
from ldm_kit.diffusion.respacing import respacing_sections, trailing
from ldm_kit.diffusion.schedule import cosine, flow, from_betas, linear, scaled_linear, zero_terminal

GRIDS = {"all": [*reversed(range(20)), -1], "some": [19, 13, 12, 4, 0, -1], "late": [18, 7, 3, -1]}


def respaced(schedule, times):
    t = torch.tensor(times).flip(0)
    return schedule.beta(t[1:], t[:-1])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("schedule", [linear(20), cosine(20), zero_terminal(scaled_linear(20))])
def test_posteriors_are_the_standard_formulas_on_the_respaced_betas(schedule, grid):
    times = GRIDS[grid]
    betas = respaced(schedule, times)
    kept = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1).double(), kept[:-1]])
    posterior = betas * (1 - before) / (1 - kept)
    coef_x0 = betas * before.sqrt() / (1 - kept)
    coef_x = (1 - before) * (1 - betas).sqrt() / (1 - kept)
    for i, one in enumerate(reversed(chain(schedule, times))):
        assert one.beta == pytest.approx(betas[i].item())
        assert one.variance == pytest.approx(posterior[i].item(), abs=1e-12)
        assert one.variance_floor == pytest.approx(posterior[max(i, 1)].item())
        assert (one.coef_x, one.coef_x0) == pytest.approx((coef_x[i].item(), coef_x0[i].item()), abs=1e-7)


def test_respaced_betas_make_the_schedule_at_those_times():
    times = respacing_sections(1000, "90,60,60,20,20")
    ours = from_betas(respaced(linear(), times))
    assert torch.allclose(ours.a, linear().a[times[-2::-1]])


def test_variances_by_name():
    *_, middle, final = chain(linear(), trailing(1000, 10))
    assert (
        middle.reverse_variance("small", None)
        == middle.variance
        < middle.beta
        == middle.reverse_variance("large", None)
    )
    assert final.reverse_variance("small", None) == 0
    assert final.reverse_variance("large", None) == middle.variance  # the replaced entry 0
    ends = torch.tensor([0.0, 0.5, 1.0, 1.2]).double()
    found = middle.reverse_variance("learned_range", ends)
    low, high = math.log(middle.variance), math.log(middle.beta)
    assert found.tolist() == pytest.approx([math.exp(low + f * (high - low)) for f in ends.tolist()])
    low, high = math.log(middle.variance), math.log(final.beta)
    assert final.reverse_variance("learned_range", ends).tolist() == pytest.approx(
        [math.exp(low + f * (high - low)) for f in ends.tolist()]
    )
    assert torch.equal(middle.reverse_variance("auto", ends), found)
    assert middle.reverse_variance("auto", None) == middle.variance


def test_flow_is_finite_to_the_last():
    for one in chain(flow(), [2, 1, 0, -1]):
        for kind in ("small", "large"):
            assert math.isfinite(one.reverse_variance(kind, None))
        assert torch.isfinite(one.reverse_variance("learned_range", torch.tensor([0.0, 1.0]))).all() or math.isnan(
            one.variance_floor
        )
    assert (one.coef_x, one.coef_x0) == (0, 1)


def test_what_is_undefined_is_refused():
    (one,) = chain(linear(), [999, -1])
    assert one.reverse_variance("small", None) == 0
    for kind in ("large", "learned_range"):
        with pytest.raises(ValueError, match=f"a chain of one step has no {kind} variance"):
            one.reverse_variance(kind, torch.zeros(1))
    with pytest.raises(ValueError, match="predictions have no fraction"):
        chain(linear(), [999, 500, -1])[0].reverse_variance("learned_range", None)
