"""Two processes that talk gloo: a fault of one is everybody's, and nobody waits for ever."""

import errno
import os

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.methods.autoencoder import Autoencoding
from ldm_kit.training import checkpoint, distributed, run_folder
from ldm_kit.training.optim import lr_factor
from tests.training.helpers import KL, TEXT, picture_folder, play, ranks, settings
from tests.training.test_out_of_memory import GAME, PLACES, with_room_for
from tests.training.toy import Numbers, Toy, trainer

SHORT = (*GAME, "train.steps=4")
NORM = (*SHORT, "discriminator.norm=batch")  # which has buffers


def second():
    return os.environ["RANK"] == "1"


def halved(pictures, folder, place):
    """A run in which memory runs out on the second process alone."""
    if not second():
        return play(settings(KL, pictures, folder, *SHORT))
    losses = Autoencoding.losses
    Autoencoding.losses = with_room_for(2, PLACES[place], losses)
    try:
        return play(settings(KL, pictures, folder, *SHORT))
    finally:
        Autoencoding.losses = losses


def floor():
    """What both processes meet when the second has no room for a single picture."""
    running = trainer(Toy(with_oom))
    try:
        list(running.train(Numbers()))
    except torch.OutOfMemoryError as error:
        return running.step, running.split.size, str(error)


def with_oom(loss, step):
    if second() and step == 2:
        raise torch.OutOfMemoryError("as if")
    return loss


def told(config, patch=lambda: None):
    """The sentence with which a run ends."""
    write = checkpoint.write
    patch()
    try:
        play(config)
    except UserError as error:
        return str(error)
    finally:
        checkpoint.write = write


def full():
    """The disk is full; only the main process would notice."""

    def write(folder, fill, size=0):
        raise UserError("no room")

    checkpoint.write = write


def unwritable(config):
    """The error with which a run ends whose config cannot be written; only the main process tries."""

    def write_config(folder, config):
        raise OSError(errno.ENOSPC, "no room", "config.yaml")

    before, run_folder.write_config = run_folder.write_config, write_config
    try:
        play(config)
    except OSError as error:
        return f"OSError: {error}"
    except UserError as error:
        return str(error)
    finally:
        run_folder.write_config = before


def programming_error():
    """The error of a function that only the main process calls, and whether it is a user's."""
    try:
        distributed.on_main(lambda: {}["a"])
    except Exception as error:
        text = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        return text, isinstance(error, UserError)


def infinite(loss, step):
    return loss + float("inf") if second() and step == 2 else loss


def lost():
    """What both processes say of a loss that is infinite on the second, with a gradient that is not."""
    running = trainer(Toy(infinite))
    try:
        list(running.train(Numbers()))
    except UserError as error:
        return running.step, str(error)


def everything(pictures, folder):
    """What a rank finds; in one process, to start it once."""
    return {
        "halved forward": halved(pictures, folder / "a", "forward"),
        "halved backward": halved(pictures, folder / "b", "backward"),
        "halved judge": halved(pictures, folder / "c", "judge"),
        "configured": play(settings(KL, pictures, folder / "d", *SHORT, "train.micro_batch=2")),
        "whole": play(settings(KL, pictures, folder / "e", *NORM)),
        "overlapped": play(settings(KL, pictures, folder / "f", *NORM, "train.overlap=true")),
        "floor": floor(),
        "lost": lost(),
        "thrown": told(settings(TEXT, pictures, folder / "thrown", "optim.lr=1e18", "optim.warmup=0")),
        "full": told(settings(TEXT, pictures, folder / "full", "train.checkpoint_every=2"), full),
        "programming error": programming_error(),
        "unwritable": unwritable(settings(TEXT, pictures, folder / "unwritable")),
        "curve": play(settings(TEXT, pictures, folder / "g", "train.micro_batch=1", *CURVE)),
    }


CURVE = ("optim.lr_schedule=cosine", "optim.warmup=3")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    pictures = picture_folder(folder / "pictures")
    return ranks(2, everything, pictures, folder, folder=folder / "said"), folder


def test_both_say_and_hold_the_same(together):
    (first, last), _ = together
    assert first == last


@pytest.mark.parametrize("place", ["forward", "backward", "judge"])
def test_memory_that_runs_out_on_one_halves_both(together, place):
    (found, _), _ = together
    assert found[f"halved {place}"] == found["configured"]


def test_no_room_for_one_picture_stops_both(together):
    (found, _), _ = together
    assert found["floor"] == (2, 1, "out of memory with one picture at a time")


def test_gradients_may_travel_during_the_backward_pass(together):
    (found, _), _ = together
    assert found["overlapped"].lines == found["whole"].lines
    assert {*found["overlapped"].weights} == {"autoencoder", "discriminator"}
    assert found["overlapped"].weights["autoencoder"] == found["whole"].weights["autoencoder"]


def test_an_infinite_loss_on_one_stops_both(together):
    (found, _), _ = together
    step, said = found["lost"]
    assert step == 2
    assert "at step 3 (loss of net inf on process 1); the run stops" in said


def test_the_bundle_of_two_is_one(together):
    (found, _), folder = together
    (bundle,) = (folder / "thrown").glob("fault-*")
    checkpoint.verify(bundle)
    assert found["thrown"].endswith(f"--resume {bundle} makes that step again")


def test_a_full_disk_stops_both_in_the_end(together):
    (found, _), _ = together
    assert found["full"] == "no room, 3 times in a row; the run stops after step 6, --resume latest goes on"


def test_a_config_that_cannot_be_written_stops_both(together):
    (found, _), _ = together
    assert found["unwritable"] == f"OSError: [Errno {errno.ENOSPC}] no room: 'config.yaml'"


def test_a_programming_error_is_not_called_a_users(together):
    (found, _), _ = together
    assert found["programming error"] == ("KeyError: 'a'", False)


def test_the_curve_counts_optimiser_steps(together, tmp_path):
    (found, _), folder = together
    config = settings(TEXT, folder / "pictures", tmp_path, *CURVE)
    curve = [(config.optim.lr * lr_factor(config.optim, step, 8)).hex() for step in range(1, 9)]
    assert [line["lr"] for line in found["curve"].lines] == curve
    assert float.fromhex(curve[0]) == pytest.approx(1e-3 / 3)
    assert float.fromhex(curve[3]) == 1e-3
    assert 0 < float.fromhex(curve[-1]) < 1e-4
