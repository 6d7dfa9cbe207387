"""Consistency models: boundary, losses at the exact function of a Gaussian, shared masks, both schedulers' chains."""

import math
from functools import partial

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, FlowMatchLCMScheduler, LCMScheduler
from torch import Tensor, nn

from ldm_kit.diffusion import consistency as cm
from ldm_kit.diffusion import consistency_targets as targets
from ldm_kit.diffusion.analytic import Gaussian, Mixture
from ldm_kit.diffusion.consistency_curricula import karras_levels
from ldm_kit.diffusion.consistency_samplers import consistency, karras_consistency
from ldm_kit.diffusion.denoiser import NetworkDenoiser, times_like
from ldm_kit.diffusion.guidance import ClassifierFree
from ldm_kit.diffusion.prediction import Prediction, expand_like
from ldm_kit.diffusion.respacing import trailing
from ldm_kit.diffusion.samplers import heun
from ldm_kit.diffusion.schedule import Schedule, flow, linear, scaled_linear, zero_terminal

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
SCHEDULES = {"linear": linear(), "zero": zero_terminal(scaled_linear()), "flow": flow()}
M, S = 0.7, 0.4  # mean and deviation of the data


def network(x: Tensor, t: Tensor, cond: object = None) -> Tensor:
    return torch.sin(3 * x) + expand_like(t, x) / 1000


def end_of(schedule: Schedule, x: Tensor, t: Tensor, r: Tensor | None = None) -> Tensor:
    """The ODE of a Gaussian: the point at r (clean data) of the trajectory through x at t."""
    (a, s), (b, u) = schedule.alpha_sigma(t), schedule.alpha_sigma(torch.full_like(t, -1) if r is None else r)
    spread = ((b * S).square() + u.square()).sqrt() / ((a * S).square() + s.square()).sqrt()
    return expand_like(b, x) * M + expand_like(spread, x) * (x - expand_like(a, x) * M)


def test_clean_data_are_their_own_end_whatever_the_denoiser():
    denoiser = NetworkDenoiser(network, linear(), "eps")
    x, t = torch.randn(3, 1, 2, 2), torch.tensor([-1, 5, -1])
    end = cm.consistency_function(denoiser)(x, t)
    assert torch.equal(end[[0, 2]], x[[0, 2]])
    assert not torch.equal(end[1], x[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_boundary_is_exact(dtype):
    x = torch.randn(8, 3, dtype=dtype)
    assert torch.equal(cm.KarrasConsistency(network)(x, torch.full((8,), cm.SIGMA_MIN, dtype=dtype)), x)
    for kind, target in (("linear", "eps"), ("zero", "v"), ("flow", "flow")):
        denoiser = cm.ConsistencyDenoiser(NetworkDenoiser(network, SCHEDULES[kind], target))
        assert torch.equal(denoiser(x, torch.zeros(8).long()).x_0, x)
        f = cm.consistency_function(denoiser)
        assert torch.equal(f(x, torch.full((8,), -1)), x)
        assert not torch.isclose(f(x, torch.full((8,), 500)), x).all()


def test_scalings_are_those_of_edm_and_of_diffusers():
    sigma = karras_levels(20)
    c_skip, c_out, c_in = cm.cm_scalings(sigma, 0.0)
    x_0, eps = torch.randn(20, 2000).double() / 2, torch.randn(20, 2000).double()
    x = x_0 + sigma[:, None] * eps
    wanted = (x_0 - c_skip[:, None] * x) / c_out[:, None]  # what F must predict has variance 1 (Karras et al. 2022)
    assert torch.allclose(wanted.std(1), torch.ones(20).double(), atol=0.1)
    assert torch.allclose((c_in[:, None] * x).std(1), torch.ones(20).double(), atol=0.1)
    scheduler = CMStochasticIterativeScheduler()
    for ours, theirs in zip(
        cm.cm_scalings(sigma)[:2], scheduler.get_scalings_for_boundary_condition(sigma), strict=True
    ):
        assert torch.allclose(ours, theirs)
    assert torch.allclose(cm.cm_time(sigma), torch.from_numpy(scheduler.sigma_to_t(sigma.numpy())))
    t = torch.arange(0, 1000, 7)
    for ours, theirs in zip(
        cm.lcm_scalings(t), LCMScheduler().get_scalings_for_boundary_condition_discrete(t), strict=True
    ):
        assert torch.allclose(ours.float(), theirs)


@pytest.mark.parametrize("step", ["euler", "heun"])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_exact_function_loses_nothing_to_distillation_but_the_steps_error(kind, step):
    """The distance of f(x_t) and f(x_r) is the local error of the teacher's step: order 2 for Euler, 3 for Heun."""
    schedule = SCHEDULES[kind]
    teacher, x = Gaussian(schedule, M, S), torch.randn(64, 1).double()
    exact: cm.ConsistencyFunction = partial(end_of, schedule)
    t, distances = torch.full((64,), 600), []
    for width in (80, 40, 20):
        r = t - width
        x_r = targets.ddim_step(teacher(x, t), r, schedule) if step == "euler" else targets.heun_step(teacher, x, t, r)
        distances.append(float(cm.consistency_loss(exact, exact, cm.Pair(x, t, x_r, r), cm.l1).mean()))
    order = math.log2(distances[0] / distances[2]) / 2
    assert order > (1.8 if step == "euler" else 2.7)
    assert distances[-1] < 1e-2 * float((exact(x, t) - x).abs().mean())


def grid(count: int = 400) -> tuple[Tensor, Tensor]:
    """Points and weights by which a smooth function of a standard normal number is integrated."""
    z = torch.linspace(-7, 7, count, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2)
    return z, weight / weight.sum()


TWO = Mixture(linear(), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.3, 0.5]), torch.tensor([0.25, 0.75]))


