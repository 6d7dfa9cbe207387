import pytest
import torch

from ldm_kit.diffusion.denoiser import Clipped, NetworkDenoiser
from ldm_kit.diffusion.respacing import leading
from ldm_kit.diffusion.samplers import ddim
from ldm_kit.diffusion.schedule import from_betas
from ldm_kit.nets.mlp_skip import SkipMLP, SkipMLPConfig
from tests.nets.originals import perturbed

CONFIG = SkipMLPConfig(hidden=32, layers=4)


def tiny(**more):
    torch.manual_seed(0)
    return SkipMLP(z_width=8, **CONFIG.model_dump(), **more)


def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 8, generator=generator), torch.tensor([0, 500, 999])


@pytest.mark.parametrize("layers", [10, 20])
def test_the_published_sizes(layers):
    with torch.device("meta"):
        count = sum(p.numel() for p in SkipMLP(**SkipMLPConfig(layers=layers).model_dump()).parameters())
    time = 64 * 512 + 512 + 512 * 512 + 512
    scale_and_norm = 512 * 2048 + 2048 + 2 * 2048
    first, between, last = 512 * 2048 + 2048, 2560 * 2048 + 2048, 2560 * 512 + 512
    assert count == time + first + (layers - 2) * between + (layers - 1) * scale_and_norm + last


def test_the_weights_start_as_described():
    net = SkipMLP()
    hidden, scale = net.stack[3].linear.weight, net.stack[3].scale.weight
    assert hidden.std().item() == pytest.approx((2 / 2560) ** 0.5, rel=0.01)
    assert scale.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.01)
    assert net.out.weight.abs().max() <= 2560**-0.5  # torch's own, uniform


def test_every_layer_sees_the_noisy_code_again():
    net, (z, t) = tiny().eval(), inputs()
    with torch.no_grad():
        for layer in net.stack:
            layer.linear.weight[:, : -8 if layer is not net.stack[0] else None] = 0  # nothing is handed on
    assert (net(z, t) - net(-z, t)).abs().max() > 0.01


def test_a_condition_starts_unheard_and_is_then_heard():
    net, (z, t), said = tiny(condition_width=5), inputs(), torch.randn(3, 5)
    assert torch.equal(net(z, t, said), net(z, t))
    perturbed(net)
    assert (net(z, t, said) - net(z, t)).abs().max() > 1e-3
    assert torch.equal(net(z, t, torch.zeros(3, 5)), net(z, t))  # the null of guidance
    with pytest.raises(ValueError, match="built without a condition"):
        tiny()(z, t, said)


def test_it_is_the_network_of_a_denoiser_of_vectors():
    net, (z, t) = perturbed(tiny(condition_width=5)), inputs()
    schedule = from_betas(torch.full((1000,), 0.008))
    denoiser = NetworkDenoiser(net, schedule, "eps")
    p = denoiser(z, t, torch.randn(3, 5))
    assert p.x_0.shape == (3, 8)
    *_, state = ddim(Clipped(denoiser), z, leading(1000, 10), torch.randn(3, 5))
    assert state.x.shape == (3, 8)
    assert state.x.abs().max() <= 1
    assert schedule.a[-1].square().item() == pytest.approx(3.248e-4, rel=1e-3)


def test_a_saved_net_comes_back_exactly(tmp_path):
    net, (z, t) = perturbed(tiny(condition_width=5)), inputs()
    net.save_pretrained(tmp_path)
    assert torch.equal(SkipMLP.from_pretrained(tmp_path)(z, t, z[:, :5]), net(z, t, z[:, :5]))
    assert net.to(torch.bfloat16)(z, t).dtype == torch.bfloat16
