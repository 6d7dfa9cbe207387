"""The processes of a run share held-out evaluation and code statistics; here they are threads."""

import threading
from collections import Counter

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.data import peers
from ldm_kit.data.peers import Alone
from ldm_kit.memory import BatchSize
from ldm_kit.methods.shared_work import SharedWork
from ldm_kit.methods.train import open_method
from tests.data.test_peers import together
from tests.training.helpers import CLASSES, CLASSIFIER, DIFFAE, KL, VQ, picture_folder, reset, settings

pytestmark = pytest.mark.usefixtures("own_cache")
KINDS = {"kl": KL, "vq": VQ, "class": CLASSES, "classifier": CLASSIFIER, "diffae": DIFFAE}
HELDOUT = 5  # more than one process takes, and not the same for each of two


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("pictures") / "set", count=20)


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    reset()


def method_of(kind, pictures, tmp_path):
    more = [f"log.max_heldout={HELDOUT}", "data.heldout=0.4", "log.pictures=2", "train.eval_batch=2"]
    method = open_method(settings(KINDS[kind], pictures, tmp_path / "run", "train.steps=2", *more))
    method.samples = lambda: None  # the main process's alone
    return method


@pytest.fixture
def measured(monkeypatch):
    """Number of samples that each thread has measured."""
    counts, batches = Counter(), BatchSize.batches

    def counting(self, count, compute):
        counts[threading.current_thread().name] += count
        return batches(self, count, compute)

    monkeypatch.setattr(BatchSize, "batches", counting)
    return counts


def evaluated(methods, tmp_path, broken=lambda rank: None):
    """Evaluate as two processes, each with its own method; return the main one's metrics."""

    def process(rank):
        method = methods[rank]
        method.shared_work = SharedWork(peers.everyone(), peers.host())
        broken(rank)
        with peers.shared_by(Alone(), Alone()):  # only a pass is shared
            return method.shared_work.on_main(lambda: method.evaluate(2, tmp_path), method.in_evaluation)

    return together(process)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_measure_what_one_does_each_a_part(kind, pictures, tmp_path, measured):
    methods = [method_of(kind, pictures, tmp_path) for _ in range(2)]
    for name, module in methods[0].modules.items():
        methods[1].modules[name].load_state_dict(module.state_dict())
    alone = methods[0].evaluate(2, tmp_path)
    assert alone
    whole = measured.total()
    measured.clear()
    metrics, nothing = evaluated(methods, tmp_path)
    assert nothing is None
    assert metrics.keys() == alone.keys()
    torch.testing.assert_close([*metrics.values()], [*alone.values()], rtol=1e-5, atol=1e-6)
    assert len(measured) == 2
    if kind != "diffae":  # whose main process decodes pictures beside
        assert measured.total() == whole
        assert min(measured.values()) == whole * 2 // HELDOUT


def test_codes_of_the_training_set_are_shared(pictures, tmp_path, measured):
    method = method_of("diffae", pictures, tmp_path)
    alone = method.training_codes()
    measured.clear()
    first, second = together(lambda rank: method.training_codes())
    torch.testing.assert_close(first, alone, rtol=1e-6, atol=1e-7)
    assert torch.equal(first, second)
    assert [*measured.values()] == [len(alone) // 2] * 2


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("error", [UserError("it broke"), OSError("it broke")])
def test_an_error_in_one_process_ends_all(rank, error, pictures, tmp_path):
    def loss(batch, t, seed):
        raise error

    def broken(own):
        if own == rank:
            methods[own].heldout_losses = loss

    methods = [method_of("class", pictures, tmp_path) for _ in range(2)]
    first, second = evaluated(methods, tmp_path, broken)
    assert isinstance(first, UserError)
    assert isinstance(second, UserError)
    assert "it broke" in str(first)
    assert "it broke" in str(second)


def test_what_the_main_process_does_alone_is_not_shared(pictures, tmp_path):
    method = method_of("class", pictures, tmp_path)
    work = SharedWork()
    assert work.on_main(lambda: work.run(method.in_evaluation, "heldout_metrics"), method.in_evaluation)
    assert not work.shared


def test_an_error_outside_a_pass_releases_the_others():
    def process(rank):
        def fail():
            raise UserError("no room")

        return SharedWork(peers.everyone(), peers.host()).on_main(fail, lambda name: None)

    first, second = together(process)
    assert str(first) == "no room"
    assert second is None
