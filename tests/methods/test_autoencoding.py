"""Stage 1's task: moved latents, and a perceptual distance that sees a part of the pictures."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from pydantic import ValidationError

from autoencoder.equivariance import Move
from ldm_kit import train
from ldm_kit.data.latents import weights_digest
from ldm_kit.data.tensors import from_tensor
from ldm_kit.diffusion import rng
from ldm_kit.methods.autoencoder import AutoencoderRun, Autoencoding
from ldm_kit.training.ema import EmaConfig
from ldm_kit.training.loop import Trainer
from tests.autoencoder.test_perceptual import PACKAGE, needs_lite0
from tests.training.helpers import reset

CUSTOM = {"balance": "custom", "kl_weight": 1e-6, "learned_scale": False}


class Blur(torch.nn.Module):
    """Stands in for a trunk: a distance of its own for each picture."""

    seen = 0

    def forward(self, x, y):
        self.seen += len(x)
        return (F.avg_pool2d(x, 4) - F.avg_pool2d(y, 4)).square().mean((1, 2, 3))


def run(**more):
    net = {"kind": "kl", "resolution": 16, "widths": [8, 16], "norm_num_groups": 4, "middle_attention": False}
    given = {
        "run": "runs/none",
        "data": {"source": "openmoji", "resolution": 16},
        "train": {"steps": 9, "batch_size": 8},
    }
    return AutoencoderRun(**{**given, "autoencoder": net, "optim": {}, "perceptual": {"spec": "none"}, **more})


def task(**more):
    torch.manual_seed(0)
    made = Autoencoding(run(**more))
    made.loss.perceptual = Blur()
    made.set_ddp_modules(made.modules)
    return made


def waves(count, side=16, seed=0):
    u = torch.rand(count, 3, 2, generator=torch.Generator().manual_seed(seed)) * 6
    grid = torch.linspace(0, 1, side)
    return torch.sin(u[..., 0, None, None] * 2 * grid[:, None] + u[..., 1, None, None] * 2 * grid)


def gradient(made, x, position, step=3):
    made.autoencode.zero_grad()
    for _, loss, _ in made.losses({"x": x, "position": position}, step):
        loss.backward()
    return torch.cat([p.grad.flatten() for p in made.autoencode.parameters() if p.grad is not None])


@pytest.mark.parametrize("step", range(6))  # of which some move and some do not
def test_micro_batches_have_the_gradient_of_the_batch(step):
    made = task(equivariance={}, loss={"perceptual_every": 2})
    x, position = waves(8), torch.arange(40, 48)
    whole = gradient(made, x, position, step)
    for size in (1, 3):
        parts = [
            len(p) / 8 * gradient(made, p, q, step) for p, q in zip(x.split(size), position.split(size), strict=True)
        ]
        torch.testing.assert_close(sum(parts), whole, atol=1e-5, rtol=1e-4)


def test_a_part_of_the_pictures_stands_for_all():
    x = waves(8)
    plain, half = task(), task(loss={"perceptual_every": 2})
    expected = gradient(plain, x, torch.arange(8))
    found = []
    for start in (0, 0.5):  # one half is judged, then the other: with the same noise
        made = half.autoencode(x, torch.zeros(8, 4, 8, 8))
        judged = half.loss.judged(torch.arange(8), 8, start)
        found.append(half.loss(x, made, judged).total)
    full = half.loss(x, half.autoencode(x, torch.zeros(8, 4, 8, 8))).total
    assert float(sum(found).detach() / 2) == pytest.approx(float(full.detach()), rel=1e-5)
    assert half.loss.perceptual.seen == 4 + 4 + 8
    assert not torch.allclose(expected, gradient(half, x, torch.arange(8)))
    half.loss.perceptual.seen = 0
    for i in range(8):
        gradient(half, x[i : i + 1], torch.tensor([i]))
    assert half.loss.perceptual.seen == 4


def test_equivariance_makes_the_decoder_as_good_at_moved_latents():
    def wrong(made, move):
        with torch.no_grad():
            x = waves(16, seed=9)
            return float((made.vae.decode(move(made.vae.encode(x).latent_dist.mean)).sample - move(x)).abs().mean())

    found = {}
    for wanted in (None, {}):
        made = task(equivariance=wanted, loss={"pixel": "l2", "perceptual_weight": 0.0, **CUSTOM})
        optimiser = torch.optim.AdamW(made.autoencode.parameters(), lr=1e-2)
        for step in range(70):
            gradient(made, waves(8, seed=100 + step), torch.arange(8 * step, 8 * step + 8), step)
            optimiser.step()
        moves = [Move(8, 8, 1), Move(6, 8, 3), Move(4, 8, 2)]
        found[wanted is not None] = sum(wrong(made, move) for move in moves) / 3 / wrong(made, Move(8, 8))
    assert found[True] < 1.05 < 1.1 < found[False]


def test_what_cannot_be_moved_is_refused():
    vq = {"kind": "vq", "resolution": 16, "widths": [8, 16], "norm_num_groups": 4, "latent_channels": 4, "codes": 8}
    with pytest.raises(ValidationError, match=r"moves latents between the codes.*kind kl"):
        run(autoencoder=vq, equivariance={})
    game = {"loss": {"adversarial": {}}, "discriminator": {"layers": 2}}
    assert run(**game)
    with pytest.raises(ValidationError, match="needs pictures of 12 px, got 4"):
        run(**game, equivariance={})


@needs_lite0
def test_a_run_depends_on_the_weights_of_its_perceptual_distance():
    """Which are known by their numbers, so that a resumed run may read them from another file."""
    spec = {"spec": "timm:tf_efficientnet_lite0", "weights": f"package:{PACKAGE}"}
    data = from_tensor(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    method = Autoencoding.build(run(perceptual=spec), data, torch.device("cpu"))
    assert method.dependencies == {"perceptual.weights": weights_digest(method.perceptual)}
    assert Autoencoding.build(run(), data, torch.device("cpu")).dependencies == {}


class Waves:
    """A set of 8 pictures, of very different contrast."""

    fingerprint = "waves"

    def __init__(self):
        self.x = waves(8) * torch.logspace(-2, 0, 8)[:, None, None, None]

    def __len__(self):
        return len(self.x)

    def __getitems__(self, places):
        return {"x": self.x[[index for _, index in places]], "position": torch.tensor([p for p, _ in places])}


GAME = {"loss": {"adversarial": {"start": 0, "loss": "vanilla"}, "perceptual_every": 2}}
VQ = {"kind": "vq", "resolution": 16, "widths": [8, 16], "norm_num_groups": 4, "latent_channels": 4, "codes": 8}


def trainer(micro_batch=8, norm="group", **more):
    """A trainer of an autoencoder and its discriminator, of 8 pictures a step."""
    reset()
    judge = {"width": 8, "layers": 1, "groups": 4, "norm": norm}
    made = task(**{**GAME, "discriminator": judge, **more}, train={"steps": 9, "batch_size": 8})
    config = made.config.train.model_copy(update={"micro_batch": micro_batch})
    return Trainer(Accelerator(cpu=True), made, made.optim, config, EmaConfig(), seed=1)


def gradients(running):
    """The logs of a step, and its gradients by module."""
    stats = running.forward_backward(running._batches(Waves()))
    vectors = {
        name: torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        for name, module in running.task.modules.items()
    }
    return stats.logs, vectors


@pytest.mark.parametrize("more", [{}, {"autoencoder": VQ}, {"norm": "spectral"}], ids=["kl", "vq", "spectral"])
def test_four_micro_batches_have_the_adversarial_gradient_of_one_batch(more):
    (whole, expected), (parts, found) = (gradients(trainer(size, **more)) for size in (8, 2))
    assert whole["lambda"] > 0
    torch.testing.assert_close(parts["lambda"], whole["lambda"])
    assert set(found) == {"autoencoder", "discriminator"}
    for name, vector in expected.items():
        assert (found[name] - vector).norm() < 1e-4 * vector.norm(), name


def test_the_power_iteration_of_the_spectral_norm_counts_steps_and_not_micro_batches():
    found = []
    for size in (8, 2):
        running = trainer(size, norm="spectral")
        steps, buffers = running.train(Waves()), []
        for _ in range(2):
            next(steps)
            buffers.append(torch.cat([b.flatten() for b in running.task.discriminator.buffers()]))
        assert not torch.equal(*buffers)
        found.append(buffers[0])
    torch.testing.assert_close(*found, atol=1e-3, rtol=0)


def test_the_discriminator_is_trained_by_its_own_optimiser():
    fast = trainer(discriminator_optim={"lr": 0.03, "warmup": 0}, optim={"lr": 0.001, "warmup": 0})
    before = {name: module.state_dict() for name, module in fast.task.modules.items()}
    before = {name: {key: value.clone() for key, value in state.items()} for name, state in before.items()}
    next(fast.train(Waves()))
    for name, rate in (("discriminator", 0.03), ("autoencoder", 0.001)):  # AdamW's first step has the size of its rate
        moved = [(v - before[name][k]).abs().max() for k, v in fast.task.modules[name].state_dict().items()]
        assert float(torch.stack(moved).max()) == pytest.approx(rate, rel=0.05), name


def test_muon_leaves_the_discriminator_to_adamw_unless_told():
    wide = {
        "discriminator": {"width": 64, "layers": 1},
        "autoencoder": {**run().autoencoder.model_dump(), "widths": [8, 64]},
    }
    default = trainer(optim={"muon": {}}, **wide)
    assert set(default.optimisers) == {"autoencoder", "autoencoder.muon", "discriminator"}
    told = trainer(optim={"muon": {}}, discriminator_optim={"muon": {"lr": 0.5}}, **wide)
    assert set(told.optimisers) == {*default.optimisers, "discriminator.muon"}
    assert told._lr("discriminator.muon") == pytest.approx(0.5 / 100)


def test_every_position_has_a_posterior_noise_of_its_own():
    made, given = task(), []
    made.autoencode.register_forward_pre_hook(lambda module, inputs: given.append(inputs[1]))
    position = torch.tensor([3, 4, 11])
    for _ in made.losses({"x": waves(1).expand(3, -1, -1, -1), "position": position}, 0):
        pass
    (noise,) = given
    correlations = torch.corrcoef(noise.flatten(1)) - torch.eye(3)
    assert correlations.abs().max() < 0.2
    assert torch.equal(noise, rng.normal(0, "posterior", position, (4, 8, 8)))
    assert float(noise.std()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("every", [2, 3, 4, 16])
def test_all_processes_judge_as_many_pictures_and_each_picture_as_often_as_any(every):
    loss, count, times = task(loss={"perceptual_every": every}).loss, 24, torch.zeros(24)
    starts = torch.arange(240) / 240
    for start in starts.tolist():
        judged = loss.judged(torch.arange(count), count, start)
        times += judged
        for world in (1, 2, 3, 8):
            shares = [int(loss.judged(torch.arange(rank, count, world), count, start).sum()) for rank in range(world)]
            assert max(shares) - min(shares) <= 1
            assert sum(shares) == int(judged.sum())
    assert (times / len(starts) - 1 / every).abs().max() < 0.01


def test_which_pictures_are_judged_changes_from_step_to_step():
    made, seen = task(loss={"perceptual_every": 4}), []
    for step in range(8):
        _, _, judged, _ = made._reconstructed(
            {"x": waves(8), "position": torch.arange(8 * step, 8 * step + 8)}, step, made.autoencode
        )
        assert int(judged.sum()) == 2
        seen.append(tuple(judged.nonzero()[:, 0].tolist()))
    assert len(set(seen)) > 3


def test_evaluations_and_the_saved_statistics_are_in_the_precision_of_the_run(tmp_path, monkeypatch):
    dtypes = {}

    def watched(name, method):
        def note(module, given, output):
            dtypes.setdefault(name, set()).add(output.dtype)

        def call(self, *vae):
            handles = [net.encoder.conv_in.register_forward_hook(note) for net in (self.vae, *vae)]
            found = method(self, *vae)
            for handle in handles:
                handle.remove()
            return found

        return call

    passes = ("heldout_metrics", "samples", "_statistics")
    for name in passes:
        monkeypatch.setattr(Autoencoding, name, watched(name, getattr(Autoencoding, name)))
    reset()
    tree = run(run=str(tmp_path), train={"steps": 1, "batch_size": 4, "precision": "bf16"}).model_dump(mode="json")
    train({**tree, "log": {"tensorboard": False}}, data=from_tensor(waves(12), heldout=0.4))
    assert dtypes == {name: {torch.bfloat16} for name in passes}
