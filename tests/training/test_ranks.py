"""Two processes that talk gloo do what one does, and hold the same weights."""

import os
import signal

import pytest
import torch

from ldm_kit.training import checkpoint
from ldm_kit.training.signals import Stopped
from tests.training.helpers import CLASSES, CLASSIFIER, KL, TEXT, VQ, picture_folder, play, ranks, settings, tensors_of
from tests.training.toy import train_into_nan

STEPS = ("train.steps=10",)
EXACT = ("unet.dropout=0",)  # module-level dropout is drawn by each process
CALM = ("net.dropout=0",)
# Inside hinge's margins the judge's last bias has no gradient but rounding, which Adam makes a whole step of.
SMOOTH = ("loss.adversarial.loss=vanilla",)
MUON = (*SMOOTH, "optim.muon={}", "autoencoder.widths=[8,64]")  # narrower weights are AdamW's
# Revival copies latents of the main process, so it sees the split; in the other layout rounding soon makes a leap.
STILL = (*SMOOTH, "autoencoder.revive_every=0", "train.channels_last=true")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("pictures") / "set")


def all_kinds(pictures, folder):
    """What a rank finds of every kind; in one process, to start it once."""
    return {
        "kl": play(settings(KL, pictures, folder / "kl", *STEPS, *SMOOTH)),
        "kl-accumulated": play(settings(KL, pictures, folder / "kl2", *STEPS, "train.micro_batch=2", *SMOOTH)),
        "vq": play(settings(VQ, pictures, folder / "vq", *STEPS, *STILL)),
        "text": play(settings(TEXT, pictures, folder / "text", *STEPS, *EXACT)),
        "text-accumulated": play(settings(TEXT, pictures, folder / "text2", *STEPS, *EXACT, "train.micro_batch=2")),
        "class": play(settings(CLASSES, pictures, folder / "class", *STEPS)),
        "classifier": play(settings(CLASSIFIER, pictures, folder / "classifier", *STEPS, *CALM)),
        "muon": play(settings(KL, pictures, folder / "muon", *STEPS, *MUON)),
        "nan": train_into_nan(step=3, only_rank=1),
        "hinge": play(settings(VQ, pictures, folder / "hinge", *STEPS)),
        "stopped": stopped(settings(KL, pictures, folder / "stopped", *STEPS)),
    }


def stopped(config):
    """The exit status of a run whose second process is asked to stop during the third step."""

    def ask(number):
        if number == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        play(config, between=ask)
    except Stopped as error:
        return error.code


@pytest.fixture(scope="module")
def together(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    return ranks(2, all_kinds, pictures, folder, folder=folder / "said"), folder


def test_ranks_hold_the_same_weights_bit_for_bit(together):
    (first, second), _ = together
    assert first.keys() == second.keys()
    for kind in first.keys() - {"nan", "stopped"}:
        played = first[kind]
        assert played.weights == second[kind].weights, kind
        assert played.lines == second[kind].lines, kind
    assert set(first["kl"].weights) == {"autoencoder", "discriminator"}


def test_a_gradient_that_is_nan_on_one_stops_both(together):
    (first, second), _ = together
    assert first["nan"] == second["nan"]
    sentence, before, after = first["nan"]
    assert "at step 3 (loss of net nan on process 1; gradient of net nan, first in weight)" in sentence
    assert before == after


def test_a_signal_to_one_stops_both_after_the_step(together):
    (first, second), folder = together
    assert first["stopped"] == second["stopped"] == 128 + signal.SIGTERM
    assert list(checkpoint.steps(folder / "stopped")) == [3]
    checkpoint.verify(checkpoint.steps(folder / "stopped")[3])


ALONE = {"kl": KL, "vq": VQ, "text": TEXT, "classifier": CLASSIFIER}


@pytest.mark.parametrize("kind", ["kl", "kl-accumulated", "vq", "text", "text-accumulated", "classifier"])
def test_two_processes_agree_with_one(kind, pictures, together, tmp_path):
    (found, _), _ = together
    name = kind.removesuffix("-accumulated")
    more = {
        "vq": STILL,
        "text": EXACT,
        "kl": SMOOTH,
        "kl-accumulated": SMOOTH,
        "text-accumulated": EXACT,
        "classifier": CALM,
    }[kind]
    alone = play(settings(ALONE[name], pictures, tmp_path / "run", *STEPS, *more))
    for key in {key for line in alone.lines for key in line if key.endswith(("loss", "_norm", "lambda"))}:
        tolerance = 1e-6 if key.endswith("loss") else 1e-5
        torch.testing.assert_close(found[kind].numbers(key), alone.numbers(key), rtol=tolerance, atol=0)
    assert [line["lr"] for line in found[kind].lines] == [line["lr"] for line in alone.lines]


def test_muon_moves_two_processes_as_one(pictures, together, tmp_path):
    (found, _), folder = together
    (path,) = checkpoint.steps(folder / "muon").values()
    assert any(name.endswith(".muon.safetensors") for name in tensors_of(path)), tensors_of(path)
    alone = play(settings(KL, pictures, tmp_path / "run", *STEPS, *MUON))
    losses = found["muon"].numbers("autoencoder_loss"), alone.numbers("autoencoder_loss")
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)  # its bfloat16 makes more of a difference in rounding


def test_one_process_goes_on_from_the_one_checkpoint_of_two(pictures, together, tmp_path):
    (found, _), folder = together
    (path,) = checkpoint.steps(folder / "text").values()
    assert len(tensors_of(path)) == 4  # denoiser, its optimiser, averages of U-Net and text encoder
    longer = ("train.steps=12", *EXACT)
    played = play(settings(TEXT, pictures, folder / "text", *longer), resume=str(path))
    assert len(played.lines) == 2
    alone = play(settings(TEXT, pictures, tmp_path / "run", *longer))
    whole, joined = alone.numbers("denoiser_loss"), [*found["text"].lines, *played.lines]
    resumed = torch.tensor([float.fromhex(line["denoiser_loss"]) for line in joined], dtype=torch.float64)
    torch.testing.assert_close(resumed, whole, rtol=1e-6, atol=0)
