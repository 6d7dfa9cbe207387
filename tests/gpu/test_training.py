"""Runs on CUDA: resumed equals uninterrupted bit for bit, fp16's loss scale, NCCL with one rank, averages."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ldm_kit import config as configs
from ldm_kit.training import distributed
from ldm_kit.training.ema import Ema, EmaConfig
from tests.gpu.devices import LATER, REHEARSAL, needs_cuda, rehearsed, trainer_of, training_on
from tests.training.helpers import (
    CLASSIFIER,
    DIFFAE,
    KL,
    ROOT,
    STAGE_2,
    TEXT,
    VQ,
    Played,
    picture_folder,
    play,
    settings,
    tensors_of,
)

AWARE = {**STAGE_2, "variance": "learned_range", "prediction_type": "eps", "loss": "vlb"}
AWARE["timestep_sampling"] = {"density": "loss_second_moment"}
KINDS = {"kl": KL, "vq": VQ, "text": TEXT, "aware": AWARE, "classifier": CLASSIFIER, "diffae": DIFFAE}
EXACT = "train.deterministic=true"  # an operation without a deterministic kernel is an error
STEPS = "train.steps=5"
LAST = "checkpoint-00000005"
PRECISIONS = ["no", "bf16", pytest.param("fp16", marks=pytest.mark.skipif(REHEARSAL, reason="fp16 needs a GPU"))]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return picture_folder(tmp_path_factory.mktemp("pictures") / "set")


def two_halves(kind: str, pictures: Path, run: Path, *overrides: str) -> Played:
    """A run stopped after step 2 and gone on with, between which the global generators are moved."""
    first = play(settings(KINDS[kind], pictures, run, STEPS, *overrides, "train.checkpoint_every=2"), until=2)
    torch.manual_seed(99)
    rest = play(settings(KINDS[kind], pictures, run, STEPS, *overrides), "latest")
    return Played(first.lines + rest.lines, rest.weights)


def assert_resumes(kind: str, precision: str, device: torch.device, pictures: Path, folder: Path) -> None:
    given = (f"train.precision={precision}", EXACT)
    with training_on(device):
        expected = play(settings(KINDS[kind], pictures, folder / "whole", STEPS, *given))
    with training_on(device):
        found = two_halves(kind, pictures, folder / "resumed", *given)
    assert found == expected
    assert tensors_of(folder / "resumed" / LAST) == tensors_of(folder / "whole" / LAST)
    states = [json.loads((folder / run / LAST / "trainer_state.json").read_text()) for run in ("whole", "resumed")]
    assert states[0]["scaler"] == states[1]["scaler"]
    assert (states[0]["scaler"] is not None) == (precision == "fp16")


@rehearsed
def test_resumed_equals_uninterrupted(device, pictures, tmp_path):
    assert_resumes("text", "no", device, pictures, tmp_path)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted_for_all(kind, precision, device, pictures, tmp_path):
    assert_resumes(kind, precision, device, pictures, tmp_path)


@pytest.mark.parametrize("kind", ["kl", "text"])
def test_workers_change_nothing(kind, device, pictures, tmp_path):
    """Data-loader processes are forked after CUDA has started; they must not touch it."""
    with training_on(device):
        plain = play(settings(KINDS[kind], pictures, tmp_path / "plain", "train.steps=3", EXACT))
    with training_on(device):
        loaded = play(settings(KINDS[kind], pictures, tmp_path / "loaded", "train.steps=3", EXACT, "train.workers=1"))
    assert loaded == plain


def scale_of(checkpoint: Path) -> float:
    return json.loads((checkpoint / "trainer_state.json").read_text())["scaler"]["scale"]


def test_an_overflowing_step_is_skipped_and_its_scale_kept(device, pictures, tmp_path):
    """From a scale of 2^40 the first steps overflow: the weights stay, the scale halves, and norms are not finite."""
    needs_cuda(device)
    config = settings(TEXT, pictures, tmp_path / "run", "train.precision=fp16", "train.steps=60")
    with training_on(device):
        running = trainer_of(config, tmp_path)
        running.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
        before = [weight.detach().clone() for weight in running.task.modules["denoiser"].parameters()]
        (first,) = islice(running.train(running.task.batches), 1)
        after = [*running.task.modules["denoiser"].parameters()]
        assert not first.norms["denoiser"].isfinite()
        assert first.logs["denoiser_loss"].isfinite()
        assert running.overflows == 1
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        path = running.save(tmp_path / "run", config)
        assert scale_of(path) == 2.0**39
        steps = [*islice(running.train(running.task.batches), 40)]
        assert running.overflows == 0
        assert steps[-1].norms["denoiser"].isfinite()
        assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with training_on(device):
        resumed = trainer_of(config, tmp_path)
        resumed.load(path, resumed.task.batches)
        assert resumed.step == LATER + 1
        assert resumed.accelerator.scaler.get_scale() == 2.0**39


def test_steps_that_always_overflow_stop_the_run(device, pictures, tmp_path):
    needs_cuda(device)
    from ldm_kit.training.faults import NonFiniteError

    config = settings(TEXT, pictures, tmp_path / "run", "train.precision=fp16", "train.steps=60", "train.max_skips=3")
    with training_on(device):
        running = trainer_of(config, tmp_path)
        running.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**60)
        with pytest.raises(NonFiniteError, match="overflow 3 in a row under fp16"):
            list(running.train(running.task.batches))


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "ddp"])
def test_a_launched_run_of_one_process(overlap, device, pictures, tmp_path):
    """torchrun starts NCCL (on the CPU gloo); DDP wraps the network if gradients are averaged during the backward."""
    more = (f"train.overlap={str(overlap).lower()}", "log.every=1", "data.heldout=0.2", "train.steps=3")
    configs.write(settings(TEXT, pictures, tmp_path / "run", *more), tmp_path / "config.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "ACCELERATE_USE_CPU": str(device.type == "cpu").lower()}
    done = subprocess.run(
        [*command, str(ROOT / "train_ldm.py"), str(tmp_path / "config.yaml")],
        check=False,
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "lr" in line] == [1, 2, 3]
    assert (tmp_path / "run" / "model" / "unet").is_dir()


@pytest.fixture
def one_rank(device: torch.device, tmp_path: Path) -> Iterator[None]:
    """A process group of one rank: NCCL, or gloo on the CPU."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timedelta(seconds=60))
    yield
    distributed._gloo_group.cache_clear()
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_collectives_of_one_rank_change_nothing(device, monkeypatch):
    """Gradients are averaged and weights sent by the backend's own kernels, checks before them by gloo."""
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    net = nn.Conv2d(3, 4, 3).to(device, memory_format=torch.channels_last)
    net(torch.randn(2, 3, 8, 8, device=device)).square().mean().backward()
    net.bias.grad = None
    before, gradient = net.weight.detach().clone(), net.weight.grad.clone()
    distributed.average_gradients([*net.parameters()])
    distributed.broadcast_(net.state_dict().values())
    assert torch.equal(net.weight, before)
    assert torch.equal(net.weight.grad, gradient)
    assert net.bias.grad is None
    assert distributed.all_reduce_max(3) == 3
    assert distributed.all_gather_objects({"a": 1}) == [{"a": 1}]
    distributed.check_peers()


@rehearsed
def test_averages_are_on_the_device_of_the_weights(device):
    """After one step of kind constant: (2 / 11) of the old weight, and the rest of the new one."""
    net = nn.Linear(3, 2).to(device)
    old = {name: value.clone() for name, value in net.state_dict().items()}
    ema = Ema(EmaConfig(kind="constant"), {"net": net})
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(1)
    ema.update(1)
    expected = {name: value + 9 / 11 for name, value in old.items()}
    for name, value in ema.averages["net"].items():
        assert value.device.type == device.type
        torch.testing.assert_close(value, expected[name])
    with ema.applied():
        for name, value in net.state_dict().items():
            torch.testing.assert_close(value, expected[name])
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, old[name] + 1)
    ema.load({"net": {name: value.cpu() for name, value in old.items()}})  # as from a file
    assert all(torch.equal(value, old[name]) for name, value in ema.averages["net"].items())