def mixture_grid() -> tuple[Tensor, Tensor, Tensor]:
    """x_0 and eps [B, 1] with weights [B], which sum over the mixture and the noise."""
    z, w = grid(90)
    x_0 = torch.cat([m + s * z for m, s in zip(TWO.means[:, 0].double(), TWO.stds.double(), strict=True)])
    p = torch.cat([q * w for q in TWO.weights.double()])
    return (
        x_0.repeat_interleave(len(z))[:, None],
        z.repeat(len(x_0))[:, None],
        (p[:, None] * w).flatten(),
    )


def gradient(pair: cm.Pair, weight: Tensor) -> float:
    """The derivative of the expected squared loss by a parameter of a function that is not consistent."""
    theta = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    schedule = TWO.schedule

    def f(x: Tensor, t: Tensor) -> Tensor:
        a, s = (expand_like(c, x) for c in schedule.alpha_sigma(t))
        return torch.tanh(theta * x) * a + s * theta * x.square() / 4

    loss = (weight * cm.consistency_loss(f, f, pair, cm.l2)).sum()
    return float(torch.autograd.grad(loss, theta)[0])


def test_training_and_distillation_agree_as_the_levels_grow():
    """Song et al. 2023, theorem 2: L_CD = L_CT + o(1 / N). Gradients of both, integrated over data and noise."""
    x_0, eps, weight = mixture_grid()
    t, differences, sizes = torch.full((len(x_0),), 500), [], []
    for width in (64, 16, 4):
        r = t - width
        x = TWO.schedule.add_noise(x_0, eps, t)
        trained = cm.Pair(x, t, targets.ddim_step(Prediction(x_0, eps), r, TWO.schedule), r)
        distilled = cm.Pair(x, t, targets.ddim_step(TWO(x, t), r, TWO.schedule), r)
        one, other = gradient(trained, weight), gradient(distilled, weight)
        differences.append(abs(one - other))
        sizes.append(abs(other))
    assert differences[2] / sizes[2] < differences[1] / sizes[1] < differences[0] / sizes[0]
    assert differences[2] / sizes[2] < 0.05
    assert math.log(differences[1] / differences[2], 4) > 1.5  # of second order: the gradients are of first


