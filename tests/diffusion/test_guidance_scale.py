"""Model guidance at exact denoisers: its target is classifier-free guidance, for every prediction type."""

import pytest
import torch

from ldm_kit.diffusion.analytic import Mixture
from ldm_kit.diffusion.guidance import ClassifierFree
from ldm_kit.diffusion.guidance_scale import draw_scale, guidance_term, in_interval, scale_at
from ldm_kit.diffusion.prediction import PredictionType, from_prediction
from ldm_kit.diffusion.schedule import Schedule, ScheduleConfig, build, scaled_linear

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(16, 1, generator=GENERATOR).double()
T = torch.randint(0, 1000, (16,), generator=GENERATOR)
FLOW = build(ScheduleConfig(kind="flow"))
TYPES: list[tuple[PredictionType, Schedule]] = [
    ("eps", scaled_linear()),
    ("x0", scaled_linear()),
    ("v", scaled_linear()),
    ("flow", FLOW),
]


def outputs(prediction_type: PredictionType, schedule: Schedule, scale: float) -> list[torch.Tensor]:
    """What exact networks give: under the class 1, under no class, and guided at `scale`."""
    exact = Mixture(schedule, torch.tensor([[-1.0], [2.0]]), torch.tensor([0.2, 0.4]), torch.tensor([0.3, 0.7]))
    predictions = (exact(X, T, 1), exact(X, T), ClassifierFree(exact, None, scale)(X, T, 1))
    return [from_prediction(prediction_type, p, *schedule.alpha_sigma(T)) for p in predictions]


@pytest.mark.parametrize(("prediction_type", "schedule"), TYPES)
@pytest.mark.parametrize("scale", [1.0, 2.5, 8.0])
def test_the_expected_target_at_the_exact_denoiser_is_guidance_at_the_scale(prediction_type, schedule, scale):
    conditional, null, guided = outputs(prediction_type, schedule, scale)
    target = conditional + guidance_term(guided, null, torch.full((16,), scale))  # E[v*] is the conditional output
    torch.testing.assert_close(target, guided, rtol=1e-5, atol=1e-5)
    if scale > 1:
        assert (guided - conditional).abs().max() > 0.1, "guidance that changes nothing would prove nothing"


@pytest.mark.parametrize(("prediction_type", "schedule"), TYPES)
def test_targets_lead_to_guidance_from_anywhere(prediction_type, schedule):
    conditional, null, guided = outputs(prediction_type, schedule, 4.0)
    out = torch.zeros_like(guided)
    for _ in range(120):  # each step leaves 3/4 of the distance
        out = conditional + guidance_term(out, null, torch.full((16,), 4.0))
    torch.testing.assert_close(out, guided, rtol=1e-6, atol=1e-6)


def test_at_scale_1_nothing_is_added_and_nothing_has_a_gradient():
    out, null = X.clone().requires_grad_(), (X + 1).requires_grad_()
    assert torch.equal(guidance_term(out, null, torch.ones(16)), torch.zeros(16, 1))
    term = guidance_term(out, null, torch.full((16,), 2.0))
    assert not term.requires_grad
    assert torch.equal(term, torch.full((16, 1), -0.5).double())
    assert guidance_term(out.bfloat16(), null.bfloat16(), torch.full((16,), 2.0)).dtype == torch.float32


def test_each_sample_has_its_own_scale():
    term = guidance_term(torch.ones(3, 2), torch.zeros(3, 2), torch.tensor([1.0, 2.0, 4.0]))
    assert term.tolist() == [[0.0, 0.0], [0.5, 0.5], [0.75, 0.75]]


def test_scales_are_log_uniform_from_1():
    u = torch.tensor([0.0, 1 / 3, 2 / 3, 1.0], dtype=torch.float64)
    torch.testing.assert_close(draw_scale(u, 8.0), torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64))


def test_outside_the_interval_the_scale_is_1():
    t = torch.tensor([0, 19, 20, 50, 80, 81])
    assert in_interval(t, 100, (0.2, 0.8)).tolist() == [False, False, True, True, True, False]
    assert scale_at(3.0, t, 100, (0.2, 0.8)).tolist() == [1, 1, 3, 3, 3, 1]
    scales = torch.arange(2.0, 8.0)
    assert scale_at(scales, t, 100, (0.2, 0.8)).tolist() == [1, 1, 4, 5, 6, 1]
    assert torch.equal(scale_at(scales, t, 100, (0.0, 1.0)), scales)
