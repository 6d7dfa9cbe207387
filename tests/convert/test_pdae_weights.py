import pytest
import torch

from conditioning.semantic import StridedEncoder
from ldm_kit.config import UserError
from ldm_kit.convert import pdae_weights
from ldm_kit.convert.guided_diffusion_layout import Heads
from ldm_kit.convert.guided_diffusion_weights import build_adm_unet
from ldm_kit.nets.shift_unet import ShiftUNet
from tests.nets.originals import Pdae, PdaeEncoder, perturbed

WIDTHS, ATTENDS = (32, 64), (False, True)


@pytest.mark.parametrize("heads", [Heads(count=1), Heads(count=2), Heads(size=32, new_order=True)])
def test_a_decoder_computes_as_the_original(heads):
    torch.manual_seed(0)
    original = perturbed(Pdae(WIDTHS, ATTENDS, heads=heads.number(64), legacy=not heads.new_order))
    weights, settings = pdae_weights.base_from(original.state_dict(), image_size=16, heads=heads)
    base = build_adm_unet(settings).eval()
    base.load_state_dict(weights)
    weights, settings = pdae_weights.shift_from(original.state_dict(), image_size=16, heads=heads)
    ours = ShiftUNet(base=base, **settings).eval()
    ours.load_state_dict(weights)
    x, t, z = torch.randn(2, 3, 16, 16), torch.tensor([3, 800]), torch.randn(2, 16)
    with torch.no_grad():
        for mine, theirs in zip(ours(x, t, z), original(x, t, z), strict=True):
            assert theirs.abs().max() > 0.1
            assert (mine - theirs).abs().max() <= 1e-5
    new = sum(p.numel() for name, p in original.named_parameters() if name.startswith(("shift_", "label_emb")))
    assert sum(p.numel() for p in ours.parameters()) == new


@pytest.mark.parametrize("attention", [None, 2])
def test_an_encoder_computes_as_the_original(attention):
    torch.manual_seed(0)
    original = perturbed(PdaeEncoder((32, 64, 64), attention, 16, 32))
    weights, settings = pdae_weights.encoder_from(original.state_dict(), resolution=32)
    ours = StridedEncoder(**settings).eval()
    ours.load_state_dict(weights)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (ours(x) - original(x)).abs().max() <= 1e-5
    assert settings["attention"] == attention


def test_what_is_no_pdae_checkpoint_is_refused():
    with pytest.raises(UserError, match="is it a plain DPM"):
        pdae_weights.shift_from({"out.0.weight": torch.zeros(1)}, image_size=16)
    with pytest.raises(UserError, match="no weights of a guided-diffusion network"):
        pdae_weights.base_from({"head": torch.zeros(1)}, image_size=16)
    with pytest.raises(UserError, match="expected encoder"):
        pdae_weights.encoder_from({"body.0.weight": torch.zeros(1)}, resolution=16)