def test_the_exact_function_of_a_gaussian_is_where_trainings_gradient_vanishes():
    """At the exact function the gradient of CT's loss falls faster than the width of its steps."""
    z, w = grid(120)
    x_0, eps, weight = (M + S * z).repeat_interleave(120)[:, None], z.repeat(120)[:, None], (w[:, None] * w).flatten()
    schedule, t, ratios = linear(), torch.full((len(weight),), 400), {1.0: [], 1.2: []}
    for value, found in ratios.items():
        for width in (40, 10):
            r, scale = t - width, torch.tensor(value, dtype=torch.float64, requires_grad=True)
            x = schedule.add_noise(x_0, eps, t)
            pair = cm.Pair(x, t, targets.ddim_step(Prediction(x_0, eps), r, schedule), r)

            def f(x: Tensor, t: Tensor, scale: Tensor = scale) -> Tensor:
                a, _ = (expand_like(c, x) for c in schedule.alpha_sigma(t))
                return M + scale.pow(a) * (end_of(schedule, x, t) - M)

            loss = (weight * cm.consistency_loss(f, f, pair, cm.l2)).sum()
            found.append(abs(float(torch.autograd.grad(loss, scale)[0])) / width)
    assert ratios[1.0][1] < 0.3 * ratios[1.0][0]
    assert ratios[1.0][1] < 0.02 * ratios[1.2][1]


