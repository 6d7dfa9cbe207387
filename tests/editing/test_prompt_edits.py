"""Inversion and inpainting against exact denoisers: errors that fall, known parts that stay."""

import math
from collections import deque
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from ldm_kit.config import UserError
from ldm_kit.diffusion.analytic import Gaussian, Mixture
from ldm_kit.diffusion.pdae import pdae_grid
from ldm_kit.diffusion.prediction import Prediction
from ldm_kit.diffusion.respacing import trailing
from ldm_kit.diffusion.rng import initial_noise
from ldm_kit.diffusion.samplers import ddim
from ldm_kit.diffusion.schedule import ScheduleConfig, build
from ldm_kit.editing import inpainting
from ldm_kit.editing.inpainting import composite, inpaint_latents, latent_mask
from ldm_kit.editing.inversion import (
    inversion_times,
    invert_latents,
    noised_start,
    options_within,
    sampling_times,
)
from ldm_kit.editing.sample_options import Img2ImgOptions, InpaintOptions, RepromptOptions
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline

LINEAR = build(ScheduleConfig(kind="linear"))
FLOW = build(ScheduleConfig(kind="flow"))


def last(states):
    return deque(states, maxlen=1)[0].x


def pictures(count=200, m=0.2, s=0.3):
    return m + s * torch.randn(count, 4, generator=torch.Generator().manual_seed(0)).double()


def error(schedule, steps, refine=0):
    """Mean squared, of the way up and back down the same times."""
    exact, x, times = Gaussian(schedule, 0.2, 0.3), pictures(), pdae_grid(1000, steps)
    up = last(invert_latents(exact, x, times, None, refine))
    return float((last(ddim(exact, up, times[::-1])) - x).square().mean())


@pytest.mark.parametrize("schedule", [LINEAR, FLOW], ids=["linear", "flow"])
def test_the_round_trips_error_falls_with_the_steps(schedule):
    errors = [error(schedule, steps) for steps in (10, 40, 160)]
    assert errors[0] > 6 * errors[1] > 36 * errors[2]


@pytest.mark.parametrize("schedule", [LINEAR, FLOW], ids=["linear", "flow"])
def test_refinement_makes_the_round_trip_nearly_exact(schedule):
    plain, refined = error(schedule, 40), [error(schedule, 40, refine) for refine in (1, 3, 12)]
    assert plain > 3 * refined[0] > 9 * refined[1]
    assert refined[2] < 1e-4 * plain


def test_another_prompt_leads_to_its_own_pictures():
    """Inverted under one component and drawn under another: each picture keeps its place within its own."""
    mixture = Mixture(
        LINEAR, torch.tensor([[-2.0], [3.0]]).double(), torch.tensor([0.3, 0.6]), torch.tensor([0.5, 0.5])
    )
    x, times = torch.tensor([[-2.3], [-2.0], [-1.4]]).double(), pdae_grid(1000, 500)
    up = last(invert_latents(mixture, x, times, 0))
    assert torch.allclose(last(ddim(mixture, up, times[::-1], 0)), x, atol=0.02)
    moved = 3.0 + 0.6 * (x + 2.0) / 0.3
    assert torch.allclose(last(ddim(mixture, up, times[::-1], 1)), moved, atol=0.05)


def half(shape=(1, 1, 4, 4)):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[..., :2] = True
    return mask


@pytest.mark.parametrize("schedule", [LINEAR, FLOW], ids=["linear", "flow"])
def test_the_known_part_stays_exactly(schedule):
    x_0 = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    exact = Gaussian(schedule, 0.0, 1.0)
    found = last(inpaint_latents(exact, x_0, half(), trailing(1000, 10), seeds=[1, 2, 3], resample=2))
    known = ~half().expand_as(x_0)
    assert torch.equal(found[known], x_0[known])
    assert (found[~known] - x_0[~known]).abs().mean() > 0.3


