"""The processes of a run share held-out evaluation and code statistics; here they are threads."""

import copy
import threading
from collections import Counter
from functools import partial

import pytest
import torch

from autoencoder.statistics import measure
from ldm_kit.config import UserError
from ldm_kit.data import peers
from ldm_kit.data.images import to_unit
from ldm_kit.data.peers import Alone
from ldm_kit.memory import BatchSize
from ldm_kit.methods.shared_work import SharedWork
from ldm_kit.methods.train import open_method
from ldm_kit.models.codes import CodeStatistics, encode_set
from ldm_kit.training.log import Log
from tests.data.test_peers import Member, together
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


def evaluated(methods, tmp_path):
    """Evaluate as two processes, each with its own method; return the main one's metrics."""

    def process(rank):
        method = methods[rank]
        method.shared_work = SharedWork(peers.everyone(), peers.host())
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
    assert measured.total() == whole
    assert min(measured.values()) == whole * 2 // HELDOUT


def deep_sizes(value):
    """Numbers in each tensor of a nested value that one process sends to others."""
    if isinstance(value, torch.Tensor):
        return [value.numel()]
    return [size for item in value for size in deep_sizes(item)] if isinstance(value, tuple | list) else []


def saved(method, folder, monkeypatch):
    """Save as two processes do; return the numbers in each tensor that they exchange."""
    exchanged, gather = [], Member.gather

    def recording(self, value):
        exchanged.extend(deep_sizes(value))
        return gather(self, value)

    monkeypatch.setattr(Member, "gather", recording)

    def process(rank):
        own = copy.copy(method)
        own.shared_work = SharedWork(peers.everyone(), peers.host())
        with peers.shared_by(Alone(), Alone()):
            own.shared_work.on_main(lambda: own.save(folder), own.in_evaluation)
        return own

    main, other = together(process)
    assert not isinstance(main, Exception), main
    assert not isinstance(other, Exception), other
    return main, exchanged