class Dropped(nn.Module):
    """A small network with dropout, over points of the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Dropout(0.3), nn.Linear(64, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([x, t[:, None].to(x) / 1000], dim=1))


@pytest.mark.parametrize("metric", [cm.l1, cm.l2, cm.pseudo_huber])
def test_equal_levels_give_no_loss_at_all_as_student_and_target_share_their_masks(metric):
    torch.manual_seed(0)
    net, x, t = Dropped().train(), torch.randn(16, 2), torch.full((16,), 300)
    loss = cm.consistency_loss(net, net, cm.Pair(x, t, x, t), metric)
    assert torch.equal(loss, torch.zeros(16))
    loss.sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in net.parameters())
    assert not torch.equal(net(x, t), net(x, t)), "the masks do not change, so that sharing them shows nothing"


def test_the_target_has_no_gradient():
    net, x, t = Dropped().eval(), torch.randn(4, 2), torch.full((4,), 300)
    goal = net(x, t - 100).detach()
    ours, by_hand = (
        torch.autograd.grad(loss.sum(), list(net.parameters()))
        for loss in (cm.consistency_loss(net, net, cm.Pair(x, t, x, t - 100), cm.l2), cm.l2(net(x, t), goal))
    )
    assert all(torch.equal(one, other) for one, other in zip(ours, by_hand, strict=True))


def test_the_pseudo_huber_metric_is_of_whole_samples():
    x, y = torch.randn(5, 3, 8, 8).double(), torch.randn(5, 3, 8, 8).double()
    c = 0.00054 * math.sqrt(192)
    norm = (x - y).square().sum((1, 2, 3))
    assert torch.allclose(cm.pseudo_huber(x, y), (norm + c * c).sqrt() - c)
    assert torch.allclose(cm.pseudo_huber(x, y, 100.0), norm / 200, rtol=0.02)  # nearby: quadratic
    assert torch.allclose(cm.pseudo_huber(x, y, 1e-9), norm.sqrt(), rtol=1e-6)  # far: the norm
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="above 0"):
            cm.pseudo_huber(x, y, wrong)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_step_of_heun_is_the_samplers(kind):
    teacher, x = Gaussian(SCHEDULES[kind], M, S), torch.randn(3, 2).double()
    *_, state = heun(teacher, x, [700, 400])
    t, r = torch.full((3,), 700), torch.tensor([400, 400, -1])
    ours = targets.heun_step(teacher, x, t, r)
    assert torch.allclose(ours[:2], state.x[:2])
    assert torch.allclose(ours[2], teacher(x, t).x_0[2])


def test_guidance_is_the_samplers_with_a_scale_for_each_sample():
    one, two = (Gaussian(linear(), m, S) for m in (1.0, -1.0))

    def denoiser(x: Tensor, t: Tensor, cond: Gaussian) -> Prediction:
        return cond(x, t)

    denoiser.schedule = linear()  # pyright: ignore[reportFunctionMemberAccess]
    x, t, scales = torch.randn(3, 2).double(), torch.full((3,), 500), torch.tensor([1.0, 2.5, 8.0])
    ours = targets.guided_prediction(one(x, t), two(x, t), scales)
    for i, scale in enumerate(scales.tolist()):
        guided = ClassifierFree(denoiser, two, scale)(x, t, one)  # pyright: ignore[reportArgumentType]
        assert torch.allclose(ours.x_0[i], guided.x_0[i])
        assert torch.allclose(ours.eps[i], guided.eps[i])


@pytest.mark.parametrize("kind", SCHEDULES)
def test_progressive_distillation_aims_where_two_steps_of_the_teacher_end(kind):
    schedule, x = SCHEDULES[kind], torch.randn(4, 2).double()
    teacher = Gaussian(schedule, M, S)
    t, middle, end = (torch.tensor([time] * 3 + [other]) for time, other in ((800, 100), (600, 50), (400, -1)))
    x_0 = targets.progressive_distillation_target(teacher, x, t, (middle, end))
    a, s = (expand_like(c, x) for c in schedule.alpha_sigma(t))
    student = targets.ddim_step(Prediction(x_0, (x - a * x_0) / s), end, schedule)
    first = targets.ddim_step(teacher(x, t), middle, schedule)
    assert torch.allclose(student, targets.ddim_step(teacher(first, middle), end, schedule))


@pytest.mark.parametrize("kind", ["linear", "zero"])
@pytest.mark.parametrize("steps", [1, 2, 4, 10])
def test_the_chain_is_that_of_the_lcm_scheduler(kind, steps):
    schedule = SCHEDULES[kind]
    betas = 1 - (schedule.a / torch.cat([torch.ones(1), schedule.a[:-1]])).square()
    scheduler = LCMScheduler(
        trained_betas=betas.tolist(), prediction_type="v_prediction", original_inference_steps=len(schedule)
    )
    scheduler.set_timesteps(steps)
    times = trailing(len(schedule), steps)
    assert scheduler.timesteps.tolist() == times[:-1]
    denoiser, x, states = NetworkDenoiser(network, schedule, "v"), torch.randn(3, 2, 4), []
    generator, fresh = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    for state in consistency(denoiser, x, times, noise=lambda _, shape: torch.randn(3, *shape, generator=fresh)):
        states.append(state.x)
    theirs = x
    for state, t in zip(states, scheduler.timesteps, strict=True):
        theirs = scheduler.step(network(theirs, times_like(theirs, int(t))), t, theirs, generator=generator)[0]
        assert torch.allclose(state, theirs, atol=2e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_chain_of_flow_is_that_of_its_lcm_scheduler(steps):
    times = trailing(1000, steps)
    scheduler = FlowMatchLCMScheduler()
    scheduler.set_timesteps(timesteps=times[:-1])
    fresh, generator = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    theirs = x = torch.randn(3, 2, 4)
    chain = consistency(
        NetworkDenoiser(network, flow(), "flow"),
        x,
        times,
        noise=lambda _, shape: torch.randn(3, *shape, generator=fresh),
    )
    for state, t in zip(chain, scheduler.timesteps, strict=True):
        theirs = scheduler.step(network(theirs, times_like(theirs, int(t))), t, theirs, generator=generator)[0]
        assert torch.allclose(state.x, theirs, atol=1e-5)


@pytest.mark.parametrize("indices", [[0], [22, 0], [38, 17, 0]])
def test_the_chain_of_karras_levels_is_that_of_diffusers(indices):
    scheduler = CMStochasticIterativeScheduler()
    scheduler.set_timesteps(timesteps=indices)
    sigmas = karras_levels(40).flip(0)[sorted(indices)].tolist()
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4)
    generator, fresh = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    chain = karras_consistency(
        cm.KarrasConsistency(network), x, sigmas, noise=lambda _, shape: torch.randn(3, *shape, generator=fresh)
    )
    theirs = x * scheduler.init_noise_sigma
    for ours, t in zip(chain, scheduler.timesteps, strict=True):
        scaled = scheduler.scale_model_input(theirs, t)
        theirs = scheduler.step(network(scaled, t.expand(3)), t, theirs, generator=generator)[0]
        assert torch.allclose(ours, theirs, atol=1e-4)


class Exact:
    """The exact consistency function of a Gaussian as a denoiser."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __call__(self, x: Tensor, t: Tensor, cond: object = None) -> Prediction:
        return Prediction(end_of(self.schedule, x, t), x)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_exact_function_samples_a_gaussian_in_any_number_of_steps(kind, steps):
    generator = torch.Generator().manual_seed(0)

    def fresh(step: int, shape: object) -> Tensor:
        return torch.randn(20_000, 1, generator=generator)

    schedule = SCHEDULES[kind]
    *_, state = consistency(Exact(schedule), fresh(0, ()).double(), trailing(1000, steps), noise=fresh)
    assert abs(state.x.mean() - M) < 0.02
    assert abs(state.x.std() - S) < 0.02
