"""Who locates the model of `init` when a run has several processes, and what the log says of its latents."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from autoencoder.config import build
from autoencoder.vq import VQConfig
from conditioning.none import NoCondition
from ldm_kit.config import UserError
from ldm_kit.data import peers
from ldm_kit.methods import start
from ldm_kit.methods.latent_init import LatentStart, autoencoder_note, latents_of
from ldm_kit.models.hub import MODEL, Located
from tests.training.helpers import SHAPE


@dataclass
class Group:
    """A group of processes of which only this one runs; `log` has the order of what it did."""

    name: str
    rank: int
    log: list[str]
    others: Any = (None, None)  # what each other process passes to `gather`
    size: int = 2
    passed: list[Any] = field(default_factory=list)

    def gather(self, value: Any) -> list[Any]:
        self.log.append(self.name)
        self.passed.append(value)
        return [value if rank == self.rank else self.others for rank in range(self.size)]


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """What happens, in order; `saved_model` sees no other process, as an export makes caches by itself."""
    events = []

    def saved_model(folder, *, device):
        assert (peers.everyone().size, peers.host().size, device) == (1, 1, "cpu")
        events.append("located")
        return folder / "model"

    monkeypatch.setattr(start, "saved_model", saved_model)
    monkeypatch.setattr(start, "locate_pinned", lambda name, what, content: Located(Path(name), None))
    return events


@pytest.mark.parametrize(
    ("rank", "local", "order"),
    [
        (0, 0, ["located", "machine", "run"]),
        (1, 1, ["machine", "located", "run"]),
        (2, 0, ["located", "machine", "run"]),  # the first of the second machine, which may have other files
        (3, 1, ["machine", "located", "run"]),
    ],
)
def test_the_first_process_of_each_machine_locates_the_model_before_the_others(log, rank, local, order):
    with peers.shared_by(Group("run", rank, log, size=4), Group("machine", local, log)):
        assert start.locate_start("runs/x", MODEL) == (Path("runs/x/model"), "init runs/x")
    assert log == order


@pytest.mark.parametrize("failing", ["run", "machine"])
def test_all_processes_stop_when_one_cannot_locate_the_model(log, failing):
    groups = {name: Group(name, 1, log) for name in ("run", "machine")}
    groups[failing].others = (None, "no such model")
    with peers.shared_by(groups["run"], groups["machine"]), pytest.raises(UserError, match="no such model"):
        start.locate_start("runs/x", MODEL)
    assert len(groups["run"].passed) == 1, "the others wait for it"


def test_models_of_latents_that_differ_in_scale_alone_are_told_apart():
    torch.manual_seed(3)
    vae: Any = build(VQConfig(codes=8, **SHAPE))
    trained = LatentStart("init x", None, None, NoCondition, "0" * 64, latents=latents_of(vae))
    assert autoencoder_note(trained, vae) == []
    vae.register_to_config(scaling_factor=0.25)
    (note,) = autoencoder_note(trained, vae)
    assert "shift [0.0] and scale [1.0], and this run is on latents" in note
    assert "scale [0.25]" in note
    assert "this run is on pixels;" in autoencoder_note(trained, None)[0]
