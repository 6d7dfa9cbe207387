import json
from copy import deepcopy

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.resnet import ResnetBlock2D

from conditioning.base import Condition
from ldm_kit.config import UserError
from ldm_kit.nets.shift_unet import ShiftUNet, digest
from ldm_kit.nets.unet import UNetConfig, build_unet
from tests.nets.originals import perturbed

OURS = UNetConfig(widths=(16, 32), attention_levels=(False, True), heads=2, norm_num_groups=8, dropout=0.5)
TOKENS = Condition(tokens=torch.randn(2, 5, 12), mask=torch.tensor([[True] * 5, [True] * 2 + [False] * 3]))
FOREIGN = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
CROSSED = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("CrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "time_embedding_dim": 20,
    "resnet_time_scale_shift": "scale_shift",
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 9,
}
LABELS = {"class_labels": torch.tensor([1, 4])}
BASES = {  # a frozen U-Net, and the condition that it wants
    "ours": (lambda: build_unet(OURS, sample_size=8, channels=3, cross_width=None), None),
    "vector": (
        lambda: build_unet(OURS, sample_size=8, channels=3, cross_width=None, vector_width=64),
        Condition(vector=torch.randn(2, 64)),
    ),
    "tokens": (lambda: build_unet(OURS, sample_size=8, channels=3, cross_width=12), TOKENS),
    "classes": (lambda: UNet2DModel(**FOREIGN, num_class_embeds=7), LABELS),
    "resampling": (
        lambda: UNet2DModel(**FOREIGN, resnet_time_scale_shift="scale_shift", upsample_type="resnet"),
        None,
    ),
    "joined": (  # time and class side by side, tokens at both levels
        lambda: UNet2DConditionModel(**{**FOREIGN, **CROSSED}, class_embeddings_concat=True),
        {"encoder_hidden_states": torch.randn(2, 5, 12), "class_labels": torch.randn(2, 9)},
    ),
}


def made(name="ours", **more):
    torch.manual_seed(0)
    build, condition = BASES[name]
    base = perturbed(build()).train()
    return ShiftUNet(base=base, z_width=10, **more), condition


def inputs():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 3, 8, 8, generator=generator),
        torch.tensor([3, 900]),
        torch.randn(2, 10, generator=generator),
    )


def plainly(base, x, t, condition):
    """Call the U-Net as a user of diffusers does."""
    named = condition or {}
    if isinstance(condition, Condition):
        parts = {"class_labels": condition.vector, "encoder_hidden_states": condition.tokens}
        named = {name: value for name, value in parts.items() if value is not None}
        named |= {} if condition.mask is None else {"encoder_attention_mask": condition.mask}
    return base.eval()(x, t, **named).sample


@pytest.mark.parametrize("name", BASES)
def test_the_frozen_output_is_the_plain_one_bit_for_bit(name):
    (unet, condition), (x, t, z) = made(name), inputs()
    out, gap = perturbed(unet).train()(x, t, z, condition)
    assert torch.equal(out, plainly(unet.base, x, t, condition))
    assert gap.shape == (2, 3, 8, 8)
    assert not out.requires_grad


@pytest.mark.parametrize("name", BASES)
def test_the_gradient_starts_at_zero_and_then_listens_to_everything(name):
    (unet, condition), (x, t, z) = made(name), inputs()
    assert unet(x, t, z, condition)[1].abs().max() == 0
    perturbed(unet)
    gap = unet(x, t, z, condition)[1]
    assert gap.abs().max() > 0.05
    assert (unet(x, t, -z, condition)[1] - gap).abs().max() > 1e-3
    assert (unet(x, t.flip(0), z, condition)[1] - gap).abs().max() > 1e-3
    assert (unet(-x, t, z, condition)[1] - gap).abs().max() > 1e-3


def test_only_the_new_parts_learn_and_are_kept():
    (unet, _), (x, t, z) = made(), inputs()
    before = digest(unet.base)
    optimiser = torch.optim.Adam(unet.parameters(), lr=1e-2)
    seen = []
    for _ in range(3):
        z = z.detach().requires_grad_(True)
        out, gap = unet(x, t, z)
        optimiser.zero_grad()
        (out + gap - x).square().mean().backward()
        optimiser.step()
        seen.append(z.grad.abs().max().item())
    assert seen[:2] == [0, 0]
    assert seen[2] > 0
    assert digest(unet.base) == before
    assert all(p.grad is None and not p.requires_grad for p in unet.base.parameters())
    kept = {name.split(".")[0] for name in unet.state_dict()}
    assert kept == {"z_embedding", "mid_block", "up_blocks", "conv_norm_out", "conv_out"}
    assert {name for name, _ in unet.named_parameters()} == set(unet.state_dict())


def test_the_frozen_half_never_leaves_eval():
    (unet, _), (x, t, z) = made(), inputs()
    assert unet.training
    assert not any(module.training for module in unet.base.modules())
    unet.train()
    unet.base.train()  # as whoever holds it beside us may do; it has dropout
    first, second = unet(x, t, z)[0], unet(x, t, z)[0]
    assert torch.equal(first, second)
    perturbed(unet).train()
    assert not torch.equal(unet(x, t, z)[1], unet(x, t, z)[1])  # the new half's dropout works


def test_new_parts_are_drawn_afresh_or_copied():
    fresh, copied = made("resampling")[0], made("resampling", copied=True)[0]
    theirs = dict(fresh.base.named_parameters())
    for name, value in copied.named_parameters():
        ends = ("time_emb_proj", "z_embedding", "conv_out")
        if not any(end in name for end in ends):
            assert torch.equal(value, theirs[name])
    shared = [n for n, v in fresh.named_parameters() if n in theirs and torch.equal(v, theirs[n])]
    assert not shared
    assert fresh.up_blocks[0].resnets[0].conv2.weight.abs().max() == 0
    assert fresh.up_blocks[0].resnets[0].conv1.weight.std() > 0.01


