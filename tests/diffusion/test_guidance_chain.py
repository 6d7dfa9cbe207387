"""Guidance by several conditions with a scale for each, on denoisers that are known exactly."""

import pytest
import torch

from ldm_kit.diffusion.denoiser import times_like
from ldm_kit.diffusion.guidance import ClassifierFree, Rescaled
from ldm_kit.diffusion.guidance_chain import GuidanceChain
from ldm_kit.diffusion.prediction import Prediction
from ldm_kit.diffusion.schedule import ScheduleConfig, build

SCHEDULE = build(ScheduleConfig(kind="linear", num_train_timesteps=20))


class Shifted:
    """x_0 is x plus the condition, a sum of numbers, so that differences of conditions are known."""

    schedule = SCHEDULE

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, cond=None):
        self.calls.append(cond)
        return Prediction(x + cond, 2 * x - 3 * cond, torch.full_like(x, cond))


X, T = torch.arange(4.0).reshape(2, 2), times_like(torch.zeros(2), 5)


def test_the_chain_is_brooks_equation_3():
    model = Shifted()
    nothing, first, second = 1.0, 5.0, 12.0  # under no, one and both conditions
    p = GuidanceChain(model, (nothing, first), (2.0, 7.5))(X, T, second)
    moved = nothing + 2.0 * (first - nothing) + 7.5 * (second - first)
    assert torch.allclose(p.x_0, X + moved)
    assert torch.allclose(p.eps, 2 * X - 3 * moved)
    assert torch.equal(p.fraction, torch.full_like(X, second))  # the variance is that of all conditions
    assert sorted(model.calls) == [nothing, first, second]


def test_equal_scales_are_classifier_free_guidance():
    chain = GuidanceChain(Shifted(), (1.0, 5.0), (3.0, 3.0))(X, T, 12.0)
    plain = ClassifierFree(Shifted(), 1.0, 3.0)(X, T, 12.0)
    assert torch.allclose(chain.x_0, plain.x_0)
    assert torch.allclose(chain.eps, plain.eps)


def test_scales_of_1_ask_the_model_once():
    model = Shifted()
    chain = GuidanceChain(model, (1.0, 5.0), (1.0, 1.0))
    assert torch.equal(chain(X, T, 12.0).x_0, X + 12)
    assert model.calls == [12.0]
    assert not chain.guides


def test_rescaling_takes_back_the_contrast_of_a_chain():
    class Scaled(Shifted):
        def __call__(self, x, t, cond=None):
            return Prediction(x * cond, x * cond)

    chain = GuidanceChain(Scaled(), (1.0, 2.0), (2.0, 4.0))
    x = torch.randn(2, 8)
    p = Rescaled(chain, 1.0, "x0")(x, T, 5.0)
    assert torch.allclose(p.x_0.std(1), (5 * x).std(1), rtol=1e-5)


def test_one_scale_for_each_set_of_conditions():
    with pytest.raises(ValueError, match="got 2 scales for 1 conditions"):
        GuidanceChain(Shifted(), (1.0,), (2.0, 3.0))
