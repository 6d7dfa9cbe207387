"""How networks are made to compute: nothing of it changes what they compute."""

import sys
import warnings
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models import attention_processor
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor, XFormersAttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from autoencoder.config import KLConfig
from autoencoder.config import build as build_autoencoder
from ldm_kit.config import UserError
from ldm_kit.nets.casting import cast_weights, is_cast
from ldm_kit.nets.execution import (
    LAYOUT_VARIABLE,
    configure_network,
    default_layout,
    layout_for,
    prepare_loaded,
    set_layout,
)
from ldm_kit.nets.half_unet import HalfUNetConfig, build_half_unet
from ldm_kit.nets.mlp_skip import SkipMLP
from ldm_kit.nets.shift_unet import ShiftUNet
from ldm_kit.nets.unet import UNetConfig, build_unet
from ldm_kit.training.config import TrainConfig

CPU = torch.device("cpu")


def execution_config(**more) -> TrainConfig:
    return TrainConfig(steps=1, batch_size=1, **more)


def unet() -> nn.Module:
    torch.manual_seed(0)
    config = UNetConfig(widths=(16, 32), attention_levels=(False, True), heads=2, norm_num_groups=8, dropout=0.1)
    return build_unet(config, sample_size=8, channels=4, cross_width=16)


def gradients(net: nn.Module, *inputs: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(1)  # of dropout, which is made again too
    out = net(*inputs)
    out = out if isinstance(out, torch.Tensor) else out.sample
    out.square().mean().backward()
    return [weight.grad for weight in net.parameters() if weight.grad is not None]


def example(kind: str):
    torch.manual_seed(0)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    match kind:
        case "unet":
            return unet().train(), (x, t, torch.randn(2, 5, 16))
        case "classifier":
            config = HalfUNetConfig(
                widths=(16, 32), attention_levels=(False, True), layers_per_block=1, head_size=8, norm_num_groups=8
            )
            return build_half_unet(config, sample_size=8, channels=4, classes=("a", "b")).train(), (x, t)
        case _:
            net = KLConfig(kind="kl", resolution=16, widths=(16, 16), latent_channels=4, norm_num_groups=8)
            return build_autoencoder(net).train(), (torch.randn(2, 3, 16, 16),)


@pytest.mark.parametrize("kind", ["unet", "classifier", "autoencoder"])
@pytest.mark.parametrize("options", [{"channels_last": True}, {"channels_last": False}])
def test_gradients_stay_in_either_layout(kind, options):
    plain, inputs = example(kind)
    plain.eval()  # dropout's masks are drawn in the order of memory
    net = deepcopy(plain)
    configure_network(net, CPU, execution_config(**options))
    assert_equal_gradients(plain, net, inputs)


@pytest.mark.parametrize("kind", ["unet", "classifier", "autoencoder"])
def test_gradients_stay_with_checkpointing(kind, layout):
    plain, inputs = example(kind)
    net = deepcopy(plain)
    configure_network(plain, CPU, execution_config())
    configure_network(net, CPU, execution_config(checkpointing=True))
    assert any(getattr(m, "gradient_checkpointing", False) for m in net.modules())
    assert not any(getattr(m, "gradient_checkpointing", False) for m in plain.modules())
    assert_equal_gradients(plain, net, inputs)


def assert_equal_gradients(plain: nn.Module, net: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    expected, computed = gradients(plain, *inputs), gradients(net, *inputs)
    assert len(computed) == len(expected) > 0
    for a, b in zip(expected, computed, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5)


def test_checkpointing_keeps_fewer_activations():
    assert held(checkpointing=True) < 0.7 * held(checkpointing=False)


def held(**how) -> int:
    """Numbers kept for the backward pass."""
    net, inputs = example("unet")
    configure_network(net, CPU, execution_config(**how))
    sizes = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        net(*inputs)
    return sum(sizes)


def test_compile_marks_blocks_and_leaves_names_alone():
    net = unet()
    names = list(net.state_dict())
    configure_network(net, CPU, execution_config(compile=True))
    marked = {type(m) for m in net.modules() if m._compiled_call_impl is not None}
    assert marked == {ResnetBlock2D, BasicTransformerBlock}
    assert list(net.state_dict()) == names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own, which pytest would make errors of inside it
def test_compiled_blocks_compute_the_same():
    plain, inputs = example("unet")
    net = deepcopy(plain)
    configure_network(plain.eval(), CPU, execution_config())
    configure_network(net.eval(), CPU, execution_config(compile=True))
    for a, b in zip(gradients(plain, *inputs), gradients(net, *inputs), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("config", "variable", "device", "amx", "last"), [
    (None, None, "cuda", True, False), (None, None, "cpu", True, True), (None, None, "cpu", False, False),
    (None, "1", "cpu", False, True), (None, "1", "cuda", False, True), (None, "0", "cpu", True, False),
    (None, "", "cpu", True, True),
    (True, "0", "cpu", False, True), (False, "1", "cuda", True, False),
])  # fmt: skip
def test_a_config_goes_before_the_environment_and_that_before_the_machine(
    config, variable, device, amx, last, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    if variable is None:
        monkeypatch.delenv(LAYOUT_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(LAYOUT_VARIABLE, variable)
    assert layout_for(device, config) is (torch.channels_last if last else torch.contiguous_format)


def test_another_value_of_the_variable_is_refused(monkeypatch):
    monkeypatch.setenv(LAYOUT_VARIABLE, "yes")
    with pytest.raises(UserError, match="LDM_KIT_CHANNELS_LAST is 'yes'; expected 0 or 1"):
        default_layout("cpu")


@pytest.mark.parametrize("kind", ["unet", "classifier", "autoencoder"])
def test_a_loaded_network_computes_the_bits_of_a_trained_one(kind, layout):
    trained, inputs = example(kind)
    loaded = deepcopy(trained)
    configure_network(trained, CPU, execution_config())
    assert prepare_loaded(loaded, CPU) is loaded
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())
    for a, b in zip(trained.parameters(), loaded.parameters(), strict=True):
        assert a.stride() == b.stride()
    with torch.no_grad():
        a, b = trained.eval()(*inputs), loaded(*inputs)
    assert torch.equal(*(out if isinstance(out, torch.Tensor) else out.sample for out in (a, b)))


def test_loaded_weights_are_aligned_and_no_longer_those_of_the_mapped_file(tmp_path, layout):
    """Matrix products may round differently for operands that are aligned differently."""
    net = SkipMLP(z_width=17, hidden=33, layers=3)
    net.save_pretrained(tmp_path)
    mapped = SkipMLP.from_pretrained(tmp_path)
    assert any(weight.data_ptr() % 64 for weight in mapped.parameters())
    loaded = prepare_loaded(mapped, CPU)
    assert not any(weight.data_ptr() % 64 for weight in loaded.parameters())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), loaded.parameters(), strict=True))