def test_each_picture_depends_on_its_seed_alone():
    x_0 = torch.zeros(1, 2, 4, 4)
    exact, times = Gaussian(LINEAR, 0.0, 1.0), trailing(1000, 5)
    both = last(inpaint_latents(exact, x_0.expand(2, -1, -1, -1), half(), times, seeds=[7, 8], resample=3))
    alone = last(inpaint_latents(exact, x_0, half(), times, seeds=[8], resample=3))
    assert torch.allclose(both[1:], alone, atol=1e-6)
    assert (both[0] - both[1]).abs().max() > 0.1


class Told:
    """Two coordinates with correlation 0.9 and deviation 1, exactly denoised, and a note of each evaluation."""

    def __init__(self, schedule):
        self.schedule, self.seen = schedule, []
        self.covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]]).double()

    def __call__(self, x, t, cond=None):
        self.seen.append(int(t[0]))
        a, s = (c[0] for c in self.schedule.alpha_sigma(t[:1]))
        gain = a * self.covariance @ torch.linalg.inv(a**2 * self.covariance + s**2 * torch.eye(2).double())
        x_0 = torch.einsum("ij,bjhw->bihw", gain, x)
        return Prediction(x_0, (x - a * x_0) / s)


def test_resampling_brings_what_is_new_nearer_to_the_true_conditional():
    """The second coordinate given the first at 2: its mean is 1.8. Without going back it is drawn too near to 0."""
    exact = Told(LINEAR)
    x_0 = torch.zeros(80, 2, 1, 1).double()
    x_0[:, 0] = 2.0
    mask = torch.tensor([False, True]).view(1, 2, 1, 1)
    means = []
    for resample in (1, 8):
        exact.seen.clear()
        found = last(inpaint_latents(exact, x_0, mask, trailing(1000, 50), seeds=range(80), resample=resample))
        means.append(float(found[:, 1].mean()))
        assert len(exact.seen) == 49 * resample + 1
    assert means[1] - means[0] > 0.3
    assert abs(means[1] - 1.72) < 0.15


@pytest.mark.parametrize(("resample", "mean"), [(1, 1.21), (4, 1.64), (16, 1.75)])
def test_what_resampling_is_worth_as_the_page_says(resample, mean, monkeypatch):
    """docs/editing.md. The denoiser is linear, so that the walk without any noise is the mean of all walks."""
    drawn = []
    monkeypatch.setattr(inpainting, "step_noise", lambda seeds, *where: drawn.append(where) or torch.zeros(1, 2, 1, 1))
    x_0, mask = torch.tensor([2.0, 0.0]).double().view(1, 2, 1, 1), torch.tensor([False, True]).view(1, 2, 1, 1)
    found = last(inpaint_latents(Told(LINEAR), x_0, mask, trailing(1000, 50), seeds=[0], resample=resample))
    assert float(found[0, 1]) == pytest.approx(mean, abs=0.005)
    assert len(set(drawn)) == len(drawn) > 98 * resample, "the kept part's and the step's noise, ever new"


def test_what_goes_back_has_the_noise_of_its_level():
    """Of clean data 0 that is known all over, x_t is noise of deviation s_t, however often a step is repeated."""
    deviations = []

    class Zero:
        schedule = LINEAR

        def __call__(self, x, t, cond=None):
            deviations.append((float(x.std()), float(LINEAR.s[t[0]])))
            return Prediction(torch.zeros_like(x), x / LINEAR.s[t[0]])

    x_0, nowhere = torch.zeros(1, 1, 64, 64).double(), torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    last(inpaint_latents(Zero(), x_0, nowhere, trailing(1000, 8), seeds=[0], resample=3))
    assert len(deviations) == 7 * 3 + 1
    for found, expected in deviations:
        assert found == pytest.approx(expected, rel=0.05)


