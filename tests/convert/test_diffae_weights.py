from functools import partial

import pytest
import torch

from conditioning.semantic import SemanticEncoder
from ldm_kit.config import UserError
from ldm_kit.convert import diffae_weights
from ldm_kit.convert.diffae_weights import strip_prefix
from ldm_kit.nets.mlp_skip import SkipMLP
from ldm_kit.nets.semantic_unet import SemanticUNet
from tests.nets.originals import DiffAE, SkipNet, perturbed

WIDTHS, ATTENDS, DEEPER = (32, 64), (False, True), (32, 64, 64)
PUBLIC = {  # parameters of the whole autoencoder, and of its encoder, as counted on the released code
    "celeba64": (90_839_235, 19_320_512),
    "ffhq128": (128_545_155, 24_673_536),
    "horse128": (128_545_155, 24_673_536),
    "bedroom128": (128_545_155, 24_673_536),
    "ffhq256": (168_492_291, 30_150_400),
}


def published(base, multiples, *, deepest, attention, side, prior):
    """Arguments of the networks; the encoder has one level more, `deepest` times `base` wide."""
    widths = tuple(base * m for m in multiples)
    deeper = (*widths, base * deepest)
    attends, deeper_attends = (tuple(i == attention for i in range(len(w))) for w in (widths, deeper))
    return {
        "unet": {"sample_size": side, "widths": widths, "attention": attends, "dropout": 0.1},
        "encoder": {"widths": deeper, "attention": deeper_attends},
        "prior": {"layers": prior},
    }


PUBLISHED = {  # the papers' models
    "celeba64": published(64, (1, 2, 4, 8), deepest=8, attention=2, side=64, prior=10),
    "ffhq128": published(128, (1, 1, 2, 3, 4), deepest=4, attention=3, side=128, prior=10),
    "horse128": published(128, (1, 1, 2, 3, 4), deepest=4, attention=3, side=128, prior=20),
    "bedroom128": published(128, (1, 1, 2, 3, 4), deepest=4, attention=3, side=128, prior=20),
    "ffhq256": published(128, (1, 1, 2, 2, 4, 4), deepest=4, attention=4, side=256, prior=10),
}


def same(ours, theirs):
    assert theirs.abs().max() > 0.1
    return (ours - theirs).abs().max() <= 1e-5


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    return perturbed(DiffAE(WIDTHS, ATTENDS, DEEPER))


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 3, 16, 16, generator=generator),
        torch.tensor([3, 800]),
        torch.randn(2, 16, generator=generator),
    )


def test_an_autoencoder_computes_as_the_original(original, inputs):
    state = strip_prefix({f"ema_model.{name}": value for name, value in original.state_dict().items()}, "ema_model.")
    weights, settings = diffae_weights.unet_from(state, image_size=16)
    unet = SemanticUNet(**settings).eval()
    unet.load_state_dict(weights)
    weights, settings = diffae_weights.encoder_from(state)
    encoder = SemanticEncoder(**settings).eval()
    encoder.load_state_dict(weights)
    x, t, z = inputs
    with torch.no_grad():
        assert same(unet(x, t, z), original(x, t, z))
        assert same(encoder(x), original.encoder(x))
    assert count(unet) + count(encoder) == count(original) - count(original.latent_net)


def test_a_prior_computes_as_the_original(original, inputs):
    _, t, z = inputs
    weights, settings = diffae_weights.prior_from(strip_prefix(original.state_dict(), "latent_net."))
    ours = SkipMLP(**settings).eval()
    ours.load_state_dict(weights)
    with torch.no_grad():
        assert same(ours(z, t), original.latent_net(z, t))


def test_a_prior_ignores_what_its_last_layer_never_used():
    state = {**SkipNet(16, 32, 4).state_dict(), "layers.3.linear_emb.weight": torch.zeros(16, 16)}
    assert "out.weight" in diffae_weights.prior_from(state)[0]


def test_half_precision_comes_out_as_float32(original):
    half = {name: value.half() for name, value in original.state_dict().items()}
    for convert in (partial(diffae_weights.unet_from, image_size=16), diffae_weights.encoder_from):
        assert {value.dtype for value in convert(half)[0].values()} == {torch.float32}


def test_strange_names_are_refused(original):
    state = original.state_dict()
    with pytest.raises(UserError, match=r"begins with 'model\.'"):
        strip_prefix(state, "model.")
    with pytest.raises(UserError, match="1 tensors too many, such as initial"):
        diffae_weights.unet_from({**state, "initial": torch.zeros(1)}, image_size=16)
    lost = {n: v for n, v in state.items() if "output_blocks.2.0.cond_emb_layers.1.bias" not in n}
    with pytest.raises(UserError, match=r"lack output_blocks\.2\.0\.cond_emb_layers\.1\.bias"):
        diffae_weights.unet_from(lost, image_size=16)
    with pytest.raises(UserError, match=r"out\.2\.bias is \(4,\), which does not fit"):
        diffae_weights.unet_from({**state, "out.2.bias": torch.zeros(4)}, image_size=16)
    with pytest.raises(UserError, match=r"unexpected weight 'out\.9\.bias'"):
        diffae_weights.encoder_from({**state, "encoder.out.9.bias": torch.zeros(4)})
    with pytest.raises(UserError, match="an encoder of 9 blocks has no levels of 3 blocks"):
        diffae_weights.encoder_from(state, layers=3)
    with pytest.raises(UserError, match=r"no usable time_embed\.2\.weight"):
        diffae_weights.prior_from({"layers.0.gate.weight": torch.zeros(1)})


@pytest.mark.parametrize("name", PUBLIC)
def test_the_published_models_have_their_size(name):
    with torch.device("meta"):
        unet, encoder = SemanticUNet(**PUBLISHED[name]["unet"]), SemanticEncoder(**PUBLISHED[name]["encoder"])
        prior = SkipMLP(**PUBLISHED[name]["prior"])
    assert (count(unet) + count(encoder), count(encoder)) == PUBLIC[name]
    assert len(prior.stack) + 1 == PUBLISHED[name]["prior"]["layers"]
