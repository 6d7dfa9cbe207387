"""Layout, compilation, attention kernels and checkpointing on CUDA: each computes what the plain network computes."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from autoencoder.config import build as build_autoencoder
from autoencoder.kl import KLConfig
from ldm_kit.nets.apply import apply_unet
from ldm_kit.nets.execution import configure_network, set_attention, xformers_failure
from ldm_kit.nets.half_unet import HalfUNetConfig, build_half_unet
from ldm_kit.nets.unet import UNetConfig, build_unet
from ldm_kit.training.config import TrainConfig
from tests.gpu.devices import needs_cuda, rehearsed, without_dropout
from tests.nets.originals import perturbed

KINDS = ("unet", "classifier", "autoencoder")
BACKENDS = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


def config(**more: Any) -> TrainConfig:
    return TrainConfig(steps=1, batch_size=1, **more)


def network(kind: str, side: int = 8, levels: int = 2, length: int = 5) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A small network, none of whose weights is 0, and its inputs; both on the CPU."""
    torch.manual_seed(0)
    x, t = torch.randn(4, 4, side, side), torch.tensor([3, 250, 500, 700])
    shape: dict[str, Any] = {"widths": (16, 32)[-levels:], "attention_levels": (False, True)[-levels:]}
    shape |= {"norm_num_groups": 8, "layers_per_block": 1}
    match kind:
        case "unet":
            net: nn.Module = build_unet(UNetConfig(**shape, heads=2), sample_size=side, channels=4, cross_width=16)
            inputs = (x, t, torch.randn(4, length, 16))
        case "classifier":
            half = HalfUNetConfig(**shape, head_size=8)
            net, inputs = build_half_unet(half, sample_size=side, channels=4, classes=("a", "b")), (x, t)
        case _:
            kl = KLConfig(kind="kl", resolution=16, widths=(16, 16), latent_channels=4, norm_num_groups=8)
            net, inputs = build_autoencoder(kl), (torch.randn(4, 3, 2 * side, 2 * side),)
    with torch.no_grad():
        perturbed(net)
    return net.train(), inputs