def test_img2img_starts_from_the_picture_with_the_noise_of_its_time():
    x_0, seeds = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), [5, 6]
    start = noised_start(SimpleNamespace(schedule=LINEAR), x_0, seeds, 400)
    a, s = LINEAR.a[400].float(), LINEAR.s[400].float()
    torch.testing.assert_close(start, a * x_0 + s * initial_noise(seeds, (3, 4, 4)))


def test_a_latent_is_painted_anew_if_any_of_its_pixels_is():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[3, 4] = True
    found = latent_mask(mask, (4, 4))
    assert found.shape == (1, 1, 4, 4)
    assert found.nonzero()[:, 2:].tolist() == [[1, 2]]


def test_composition_is_by_pixel():
    picture, drawn = torch.zeros(3, 4, 4).byte(), torch.full((2, 3, 4, 4), 9).byte()
    found = composite(picture, drawn, half()[0, 0])
    assert found.dtype == torch.uint8
    assert found[:, :, :, :2].unique().tolist() == [9]
    assert found[:, :, :, 2:].unique().tolist() == [0]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
def test_the_strength_is_a_share_of_the_times_over_which_all_steps_are_spread(world):
    pipeline = Pipeline.load(world.model("pixels") / "model")
    up = {"image": "a.png", "source": "a", "prompt": "b"}
    assert inversion_times(pipeline, RepromptOptions(**up, steps=3), 0.3) == [0, 99, 199, 299]
    assert inversion_times(pipeline, RepromptOptions(**up, steps=10))[-1] == 999
    assert inversion_times(pipeline, RepromptOptions(**up, steps=10), 0.001) == [0, 1], "one step at least"

    def down(steps: int, strength: float = 1.0, **more) -> list[int]:
        return sampling_times(pipeline, SamplingOptions(steps=steps, **more).resolve(pipeline), strength)

    assert down(3, 0.3) == [299, 199, 99, -1]
    assert down(1, 0.1) == [99, -1], "not from pure noise"
    assert down(2, 0.1, spacing="leading") == [50, 0, -1]
    assert down(10)[0] == 999
    assert down(50, 0.003) == [2, 1, 0, -1], "no more steps than times"
    assert down(50, 0.0001) == [0, -1], "one step at least"
    named = SamplingOptions(spacing="9,5,1", steps=15).resolve(pipeline)
    assert options_within(named, 1.0) is named
    with pytest.raises(UserError, match=r"--spacing 9,5,1 is for all training times, but --strength 0\.5"):
        options_within(named, 0.5)
    assert options_within(named.model_copy(update={"own": ("spacing",)}), 0.5).spacing == "trailing"


@pytest.mark.parametrize("kind", [Img2ImgOptions, RepromptOptions])
@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("steps", 0, "greater than or equal to 1"),
        ("strength", 0.0, "greater than 0"),
        ("strength", 1.2, "less than or equal to 1"),
        ("strength", math.nan, "finite"),
        ("guidance_scale", -1.0, "greater than or equal to 0"),
        ("guidance_scale", math.inf, "finite"),
    ],
)
def test_numbers_out_of_range(kind, name, value, limit):
    needed = {"image": "a.png", "source": "a", "prompt": "b"}
    with pytest.raises(ValidationError, match=limit):
        kind(**{name: needed[name] for name in needed.keys() & kind.model_fields.keys()}, **{name: value})


def test_counts_out_of_range():
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        RepromptOptions(image="a.png", source="a", prompt="b", refine=-1)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        InpaintOptions(image="a.png", mask="m.png", resample=0)
    assert Img2ImgOptions(image="a.png", seed=2**64 - 2, count=2).seeds == [2**64 - 2, 2**64 - 1]
    with pytest.raises(ValidationError, match="--seed is 18446744073709551614; expected 0 to 2\\^64 - --count"):
        Img2ImgOptions(image="a.png", seed=2**64 - 2, count=3)
    with pytest.raises(ValidationError, match="--negative_prompt has no effect at --guidance_scale 1"):
        Img2ImgOptions(image="a.png", guidance_scale=1, negative_prompt="red")
