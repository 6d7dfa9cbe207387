"""A step that is not finite stops the run before its update, and leaves what makes it again."""

import json

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.training import checkpoint
from ldm_kit.training.batches import sample_index
from ldm_kit.training.faults import NonFiniteError, batch_tensors, non_finite_names
from tests.training.helpers import CLASSES, VQ, digest, picture_folder, play, settings, tensors_of
from tests.training.toy import Numbers, Toy, trainer

NAN = float("nan")
FAR = ("optim.lr=1e18", "optim.warmup=0", "train.micro_batch=4")  # the first update throws the weights out of range


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("pictures") / "set")


def stopped(config, resume=None):
    with pytest.raises(UserError, match="became infinite or NaN") as caught:
        play(config, resume)
    return str(caught.value)


@pytest.mark.parametrize(("tree", "player"), [(VQ, "autoencoder"), (CLASSES, "denoiser")], ids=["vq", "class"])
def test_the_bundle_makes_the_step_again(tree, player, pictures, tmp_path):
    config = settings(tree, pictures, tmp_path / "run", *FAR)
    said = stopped(config)
    (bundle,) = (tmp_path / "run").glob("fault-*")
    checkpoint.verify(bundle)
    report = json.loads((bundle / "fault.json").read_text())
    step = report["step"]
    assert 1 < step < 8
    assert bundle.name == f"fault-{step:08d}"
    assert f"at step {step} (" in said
    assert said.endswith(f"fault.json says more, and --resume {bundle} makes that step again")
    assert not checkpoint.steps(tmp_path / "run")

    before = settings(tree, pictures, tmp_path / "before", *FAR, f"train.checkpoint_every={step - 1}")
    play(before, until=step - 1)
    expected = tensors_of(tmp_path / "before" / f"checkpoint-{step - 1:08d}")
    assert tensors_of(bundle) == expected  # nothing of the bad step, codebook averages included

    (mine,) = report["processes"]
    assert mine["positions"] == [list(range(8 * (step - 1), 8 * step - 4)), list(range(8 * step - 4, 8 * step))]
    assert mine["indices"] == [[sample_index(config.seed, p, 24) for p in part] for part in mine["positions"]]
    assert mine["spoilt_inputs"] == [[], []]
    bad = [loss in ("nan", "inf") for loss in mine["losses"][player]]
    assert any(bad) or report["spoilt_gradients"][player]
    assert set(report["gradient_norms"]) >= {player}

    assert stopped(config, resume=str(bundle)) == said
    assert json.loads((bundle / "fault.json").read_text()) == report
    assert tensors_of(bundle) == expected


def test_an_infinite_loss_with_a_finite_gradient_is_refused_too():
    running = trainer(Toy(lambda loss, step: loss + (float("inf") if step == 2 else 0)))
    with pytest.raises(
        NonFiniteError, match=r"at step 3 \(loss of net inf on process 0\); the run stops before"
    ) as caught:
        list(running.train(Numbers()))
    assert running.step == 2
    assert caught.value.report["spoilt_gradients"] == {"net": []}


def test_the_first_tensor_that_is_spoilt_is_named():
    class Half(Toy):
        def losses(self, batch, step):
            yield "net", self.net.bias.sum() * (NAN if step else 1) + self.net.weight.sum() * 0, {}

    with pytest.raises(NonFiniteError, match=r"gradient of net nan, first in bias") as caught:
        list(trainer(Half()).train(Numbers()))
    assert caught.value.report["spoilt_gradients"] == {"net": ["bias"]}
    assert caught.value.report["spoilt_weights"] == {"net": []}


def test_spoilt_inputs_are_named():
    batch = {"x": torch.tensor([NAN]), "inputs": {"mask": torch.ones(1), "ids": torch.tensor([1])}, "raw": ["a"]}
    assert batch_tensors(batch).keys() == {"x", "inputs.mask"}
    assert non_finite_names(batch_tensors(batch)) == ["x"]


def scaled(task, **config):
    running = trainer(task, **config)
    running.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    return running


@pytest.mark.parametrize("spoil", [float("inf"), NAN])
def test_overflow_without_end_stops_under_fp16(spoil):
    running = scaled(Toy(lambda loss, step: loss * (spoil if step > 0 else 1)), max_skips=3)
    seen = []

    def train():
        for _ in running.train(Numbers()):
            seen.append(digest(running.task.net.state_dict()))

    with pytest.raises(NonFiniteError, match=r"at step 4 .* that was overflow 3 in a row under fp16: train with"):
        train()
    assert seen == [digest(running.task.net.state_dict())] * 3


def test_some_overflow_does_not_stop_fp16():
    running = scaled(Toy(lambda loss, step: loss * (NAN if step % 3 else 1)), max_skips=3, steps=9)
    assert len(list(running.train(Numbers()))) == 9
    assert running.accelerator.scaler.get_scale() < 4


def test_a_skipped_step_leaves_no_trace_in_buffers():
    class Normed(Toy):
        def __init__(self):
            super().__init__()
            self.net.norm = torch.nn.BatchNorm1d(4)

        def losses(self, batch, step):
            x = batch["x"] * (float("inf") if step == 1 else 1)
            yield "net", self.net.norm(self.net(x)).square().mean(), {}

    task = Normed()
    for step in scaled(task).train(Numbers()):
        assert task.net.norm.running_mean.isfinite().all(), step.number
        assert task.net.norm.num_batches_tracked == step.number - (step.number > 1)