def test_a_copy_with_the_frozen_head_is_the_frozen_model():
    """So every other weight, the time's projections among them, was copied to its place."""
    (unet, _), (x, t, z) = made("resampling", copied=True), inputs()
    unet.conv_out.load_state_dict(unet.base.conv_out.state_dict())
    out, gap = unet.eval()(x, t, z)
    assert torch.allclose(out, gap, atol=1e-5)


def test_a_saved_estimator_comes_back_on_its_base(tmp_path):
    unet, (x, t, z) = perturbed(made("tokens")[0]), inputs()
    unet.save_pretrained(tmp_path)
    back = ShiftUNet.from_pretrained(tmp_path, base=unet.base)
    for one, two in zip(back(x, t, z, TOKENS), unet(x, t, z, TOKENS), strict=True):
        assert torch.equal(one, two)
    assert back.config["base_digest"] == digest(unet.base)
    stored = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert stored < 4 * sum(p.numel() for p in unet.parameters()) + 20_000


def test_another_base_is_refused(tmp_path):
    unet, _ = made()
    unet.save_pretrained(tmp_path)
    unet.base.to(torch.bfloat16)
    ShiftUNet.from_pretrained(tmp_path, base=unet.base)  # the same model in half the bits
    with pytest.raises(UserError, match="not the one that this gradient estimator was trained on"):
        ShiftUNet.from_pretrained(tmp_path, base=perturbed(unet.base, seed=1))


@pytest.mark.parametrize("trained", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("opened", [torch.float32, torch.float16, torch.bfloat16])
def test_a_base_is_the_same_in_whatever_precision_it_is_stored(trained, opened, tmp_path):
    """Some weights are chosen so that rounding to float16 first would change the bfloat16 that they are rounded to."""
    weights = made()[0].base
    halfway = (
        (1 + 2**-8) * (1 + 2.0**-14) * torch.linspace(0.5, 2, weights.conv_in.weight.numel()).log2().round().exp2()
    )
    weights.conv_in.weight.data = halfway.view_as(weights.conv_in.weight)
    assert digest(weights) != digest(deepcopy(weights).half())
    unet = ShiftUNet(base=deepcopy(weights).to(trained), z_width=8)
    unet.save_pretrained(tmp_path)
    if {trained, opened} == {torch.float16, torch.bfloat16}:
        opened = torch.float32  # rounded twice, the weights are others
    back = ShiftUNet.from_pretrained(tmp_path, base=deepcopy(weights).to(opened))
    assert back.config["base_digest"] == unet.config["base_digest"]
    with pytest.raises(UserError, match="its weights differ"):
        ShiftUNet.from_pretrained(tmp_path, base=perturbed(deepcopy(weights), seed=1).to(opened))


def test_an_estimator_of_before_knows_its_base_in_bfloat16_alone(tmp_path):
    unet, _ = made()
    unet.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("base_digest_float16") == digest(unet.base, torch.float16)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ShiftUNet.from_pretrained(tmp_path, base=unet.base).config["base_digest"] == digest(unet.base)
    with pytest.raises(UserError, match="its weights differ"):
        ShiftUNet.from_pretrained(tmp_path, base=perturbed(unet.base, seed=1))


def test_a_learned_variance_is_not_shifted():
    torch.manual_seed(0)
    base = UNet2DModel(**FOREIGN, in_channels=3, out_channels=6)
    out, gap = ShiftUNet(base=base, z_width=10, learned_range=True)(*inputs())
    assert out.shape[1] == 6
    assert gap.shape[1] == 3


def test_checkpointing_changes_no_gradient():
    def gradients(checkpointing):
        unet, _ = made("resampling")
        perturbed(unet).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet(*inputs())[1].square().sum().backward()
        assert not unet.base.up_blocks[0].gradient_checkpointing
        return [p.grad for p in unet.parameters()]

    for plain, kept in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(plain, kept, atol=1e-6)


def test_moving_and_casting_takes_the_base_along():
    unet, (x, t, z) = perturbed(made()[0]), inputs()
    exact = unet(x, t, z)[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert (unet(x, t, z)[1] - exact).abs().max() < 0.1 * exact.abs().max()
    unet.base.to(torch.bfloat16)
    assert unet(x, t, z)[1].dtype == torch.float32  # a base in half the bits below new parts in full
    assert unet.to(torch.bfloat16)(x, t, z)[1].dtype == torch.bfloat16
    assert unet.to("meta").base.device.type == "meta"


def test_bases_of_other_blocks_are_refused():
    skip = {"down_block_types": ("SkipDownBlock2D",) * 2, "up_block_types": ("SkipUpBlock2D",) * 2}
    base = UNet2DModel(**{**FOREIGN, **skip})
    with pytest.raises(UserError, match="a U-Net with SkipUpBlock2D cannot"):
        ShiftUNet(base=base)
    without = UNet2DModel(**{**FOREIGN, "mid_block_type": None})
    with pytest.raises(UserError, match="without a middle block"):
        ShiftUNet(base=without)


def test_every_new_block_hears_the_code():
    (unet, condition), (x, t, z) = made("tokens"), inputs()
    perturbed(unet)(x, t, z, condition)[1].sum().backward()
    heard = [m.time_emb_proj.semantic.weight.grad for m in unet.modules() if isinstance(m, ResnetBlock2D)]
    assert len(heard) == 6
    assert all(grad.abs().max() > 0 for grad in heard)
