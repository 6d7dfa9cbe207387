"""Out of memory: all processes halve their micro-batch and make the step again, as if it had been so from the start."""

import pytest
import torch

from ldm_kit.memory import is_out_of_memory
from ldm_kit.methods.autoencoder import Autoencoding
from ldm_kit.methods.latent import Latent
from tests.training.helpers import KL, TEXT, VQ, picture_folder, play, settings, tensors_of
from tests.training.toy import Numbers, Toy, everything, trainer

GAME = ("loss.adversarial.start=0", "loss.adversarial.discriminator_start=0")
KINDS = {"kl": (KL, Autoencoding, GAME), "vq": (VQ, Autoencoding, GAME), "text": (TEXT, Latent, ())}
STEPS = "train.steps=4"  # enough for the discriminator, its ramp, and the revival of codes after step 3


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("pictures") / "set")


def fail(_=None):
    raise torch.OutOfMemoryError("as if")


def with_room_for(most, where, losses):
    """`losses` where more than `most` pictures do not fit: memory runs out before a turn, or in its backward."""
    turn, backward = where

    def limited(self, batch, step):
        for number, (player, loss, logs) in enumerate(losses(self, batch, step)):
            if number == turn and len(batch["position"]) > most:
                if not backward:
                    fail()
                loss.register_hook(fail)
            yield player, loss, logs

    return limited


PLACES = {"forward": (0, False), "backward": (0, True), "judge": (1, False), "judge-backward": (1, True)}


@pytest.mark.parametrize(
    ("kind", "place"), [("kl", "forward"), ("kl", "judge-backward"), ("vq", "judge"), ("text", "backward")]
)
def test_a_halved_run_is_one_that_was_configured_so(kind, place, pictures, tmp_path, monkeypatch, capsys):
    tree, task, more = KINDS[kind]
    expected = play(settings(tree, pictures, tmp_path / "expected", "train.micro_batch=2", STEPS, *more))
    assert "out of memory" not in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setattr(task, "losses", with_room_for(2, PLACES[place], task.losses))
        begun = play(settings(tree, pictures, tmp_path / "found", "train.checkpoint_every=2", STEPS, *more), until=2)
    said = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert [line.partition(";")[0] for line in said] == [
        "out of memory at step 1: it is made again with 4 instead of 8 pictures at once in a process",
        "out of memory at step 1: it is made again with 2 instead of 4 pictures at once in a process",
    ]
    rest = play(settings(tree, pictures, tmp_path / "found", STEPS, *more), "latest")  # it remembers what fits
    assert [*begun.lines, *rest.lines] == expected.lines
    assert rest.weights == expected.weights
    last = "checkpoint-00000004"
    assert tensors_of(tmp_path / "found" / last) == tensors_of(tmp_path / "expected" / last)


def test_memory_that_runs_out_later_changes_only_rounding():
    def tight(loss, step):
        return fail() if step >= 3 and running.split.size > 1 else loss

    running = trainer(Toy(tight))
    found, expected = list(running.train(Numbers())), list(trainer(plain := Toy()).train(Numbers()))
    assert [step.number for step in found] == [1, 2, 3, 4, 5, 6]
    assert running.split.size == 1
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.logs["net_loss"], b.logs["net_loss"])
    torch.testing.assert_close(running.task.net.weight, plain.net.weight)


def test_one_picture_that_does_not_fit_stops():
    running = trainer(Toy(lambda loss, step: fail() if step == 2 else loss))
    steps = running.train(Numbers())
    next(steps), next(steps)
    before = everything(running)
    with pytest.raises(torch.OutOfMemoryError, match="one picture at a time"):
        next(steps)
    assert everything(running) == before
    assert running.task.net.weight.grad is None


def test_what_counts_as_short_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    )
    for text in ("CUDA error: out of memory", "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"):
        assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        list(trainer(Toy(lambda loss, step: (_ for _ in ()).throw(RuntimeError("shapes")))).train(Numbers()))
