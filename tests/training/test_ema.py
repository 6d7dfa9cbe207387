import pytest
import torch
from torch import nn

from ldm_kit.training.ema import Ema, EmaConfig, decay_at, power_exponent


class Net(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=dtype))
        self.register_buffer("running", torch.zeros(2, dtype=dtype))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))


def walked(config, steps, dtype=torch.float32):
    """A net whose weights were 1, 2, ... after each step, and its average."""
    net = Net(dtype)
    ema = Ema(config, {"net": net})
    for step in range(1, steps + 1):
        with torch.no_grad():
            net.weight.fill_(step)
            net.running.fill_(-step)
        ema.update(step)
    return net, ema


@pytest.mark.parametrize(("std", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_exponents_of_karras(std, gamma):
    assert power_exponent(std) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2])
def test_power_is_an_explicit_weighted_average(std):
    """beta_t = (1 - 1/t)^(gamma + 1) unrolled: weight of step i among t is prod of later betas times (1 - beta_i)."""
    steps, gamma = 40, power_exponent(std)
    weights, left = [], 1.0
    for i in range(steps, 0, -1):
        beta = (1 - 1 / i) ** (gamma + 1)
        weights.append(left * (1 - beta))
        left *= beta
    assert left == 0
    assert sum(weights) == pytest.approx(1)
    expected = sum(w * i for w, i in zip(weights, range(steps, 0, -1), strict=True))
    _, ema = walked(EmaConfig(std=std), steps)
    assert ema.averages["net"]["weight"].tolist() == pytest.approx([expected] * 3, rel=1e-5)


def test_the_profile_has_the_width_it_is_named_for():
    steps, gamma = 4000, power_exponent(0.1)
    t = torch.arange(1, steps + 1).double() / steps
    profile = t**gamma / (t**gamma).sum()
    mean = (profile * t).sum()
    assert ((profile * (t - mean) ** 2).sum().sqrt()).item() == pytest.approx(0.1, abs=1e-3)


def test_constant_warms_up():
    config = EmaConfig(kind="constant", decay=0.99)
    assert [decay_at(config, n) for n in (1, 10, 890, 10_000)] == pytest.approx([2 / 11, 11 / 20, 0.99, 0.99])
    _, ema = walked(config, 3)
    expected = 0.0
    for n in (1, 2, 3):
        expected += (1 - (1 + n) / (10 + n)) * (n - expected)
    assert ema.averages["net"]["weight"].tolist() == pytest.approx([expected] * 3)


def test_none_is_the_weights_themselves_and_no_copy():
    net, ema = walked(EmaConfig(kind="none"), 7)
    assert ema.averages == {}
    with ema.applied():
        assert net.weight.tolist() == [7.0] * 3


def test_buffers_are_averaged_and_integers_left_alone():
    _, ema = walked(EmaConfig(), 7)
    assert ema.averages["net"].keys() == {"weight", "running"}
    assert torch.equal(ema.averages["net"]["running"][:1], -ema.averages["net"]["weight"][:1])


def test_averages_are_float32_whatever_the_weights_are():
    net, ema = walked(EmaConfig(kind="constant", decay=0.999), 300, torch.bfloat16)
    assert {value.dtype for value in ema.averages["net"].values()} == {torch.float32}
    with ema.applied():
        assert net.weight.dtype == torch.bfloat16


def test_weights_come_back_whatever_happens():
    net, ema = walked(EmaConfig(), 7)
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def evaluate():
        with ema.applied():
            assert torch.equal(net.weight, ema.averages["net"]["weight"])
            assert not torch.equal(net.weight, before["weight"])
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        evaluate()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_averages_keep_the_layout_of_the_weights():
    net = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    ema = Ema(EmaConfig(), {"net": net})
    assert ema.averages["net"]["weight"].stride() == net.weight.stride()
    stored = {"net": {name: value.contiguous() + 1 for name, value in net.state_dict().items()}}
    ema.load(stored)
    assert torch.equal(ema.averages["net"]["weight"], stored["net"]["weight"])
    assert ema.averages["net"]["weight"].stride() == net.weight.stride()
