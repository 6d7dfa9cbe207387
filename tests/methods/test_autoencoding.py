"""Stage 1's task: moved latents, and a perceptual distance that sees a part of the pictures."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from autoencoder.equivariance import Move
from ldm_kit.data.latents import weights_digest
from ldm_kit.data.tensors import from_tensor
from ldm_kit.methods.autoencoder import AutoencoderRun, Autoencoding
from tests.autoencoder.test_perceptual import PACKAGE, needs_lite0

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
    for start in (0, 1):  # the even ones are judged, then the odd ones: with the same noise
        made = half.autoencode(x, torch.zeros(8, 4, 8, 8))
        judged = half.loss.judged(torch.arange(start, start + 8))
        found.append(half.loss(x, made, judged).total)
    full = half.loss(x, half.autoencode(x, torch.zeros(8, 4, 8, 8))).total
    assert float(sum(found).detach() / 2) == pytest.approx(float(full.detach()), rel=1e-5)
    assert half.loss.perceptual.seen == 4 + 4 + 8
    assert not torch.allclose(expected, gradient(half, x, torch.arange(8)))
    half.loss.perceptual.seen = 0
    gradient(half, x[:1], torch.tensor([1]))
    assert half.loss.perceptual.seen == 0


def test_equivariance_makes_the_decoder_as_good_at_moved_latents():
    def wrong(made, move):
        with torch.no_grad():
            x = waves(16, seed=9)
            return float((made.vae.decode(move(made.vae.encode(x).latent_dist.mean)).sample - move(x)).abs().mean())

    found = {}
    for wanted in (None, {}):
        made = task(equivariance=wanted, loss={"pixel": "l2", "perceptual_weight": 0.0, **CUSTOM})
        optimiser = torch.optim.AdamW(made.autoencode.parameters(), lr=5e-3)
        for step in range(100):
            gradient(made, waves(16, seed=100 + step), torch.arange(16 * step, 16 * step + 16), step)
            optimiser.step()
        moves = [Move(8, 8, 1), Move(6, 8, 3), Move(4, 8, 2)]
        found[wanted is not None] = sum(wrong(made, move) for move in moves) / 3 / wrong(made, Move(8, 8))
    assert found[True] < 1.1 < 1.25 < found[False]


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