def test_statistics_of_the_training_sets_codes_are_shared_and_no_code_is_sent(
    pictures, tmp_path, measured, monkeypatch
):
    method = method_of("diffae", pictures, tmp_path)
    z = encode_set(method.module.eval().encoder, method.data.train).double()
    measured.clear()
    _, exchanged = saved(method, tmp_path / "model", monkeypatch)
    statistics = CodeStatistics.load(tmp_path / "model", z.shape[1])
    torch.testing.assert_close(statistics.mean, z.mean(0).float(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(statistics.std, z.std(0, correction=0).float(), rtol=1e-6, atol=1e-7)
    assert sorted(measured.values()) == [len(z) // 2, len(z) - len(z) // 2]
    assert {*exchanged} == {z.shape[1]}, "sums alone"


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_statistics_of_latents_are_shared(kind, pictures, tmp_path, measured, monkeypatch):
    method = method_of(kind, pictures, tmp_path)
    train = method.data.train
    alone = measure(method.vae.eval(), [to_unit(train.pictures(range(len(train))))])
    measured.clear()
    method.statistics = None
    main, _ = saved(method, tmp_path / "model", monkeypatch)
    torch.testing.assert_close(main.statistics.mean, alone.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(main.statistics.std, alone.std, rtol=1e-5, atol=1e-6)
    assert main.statistics.count == alone.count == len(train)
    assert sorted(measured.values()) == [len(train) // 2, len(train) - len(train) // 2]


def processes(call, task, count=2):
    """Call `task(work)` on the main one of some processes, with passes that call `call(rank, name)`.

    Return what each returns or raises.
    """

    def process(rank):
        work = SharedWork(peers.everyone(), peers.host())
        with peers.shared_by(Alone(), Alone()):
            return work.on_main(lambda: task(work), partial(call, rank))

    return together(process, (0,) * count, timeout=60)


def failing(failures, before=0, after=0):
    """Return a pass that exchanges values some times before, and some times after the ranks in `failures` fail."""

    def call(rank, name):
        for turn in range(before + after + 1):
            if turn == before and rank in failures:
                raise failures[rank]
            assert peers.agreed(peers.everyone(), lambda value=turn: value) == [turn] * peers.everyone().size
        return name

    return call


def several(call):
    """Evaluate three times, by `call`, as a run does; return the metrics of each, and what was printed."""
    metrics, warnings = [], []

    def task(work):
        def evaluate(step):
            return {"loss": work.run(partial(call, 0), f"evaluation {step}")}

        log = Log.__new__(Log)
        log.print, log.write, log.first, log.main = warnings.append, lambda *_: None, -1, False
        metrics.extend(log.evaluate(step, evaluate) for step in range(3))
        return len(metrics)

    return task, metrics, warnings


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (1, 0), (1, 1)])
@pytest.mark.parametrize("ranks", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_a_file_that_one_process_cannot_read_costs_the_evaluation_not_the_run(ranks, before, after):
    once = failing({rank: OSError(5, "it broke", f"file-{rank}") for rank in ranks}, before, after)

    def call(rank, name):
        return once(rank, name) if name == "evaluation 1" else failing({}, 1)(rank, name)

    task, metrics, warnings = several(call)
    assert processes(call, task, 3) == [3, None, None]
    assert metrics == [{"loss": "evaluation 0"}, None, {"loss": "evaluation 2"}]
    assert warnings == ["warning: no evaluation at step 1: it broke; training goes on"]


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (1, 0), (1, 1)])
@pytest.mark.parametrize("ranks", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize(("error", "text"), [(UserError("it broke"), "it broke"), (KeyError("it"), "KeyError: 'it'")])
def test_an_error_in_one_process_ends_all(ranks, before, after, error, text):
    first = []

    def task(work, call):
        try:
            return work.run(partial(call, 0), "evaluation")
        except Exception as raised:
            first.append(raised)
            raise UserError(peers.error_text(raised)) from None  # `together` returns these

    call = failing(dict.fromkeys(ranks, error), before, after)
    raised = processes(call, lambda work: task(work, call), 3)
    assert [str(one) for one in raised] == [text] * 3
    assert all(isinstance(one, UserError) for one in raised)
    assert (first[0] is error) == (0 in ranks), "the main process raises its own error unchanged"


def test_an_error_ends_a_run_in_which_another_process_cannot_read_a_file():
    call = failing({0: OSError("no file"), 1: UserError("it broke")})
    task, _, warnings = several(call)
    assert [str(one) for one in processes(call, task)] == ["it broke"] * 2
    assert not warnings


def test_a_process_that_exchanges_more_than_another_is_an_error_and_no_deadlock():
    def call(rank, name):
        return peers.everyone().gather(name) if rank else name

    main, other = processes(call, lambda work: work.run(partial(call, 0), "evaluation"))
    assert isinstance(main, UserError)
    assert "without this one" in str(main)
    assert str(other).endswith(str(main))


def test_a_file_that_another_process_cannot_read_is_named():
    call = failing({1: FileNotFoundError(2, "No such file", "picture.png")})
    main, _ = processes(call, lambda work: work.run(partial(call, 0), "evaluation"))
    assert isinstance(main, FileNotFoundError)
    assert (main.filename, main.strerror) == ("picture.png", "No such file")


@pytest.mark.parametrize("broken", [0, 1])
def test_a_method_that_fails_on_one_process_ends_the_evaluation_of_all(broken, pictures, tmp_path):
    def loss(batch, t, seed):
        raise UserError("it broke")

    methods = [method_of("class", pictures, tmp_path) for _ in range(2)]
    methods[broken].heldout_losses = loss
    assert [str(error) for error in evaluated(methods, tmp_path)] == ["it broke"] * 2


def test_what_one_process_does_alone_is_not_shared():
    work = SharedWork()
    assert work.on_main(lambda: work.run(str.upper, "name"), str.lower) == "NAME"


def test_an_error_outside_a_pass_is_told_to_the_others():
    def fail(work):
        assert work.run(str, "evaluation") == "evaluation"
        raise UserError("no room")

    assert [str(error) for error in processes(lambda rank, name: name, fail)] == ["no room"] * 2


def test_a_pass_that_no_process_waits_for_is_an_error():
    """Without it, the pass would wait for the others for 30 days."""

    def process(rank):
        with pytest.raises(RuntimeError, match="within on_main"):
            SharedWork(peers.everyone(), peers.host()).run(str, "evaluation")
        return rank

    assert together(process, (0, 0), timeout=60) == [0, 1]