def computed(net: nn.Module, inputs: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Output and gradients, on the CPU, in the order of the parameters."""
    net.to(device)
    with without_dropout():
        out = net(*(value.to(device) for value in inputs))
        out = out if isinstance(out, Tensor) else out.sample
        out.float().square().mean().backward()
    gradients = [weight.grad.float().cpu() for weight in net.parameters() if weight.grad is not None]
    return [out.detach().float().cpu(), *gradients]


def assert_near(found: Sequence[Tensor], expected: Sequence[Tensor], error: float) -> None:
    """The output, and all gradients as one vector, differ at most by this share of their length."""
    assert len(found) == len(expected) > 1
    for a, b in ((found[0], expected[0]), (flat(found[1:]), flat(expected[1:]))):
        assert float(b.norm()) > 0
        assert float((a - b).norm() / b.norm()) < error


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in tensors])


@rehearsed
@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_computes_the_same(kind, device):
    plain, inputs = network(kind)
    last = deepcopy(plain)
    configure_network(plain, device, config(channels_last=False))
    configure_network(last, device, config(channels_last=True))
    found, expected = (computed(net, inputs, device) for net in (last, plain))
    assert_near(found, expected, 1e-4)
    four = [weight for weight in last.parameters() if weight.dim() == 4 and min(weight.shape[:2]) > 1]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in four)


@pytest.mark.filterwarnings("ignore")  # the compiler's own, which pytest would make errors of inside it
@pytest.mark.parametrize("whole", [False, True], ids=["blocks", "whole"])
def test_a_compiled_network_computes_the_same(whole, device):
    """`train.compile` compiles blocks; the whole network, a program's own choice, must compile as well."""
    plain, inputs = network("unet", levels=1)
    net = deepcopy(plain)
    configure_network(plain, device, config())
    configure_network(net, device, config(compile=not whole))
    if whole:
        net.compile(dynamic=False)
    found, expected = (computed(one, inputs, device) for one in (net, plain))
    torch.compiler.reset()
    assert_near(found, expected, 1e-3)


@rehearsed
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_kernels_of_attention_agree(backend, masked, device):
    """Cross-attention of a text U-Net in bf16, under each kernel of torch's, against plain products in float32."""
    if backend != "math":
        needs_cuda(device)
    if backend == "flash" and masked:
        pytest.skip("torch's flash attention takes no mask")
    net, (x, t, tokens) = network("unet", side=16, length=80)
    net.eval()
    mask = torch.ones(4, 80, dtype=torch.bool)
    mask[:, 40:] = not masked
    condition = Cond(tokens, mask if masked else None)
    set_attention(net, device, "math")
    expected = run(net, x, t, condition, device, None)
    set_attention(net, device, "sdpa")
    with sdpa_kernel(BACKENDS[backend]):
        try:
            found = run(net, x, t, condition, device, torch.bfloat16)
        except RuntimeError as error:
            if backend in ("math", "efficient") or "No available kernel" not in str(error):
                raise
            pytest.skip(f"{backend} has no kernel for this: {error}")
    assert_near(found, expected, 0.1)
    if masked:  # what is masked has no effect
        other = Cond(torch.cat([tokens[:, :40], tokens[:, 40:] + 5], dim=1), mask)
        with sdpa_kernel(BACKENDS[backend]):
            again = run(net, x, t, other, device, torch.bfloat16)
        torch.testing.assert_close(again[0], found[0], rtol=1e-3, atol=1e-3)


class Cond:
    """A condition of tokens and a mask."""

    vector = concat = None

    def __init__(self, tokens: Tensor, mask: Tensor | None) -> None:
        self.tokens, self.mask = tokens, mask

    def to(self, device: torch.device) -> "Cond":
        return Cond(self.tokens.to(device), None if self.mask is None else self.mask.to(device))


def run(
    net: Any, x: Tensor, t: Tensor, condition: Cond, device: torch.device, dtype: torch.dtype | None
) -> list[Tensor]:
    net.to(device).zero_grad()
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        out = apply_unet(net, x.to(device), t.to(device), condition.to(device))
    out.float().square().mean().backward()
    return [out.detach().float().cpu(), *(p.grad.float().cpu() for p in net.parameters() if p.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_xformers_computes_the_same(dtype, device):
    failure = xformers_failure(device, dtype, 16)
    if failure is not None:
        pytest.skip(f"xformers cannot be used: {failure}")
    plain, inputs = network("unet", side=16)
    net = deepcopy(plain)
    set_attention(plain, device, "sdpa")
    set_attention(net, device, "xformers", dtype)
    assert {type(m.processor).__name__ for m in net.modules() if isinstance(m, Attention)} == {"XFormersAttnProcessor"}
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        found, expected = (computed(one, inputs, device) for one in (net, plain))
    assert_near(found, expected, 0.1 if dtype == torch.bfloat16 else 1e-3)


def peak(action: Callable[[], Any], device: torch.device) -> tuple[Any, int]:
    """What `action` returns, and the most bytes of CUDA memory that it took beyond what was taken before."""
    if device.type != "cuda":
        return action(), 0
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return action(), torch.cuda.max_memory_allocated() - before


@rehearsed
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_computes_the_same_in_less_memory(kind, device):
    wide = device.type == "cuda"  # so much that activations outweigh weights and the allocator's rounding
    plain, inputs = network(kind, side=32 if wide else 8)
    inputs = tuple(value.repeat(16 if wide else 2, *[1] * (value.dim() - 1)) for value in inputs)
    net = deepcopy(plain)
    configure_network(plain, device, config(channels_last=False))
    configure_network(net, device, config(channels_last=False, checkpointing=True))
    computed(deepcopy(plain), inputs, device)  # kernels and workspaces are loaded and stay
    expected, most = peak(lambda: computed(plain, inputs, device), device)
    found, less = peak(lambda: computed(net, inputs, device), device)
    assert_near(found, expected, 1e-4)
    if wide:
        assert less < 0.95 * most


def test_norms_in_16_bits_take_less_memory_and_agree(device):
    needs_cuda(device)
    peaks, gradients = [], []
    for norms in ("auto", "float32"):
        net, inputs = network("autoencoder", side=64)
        configure_network(net, device, config(precision="bf16", norms=norms))
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            gradients.append(computed(net, inputs, device))
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[0] < 0.9 * peaks[1]
    for a, b in zip(*gradients, strict=True):
        assert (a.float() - b.float()).norm() <= 0.1 * b.float().norm() + 1e-3
