"""Converted checkpoints compute what the original networks do."""

import pytest
import torch
from diffusers import UNet2DModel

from ldm_kit.config import UserError
from ldm_kit.convert.guided_diffusion_layout import Heads
from ldm_kit.convert.guided_diffusion_weights import build_adm_unet, class_table, classifier_from, unet_from
from ldm_kit.nets.adm import AdmUNet
from ldm_kit.nets.half_unet import HalfUNet
from ldm_kit.nets.unet import UNetConfig, build_unet
from tests.nets.adm import ADM, Half, Whole, restless, timed

SMALL = {"base": 32, "multiples": (1, 2), "layers": 1, "attention": (1,), "head_size": 16}
T = torch.tensor([0, 417, 999])


def original(**more):
    return restless(Whole(**{**SMALL, **more}))


def judge(**more):
    return restless(Half(**{**SMALL, "pool": (8, 5), **more}))


def opened(state, size=16, heads=None):
    found, settings = unet_from(state, image_size=size, heads=heads)
    unet = build_adm_unet(settings).eval()
    unet.load_state_dict(found)
    return unet


def noisy(size=16, channels=3):
    return torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(1))


def difference(one, two):
    """Return the largest difference, relative to the largest value."""
    return ((one - two).abs().max() / two.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize(
    ("changed", "heads"),
    [
        ({}, Heads(16)),
        ({"new_order": True}, Heads(16, new_order=True)),
        ({"head_size": None, "heads": 2}, Heads(count=2)),
        ({"out_channels": 6}, Heads(16)),
        ({"channels": 1, "out_channels": 2}, Heads(16)),
        ({"shift": False}, Heads(16)),
        ({"resnet": False}, Heads(16)),
        ({"multiples": (1, 1, 2, 3), "layers": 2, "attention": (1, 3)}, Heads(16)),
        ({"multiples": (2, 1, 4), "attention": (0, 2), "base": 32}, Heads(16)),
        ({"multiples": (1,), "attention": ()}, Heads(16)),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_denoiser_computes_the_same(changed, heads):
    theirs, x = original(**changed), noisy(channels=changed.get("channels", 3))
    ours = opened(theirs.state_dict(), heads=heads)
    assert type(ours) is UNet2DModel
    assert difference(ours(x, T).sample, theirs(x, T)) < 1e-5


@torch.no_grad()
def test_classes_are_added_to_the_time():
    theirs, x, y = original(classes=4), noisy(), torch.tensor([3, 0, 2])
    ours, table = opened(theirs.state_dict(), heads=Heads(16)), class_table(theirs.state_dict())
    assert difference(ours(x, T, class_labels=table[y]).sample, theirs(x, T, y)) < 1e-5
    assert difference(ours(x, T, class_labels=table[y.flip(0)]).sample, theirs(x, T, y)) > 1e-3
    assert class_table(original().state_dict()) is None


@torch.no_grad()
def test_as_many_heads_at_every_width_need_a_class_of_ours(tmp_path):
    theirs, x = original(head_size=None, heads=4, multiples=(1, 2, 3), attention=(1, 2)), noisy()
    ours = opened(theirs.state_dict(), heads=Heads(count=4))
    assert difference(ours(x, T).sample, theirs(x, T)) < 1e-5
    ours.save_pretrained(tmp_path)
    again = AdmUNet.from_pretrained(tmp_path)
    assert torch.equal(again(x, T).sample, ours(x, T).sample)


@torch.no_grad()
def test_a_first_level_half_as_wide_as_the_sinusoids():
    theirs, x = original(base=256, multiples=(0.5, 1), attention=(1,), head_size=64), noisy()
    every = torch.arange(1000)
    ours = opened(theirs.state_dict())
    time = ours.time_embedding(ours.time_proj(every))

    assert difference(time, theirs.time_embed(timed(every, 256))) < 1e-5
    assert difference(ours(x, T).sample, theirs(x, T)) < 1e-5


@torch.no_grad()
def test_the_order_of_heads_and_their_size_matter():
    theirs, x = original(), noisy()
    expected = theirs(x, T)
    for heads in (Heads(16, new_order=True), Heads(32), Heads(count=1)):
        assert difference(opened(theirs.state_dict(), heads=heads)(x, T).sample, expected) > 1e-3


@pytest.mark.parametrize(
    ("changed", "size", "heads"),
    [
        ({}, 16, Heads(16)),
        ({"new_order": True}, 16, Heads(16, new_order=True)),
        ({"multiples": (1, 1, 2), "layers": 2, "attention": (1, 2), "pool": (4, 3)}, 16, Heads(16)),
        ({"multiples": (1, 1, 2), "attention": (), "pool": (8, 3)}, 32, Heads(16)),
        ({"base": 64, "multiples": (0.5, 1), "pool": (8, 3)}, 16, Heads(16)),
    ],
)
def test_a_classifier_gives_the_same_logits_and_gradients(changed, size, heads):
    theirs = judge(**changed)
    state, settings = classifier_from(theirs.state_dict(), image_size=size, heads=heads)
    ours = HalfUNet(**settings).eval()
    ours.load_state_dict(state)
    assert ours.config["classes"] == [str(k) for k in range(theirs.out[2].c_proj.out_channels)]
    gradients = []
    for network in (ours, theirs):
        x = noisy(size).requires_grad_()
        logits = network(x, T)
        gradients.append((logits, *torch.autograd.grad(logits.log_softmax(1)[:, 1].sum(), x)))
    assert difference(gradients[0][0], gradients[1][0]) < 1e-5
    assert difference(gradients[0][1], gradients[1][1]) < 1e-5


def test_half_precision_comes_in_as_single():
    state = original().half().state_dict()
    assert {value.dtype for value in unet_from(state, image_size=16, heads=Heads(16))[0].values()} == {torch.float32}


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: {"weight": torch.zeros(3)}, "no weights of a guided-diffusion network"),
        (
            lambda s: without(s, "middle_block.1.qkv.bias"),
            r"lack 1 tensors: middle_block\.1\.qkv\.bias",
        ),
        (lambda s: without(s, "input_blocks.3.0.out_layers.3.weight"), r"no usable input_blocks\.3\.0\.out_layers\.3"),
        (lambda s: {**s, "extra": torch.zeros(1)}, "1 tensors too many: extra"),
        (lambda s: {**s, "out.0.weight": torch.zeros(7)}, r"out\.0\.weight is \(7,\)"),
        (lambda s: {**s, "input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)}, "takes 6 channels .* super-resolution"),
        (lambda s: {**s, "output_blocks.9.0.x": torch.zeros(1)}, "5 output_blocks are not 2 levels"),
        (lambda s: {**s, "out.2.weight": torch.zeros(3)}, r"no usable out\.2\.weight"),
    ],
)
def test_other_weights_are_refused_in_a_sentence(change, sentence):
    with pytest.raises(UserError, match=sentence):
        unet_from(change(original().state_dict()), image_size=16, heads=Heads(16))


def test_sizes_and_heads_that_do_not_fit_are_refused():
    state = original().state_dict()
    with pytest.raises(UserError, match=r"side 15 cannot be halved 1 times .* multiple of 2"):
        unet_from(state, image_size=15, heads=Heads(16))
    with pytest.raises(UserError, match="64 channels cannot be cut into heads of 48 channels"):
        unet_from(state, image_size=16, heads=Heads(48))
    with pytest.raises(UserError, match="64 channels cannot be cut into 3 heads"):
        unet_from(state, image_size=16, heads=Heads(count=3))
    with pytest.raises(UserError, match="no noisy classifier"):
        classifier_from(state, image_size=16)
    for size in (8, 24, 32):
        with pytest.raises(UserError, match=f"side {size} cannot|equal length"):
            classifier_from(judge().state_dict(), image_size=size, heads=Heads(16))
    for changed in ({"shift": False}, {"resnet": False}):
        with pytest.raises(UserError, match="expected AdaGN and residual blocks"):
            classifier_from(judge(**changed).state_dict(), image_size=16, heads=Heads(16))
    with pytest.raises(UserError, match="too many for a first level 32 channels"):
        unet_from(original(base=128, multiples=(0.25, 1), head_size=64).state_dict(), image_size=16)


@pytest.mark.parametrize("name", ADM)
def test_published_denoisers_are_read_at_full_size(name):
    """Without their numbers: names and shapes of all weights, and the network that takes them."""
    side, heads = int(name), Heads(count=4) if name == "128" else Heads()
    with torch.device("meta"):
        state = Whole(**ADM[name], out_channels=6, classes=1000).state_dict()
    if name == "512":
        state["time_embed.0.weight"] = torch.randn(1024, 256)  # the one whose values are looked at
    found, settings = unet_from(state, image_size=side, heads=heads)
    config = UNetConfig(preset=f"adm{name}")
    with torch.device("meta"):
        preset = build_unet(
            config, sample_size=side, channels=3, out_channels=6, cross_width=None, vector_width=config.time_width
        )
    sizes = {key: value.shape for key, value in preset.state_dict().items()}
    assert {key: value.shape for key, value in found.items() if key != "time_proj.weight"} == sizes
    for key in ("block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "class_embed_type"):
        assert settings[key] == preset.config[key]
    assert settings.get("attention_head_dim") == (None if name == "128" else 64)
    assert class_table(state).shape == (1000, config.time_width)


@pytest.mark.parametrize("name", ADM)
def test_published_classifiers_are_read_at_full_size(name):
    side = int(name)
    shape = {**ADM[name], "base": 128, "layers": 4 if name == "64" else 2, "head_size": 64, "pool": (8, 1000)}
    with torch.device("meta"):
        state = Half(**shape).state_dict()
        found, settings = classifier_from(state, image_size=side)
    assert settings["layers"] == shape["layers"]
    assert settings["widths"] == tuple(int(128 * m) for m in shape["multiples"])
    assert [side // 2**level for level, here in enumerate(settings["attention"]) if here] == [32, 16, 8]
    millions = {"64": 65, "128": 43, "256": 54, "512": 54}[name]
    assert sum(value.numel() for value in found.values()) / 1e6 == pytest.approx(millions, abs=0.6)
