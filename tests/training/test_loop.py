import json

import pytest
import torch

from autoencoder.codebook import Codebook
from ldm_kit.config import UserError
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.training.checkpoint import load_tensors
from ldm_kit.training.config import TrainConfig
from ldm_kit.training.ema import decay_at
from ldm_kit.training.optim import OptimConfig, dump
from tests.training.helpers import KL, VQ, picture_folder, play, settings
from tests.training.toy import Numbers, Toy, train_into_nan, trainer


@pytest.mark.parametrize("step", [2, 5])
def test_nan_stops_before_the_update(step):
    sentence, before, after = train_into_nan(step)
    assert sentence.startswith(
        f"the loss or gradient became infinite or NaN at step {step} (loss of net nan on process 0; gradient of net nan"
    )
    assert before == after


def test_a_huge_gradient_is_clipped_and_an_infinite_one_refused():
    (step,) = (running := trainer(Toy(lambda loss, step: loss * 1e15), steps=1)).train(Numbers())
    moments, _ = dump(running.optimisers["net"])
    first = torch.cat([value.flatten() for name, value in moments.items() if name.endswith("exp_avg")])
    assert step.norms["net"] > 1e12
    assert first.norm().item() == pytest.approx(0.1 * 1.0, rel=1e-4), "1 - beta_1, times the gradient that was left"
    with pytest.raises(UserError, match=r"at step 1 \(loss of net inf on process 0; gradient of net (inf|nan)"):
        next(trainer(Toy(lambda loss, step: loss * float("inf"))).train(Numbers()))


def test_the_planned_rate_is_that_of_the_update():
    """AdamW's first update has the size of its rate: 1 / 4 of the peak in a warm-up of 4 steps."""
    running = trainer(toy := Toy(), steps=6)
    running.optim = {"net": OptimConfig(lr=0.1, warmup=4)}
    before = toy.net.weight.detach().clone()
    for step in running.train(Numbers()):
        if step.number == 1:
            assert (toy.net.weight - before).abs().max().item() == pytest.approx(0.1 / 4, rel=0.02)
        assert step.lr == pytest.approx(0.1 * min(1, step.number / 4))
        assert {group["lr"] for group in running.optimisers["net"].param_groups} == {step.lr}


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulation_changes_nothing_but_rounding(micro):
    whole = list(trainer(toy := Toy()).train(Numbers()))
    parts = list(trainer(other := Toy(), micro_batch=micro).train(Numbers()))
    assert [step.number for step in parts] == [step.number for step in whole] == [1, 2, 3, 4, 5, 6]
    assert [step.lr for step in parts] == [step.lr for step in whole]
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a.logs["net_loss"], b.logs["net_loss"])
        torch.testing.assert_close(a.norms["net"], b.norms["net"])
    torch.testing.assert_close(toy.net.weight, other.net.weight)


def test_every_step_has_dropout_of_its_own_and_the_same_again():
    def drawn(seed):
        seen = []

        def draw(loss, step):
            seen.append(torch.rand(()).item())
            return loss

        running = trainer(Toy(draw))
        running.seed = seed
        list(running.train(Numbers()))
        return seen

    assert len(set(drawn(1))) == 6
    assert drawn(1) == drawn(1) != drawn(2)


def test_dropout_belongs_to_the_micro_batchs_first_position():
    seen = []

    def draw(loss, step):
        seen.append(torch.rand(()).item())
        return loss

    list(trainer(Toy(draw), micro_batch=2, steps=2).train(Numbers()))
    expected = []
    for step, first in [(0, 0), (0, 2), (1, 4), (1, 6)]:
        torch.manual_seed(derive_seed(1, "modules", step, first))
        expected.append(torch.rand(()).item())
    assert seen == expected


def test_the_loop_yields_when_everything_is_consistent():
    running = trainer(Toy())
    for step in running.train(Numbers()):
        assert step.number == running.step
        assert all(p.grad is None for p in running.task.modules["net"].parameters())


def test_a_checkpoint_past_the_end_is_refused(tmp_path):
    running = trainer(Toy())
    list(running.train(Numbers()))
    path = running.save(tmp_path, TrainConfig(steps=6, batch_size=4))
    assert path is not None
    assert json.loads((path / "trainer_state.json").read_text())["position"] == 24
    with pytest.raises(UserError, match=r"checkpoint-00000006 is at step 6, past the end: train\.steps is 4"):
        trainer(Toy(), steps=4).load(path, Numbers())
    again = trainer(Toy())
    again.load(path, Numbers())
    assert list(again.train(Numbers())) == []


def test_a_checkpoint_never_holds_prefixes_of_wrappers(tmp_path):
    running = trainer(toy := Toy())
    running.ddp_modules["net"] = torch.nn.Module()
    running.ddp_modules["net"]._orig_mod = toy.net  # as torch.compile wraps
    path = running.save(tmp_path, TrainConfig(steps=6, batch_size=4))
    assert load_tensors(path / "model" / "net.safetensors").keys() == {"weight", "bias"}


def test_averages_follow_the_weights_after_each_step():
    running = trainer(toy := Toy())
    expected = toy.net.weight.detach().clone()
    for step in running.train(Numbers()):
        expected.lerp_(toy.net.weight.detach(), 1 - decay_at(running.ema_config, step.number))
        torch.testing.assert_close(running.ema.averages["net"]["weight"], expected)
    assert not torch.equal(expected, toy.net.weight)


def test_revived_codes_start_without_moments(tmp_path, monkeypatch):
    revive, settle = torch.arange(32) < 5, Codebook.after_step
    monkeypatch.setattr(Codebook, "after_step", lambda self, step: settle(self, step) | (revive & (step == 3)))
    pictures, run = picture_folder(tmp_path / "pictures"), tmp_path / "run"
    config = settings(VQ, pictures, run, "autoencoder.ema=false", "autoencoder.revive_every=0", "train.keep_last=9")
    held = {}

    def look(opened):
        opened.save_when_due = lambda trainer, step: held.update({step.number: rows(trainer)})

    def rows(trainer):
        state = trainer.optimisers["autoencoder"].state[trainer.task.codebook.embedding.weight]
        return (state["exp_avg_sq"] != 0).any(1)

    play(config, until=4, opened=look)
    assert held[3][:5].any()
    assert not held[4][:5].any()
    assert held[4][5:].equal(held[3][5:] | held[4][5:])


def test_one_loss_scale_serves_both_players(tmp_path):
    """With a power of two as scale nothing changes; scaling twice, or not at all, would."""
    pictures = picture_folder(tmp_path / "pictures")

    def scaled(run):
        run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)

    plain = play(settings(KL, pictures, tmp_path / "plain"))
    once = settings(KL, pictures, tmp_path / "scaled", "train.checkpoint_every=4")
    begun = play(once, until=4, opened=scaled)
    rest = play(once, "latest", opened=scaled)
    for key in ("autoencoder_norm", "discriminator_norm", "nll"):
        found = torch.cat([begun.numbers(key), rest.numbers(key)])
        torch.testing.assert_close(found, plain.numbers(key), rtol=1e-3, atol=0)
