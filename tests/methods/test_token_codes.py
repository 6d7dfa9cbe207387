"""`method: diffae` with code.kind tokens (EncDiff), through training, saving, a prior and a consistency model."""

import json

import pytest
import torch
from safetensors.torch import load_file

from conditioning.semantic import condition_of
from ldm_kit.config import UserError
from ldm_kit.models.codes import encode_set
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.token_unet import TokenUNet
from tests.methods.semantic_toys import (
    DIFFAE,
    PDAE,
    PRIOR,
    STRIDED,
    UNET,
    base,
    checked,
    opened,
    probed,
    swapped,
    trained,
    two_factors,
)
from tests.nets.originals import perturbed

TOKENS = {"kind": "tokens", "width": 8, "hidden": [16, 16]}
ATTENDED = {**UNET, "attention_levels": [True, True], "heads": 2}
CONSISTENCY = {key: DIFFAE[key] for key in ("data", "optim", "train", "log")} | {"method": "consistency"}

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return two_factors(tmp_path_factory.mktemp("pictures") / "set")


def method_of(pictures, tmp_path, **more):
    return opened(checked(DIFFAE, pictures, tmp_path / "run", code=TOKENS, **more))


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    """The run's folder of an untrained model with tokens."""
    folder = tmp_path_factory.mktemp("tokens")
    method = method_of(pictures, folder)
    perturbed(method.module)
    (folder / "run").mkdir()
    (folder / "run" / "metrics.jsonl").write_text('{"step": 8, "semantic_loss": 1.0}')
    method.finish(folder / "run")
    return folder / "run"


def test_it_learns_numbers_that_the_decoder_listens_to(pictures, tmp_path):
    method = method_of(pictures, tmp_path, prediction_type="v", unet=ATTENDED, encoder=STRIDED)
    assert isinstance(method.module.unet, TokenUNet)
    before, own, others = method.heldout_loss(), *swapped(method)
    assert own == others
    trained(method, 120, 3e-3)
    assert method.heldout_loss() < 0.6 * before
    own, others = swapped(method)
    assert own < 0.75 * others
    records, z = method.data.train.records, encode_set(method.module.encoder, method.data.train)
    assert z.shape[1] == 8
    assert probed(z, torch.tensor([record.label for record in records])) > 0.9
    assert probed(z, torch.tensor([record.text == "right" for record in records])) > 0.9


def test_the_settings_reach_the_network_and_the_log(pictures, tmp_path):
    method = method_of(pictures, tmp_path, unet={**ATTENDED, "dropout": 0.25})
    config = method.module.unet.config
    assert (config["z_width"], config["token_width"], [*config["token_hidden"]]) == (8, 8, [16, 16])
    assert (config["heads"], config["dropout"], config["time_width"]) == (2, 0.25, 32)
    assert "codes of 8 numbers, encoder and TokenUNet with" in method.describe_model()


def test_latents_have_tokens_too(pictures, tmp_path):
    folder = base(tmp_path / "base", "latents")
    method = method_of(pictures, tmp_path, autoencoder=str(folder))
    perturbed(method.module)
    method.evaluate(8, tmp_path / "run")
    assert method.latent_shape == (4, 4, 4)
    assert (method.module.unet.config["channels"], method.module.unet.config["sample_size"]) == (4, 4)


def test_a_finished_run_leaves_a_whole_model_of_tokens(pictures, finished):
    model = SemanticModel.load(finished)
    index = json.loads((finished / "model" / "model_index.json").read_text())
    assert index["unet"] == ["ldm_kit.nets.token_unet", "TokenUNet"]
    shown = torch.randint(0, 256, (3, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    z = model.encode(shown)
    method = method_of(pictures, finished.parent)
    method.module.encoder.load_state_dict(model.encoder.state_dict())
    method.module.unet.load_state_dict(load_file(finished / "model" / "unet" / "diffusion_pytorch_model.safetensors"))
    assert torch.equal(method.model().decode(z, None, 5), model.decode(z, None, 5))
    assert torch.equal(method.model().invert(shown, z, 5), model.invert(shown, z, 5))
    for i in range(8):  # each number has a say in the picture
        other = z.clone()
        other[:, i] += 3 * model.std[i]
        assert not torch.equal(predicted(model, other), predicted(model, z))


def predicted(model, z):
    x = torch.randn(len(z), 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return model.decoder.denoiser()(x, torch.full((len(z),), 100), condition_of(z)).eps


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"code": {"kind": "token"}}, "unknown code.kind 'token'; expected one of vector, tokens"),
        ({"code": {"width": 8}}, "missing key 'code.kind'; expected one of vector, tokens"),
        ({"code": {"kind": "vector", "width": 8}}, "unknown key 'code.width'; known: kind"),
        ({"code": {"kind": "tokens", "count": 8}}, "unknown key 'code.count'; known: hidden, kind, width"),
        ({"code": {"kind": "tokens", "hidden": [0]}}, r"code: hidden widths \[0\] are not positive"),
        ({"code": TOKENS, "unet": {**ATTENDED, "heads": 3}}, "with attention cannot be cut by heads 3"),
        ({"code": "tokens"}, "code: expected a section with keys, got 'tokens'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(more, message):
    with pytest.raises(UserError, match=message) as refused:
        checked(DIFFAE, "pictures", "run", **more)
    assert "\n" not in str(refused.value)


def test_a_pdae_has_no_tokens():
    with pytest.raises(UserError, match="unknown key 'code'"):
        checked(PDAE, "pictures", "run", code=TOKENS, base="base")


def test_a_prior_samples_the_numbers_and_the_model_decodes_them(pictures, finished, tmp_path):
    method = opened(checked(PRIOR, pictures, tmp_path / "run", model=str(finished)))
    trained(method, 2)
    method.save(tmp_path / "model")
    model = SemanticModel.load(tmp_path / "model")
    z = model.sample_z([0, 1], 4)
    assert z.shape == (2, 8)
    assert not torch.equal(z[0], z[1])
    assert model.decode(z, None, 4).shape == (2, 3, 8, 8)


def test_it_becomes_a_consistency_model_that_keeps_its_codes(pictures, finished, tmp_path):
    more = {"base": str(finished), "mode": "tune", "sample": {"steps": 2}}
    method = opened(checked(CONSISTENCY, pictures, tmp_path / "run", **more))
    ((_, loss, _),) = method.losses(method.batches.__getitems__([(i, i) for i in range(8)]), 0)
    loss.backward()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0 for p in method.student.ema_modules["unet"].tokens.parameters()
    )
    method.save(tmp_path / "model")
    model, was = SemanticModel.load(tmp_path / "model"), SemanticModel.load(finished)
    shown = method.data.heldout.pictures(range(2))
    assert torch.equal(model.encode(shown), was.encode(shown))
    assert model.decode(model.encode(shown), None, 2).shape == shown.shape