def test_every_network_inside_a_module_is_laid_out_once(layout):
    pair = nn.ModuleList([unet(), example("classifier")[0]])
    for _ in range(2):
        configure_network(pair, CPU, execution_config())
    last = layout == "channels_last"
    convolutions = [m.weight for m in pair.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) == last for weight in convolutions)
    assert {len(m._forward_hooks) for m in pair.modules() if isinstance(m, Transformer2DModel)} == {int(last)}


def test_a_frozen_base_has_the_layout_of_its_second_decoder(layout):
    base = prepare_loaded(unet(), CPU)
    set_layout(base, torch.contiguous_format if layout == "channels_last" else torch.channels_last)
    shift = prepare_loaded(ShiftUNet(base=base, z_width=4), CPU)
    last = layout == "channels_last"
    for net in (shift, base):
        weights = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert all(weight.is_contiguous(memory_format=torch.channels_last) == last for weight in weights)
        assert {len(m._forward_hooks) for m in net.modules() if isinstance(m, Transformer2DModel)} == {int(last)}


def test_rounded_weights_are_those_of_maps_and_convolutions_alone():
    net = unet()
    cast_weights(net, torch.bfloat16)
    for module in net.modules():
        kinds = {parameter.dtype for parameter in module.parameters(recurse=False)}
        assert kinds <= {torch.bfloat16 if isinstance(module, nn.Linear | nn.Conv2d) else torch.float32}


def test_an_accelerator_gets_all_weights_in_the_lower_precision():
    net, cpu = unet().to("meta"), unet()
    cast_weights(net, torch.bfloat16)
    cast_weights(cpu, torch.bfloat16)
    assert is_cast(net, torch.bfloat16)
    assert not is_cast(net, torch.float16)
    assert not is_cast(net, None)
    assert not is_cast(cpu, torch.bfloat16)  # its norms stay float32: it is called under autocast


def test_an_autoencoder_is_suited_too():
    net, _ = example("autoencoder")
    assert isinstance(net, AutoencoderKL)
    configure_network(net, CPU, execution_config(checkpointing=True))
    assert net.encoder.gradient_checkpointing
    assert net.decoder.gradient_checkpointing


def right(query, key, value, attn_bias=None, op=None, scale=None):
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=attn_bias, scale=scale)


def wrong(query, key, value, attn_bias=None, op=None, scale=None):
    return right(query, key, value, scale=scale)  # deaf to the mask


def broken(*args, **kwargs):
    raise NotImplementedError("No operator found\nfor this and that")


@pytest.mark.parametrize(("operation", "said"), [
    (right, None), (wrong, "its results are not torch's"), (broken, "No operator found"), (None, "no xformers here"),
])  # fmt: skip
def test_xformers_is_used_only_where_it_works(operation, said, monkeypatch):
    class Refused:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "xformers":
                raise ImportError("no xformers here")

    monkeypatch.setattr(sys, "meta_path", [Refused(), *sys.meta_path])
    if operation is not None:
        ops = SimpleNamespace(memory_efficient_attention=operation)
        fake = SimpleNamespace(ops=ops)
        monkeypatch.setitem(sys.modules, "xformers", fake)
        monkeypatch.setitem(sys.modules, "xformers.ops", ops)
        monkeypatch.setattr(attention_processor, "xformers", fake)
    net, plain = unet().eval(), unet().eval()
    configure_network(plain, CPU, execution_config())
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        configure_network(net, CPU, execution_config(attention="xformers"))
    found = [str(one.message) for one in heard if "xformers" in str(one.message)]
    assert found == ([] if said is None else [f"attention xformers cannot be used here ({said}); torch's own is used"])
    kinds = {type(m.processor) for m in net.modules() if isinstance(m, Attention)}
    assert kinds == {XFormersAttnProcessor if said is None else AttnProcessor}
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 16))
    a, b = net(*inputs).sample, plain(*inputs).sample
    assert torch.allclose(a, b, atol=1e-4) if said is None else torch.equal(a, b)
