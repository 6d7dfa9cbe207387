"""The stress trials' harness: its counts and its table, and whether it sees what it looks for."""

import signal

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.training import checkpoint
from tests.stress import corruption, fault_injection
from tests.stress.fault_injection import Plan
from tests.stress.harness import Harness, check_checkpoints, check_equal, sample_trials
from tests.stress.report import Result, merge, table, write_page
from tests.training.helpers import context

pytest_plugins = ["pytester"]
OUTER = """
import pytest
from tests.stress.promises import Promise

def broken():
    raise AssertionError("it broke")

TRIALS = [("fine", lambda: None), ("bad", broken), ("exits", lambda: exit(2))]
TRIALS.append(("absent", lambda: pytest.skip("no disk")))

def test_kills(run_trials):
    run_trials(Promise("kills", "kill -9", lambda harness: TRIALS))
"""


@pytest.fixture
def harness(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    return Harness(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_damage_is_found(harness):
    trials = list(corruption.trials(harness))
    names = [name for name, _ in trials]
    assert len(names) >= 220
    assert len({*names}) == len(names)
    for _, check in sample_trials(trials, 0.03):
        check()


@pytest.mark.filterwarnings("ignore")
def test_blind_verification_is_seen(harness, monkeypatch):
    trials = list(corruption.trials(harness))
    monkeypatch.setattr(checkpoint, "verify", lambda folder: None)
    with pytest.raises(AssertionError, match="the damage was not found"):
        trials[0][1]()


def test_outcomes_of_trials_stand_in_the_table(pytester):
    pytester.makepyfile(OUTER)
    page = pytester.path / "page.md"
    page.write_text("# Trials\n")
    inner = pytester.runpytest_inprocess("-p", "tests.stress.conftest", f"--page={page}", "--share=1")
    inner.stdout.fnmatch_lines(
        ["| kill -9 | 3 | 2 | [0-9]* |", "- kills: bad: *it broke*", "- kills: exits: *exit with 2*"]
    )
    inner.stdout.fnmatch_lines(["- kills: not tried: absent: no disk"])
    assert inner.ret == pytest.ExitCode.TESTS_FAILED
    assert "| kill -9 | 3 | 2 |" in page.read_text()


def test_trials_that_were_not_begun_are_told_and_a_share_is_named(tmp_path):
    text = table([Result("kills", "kill -9", 3), Result("memory", "out of memory", 4, trials=4)])
    assert "- kills: 3 of 3 trials were not begun" in text
    assert "- memory" not in text
    (tmp_path / "page.md").write_text("")
    write_page([Result("kills", "kill -9", 1)], 0.02, tmp_path / "page.md")
    assert "2% of the trials" in (tmp_path / "page.md").read_text()


def test_a_promise_tried_again_replaces_its_result_and_no_other(tmp_path):
    file, order = tmp_path / "results.json", ("kills", "memory")
    both = [Result("memory", "", 40, 40, ["torn"]), Result("kills", "", 84, 84)]
    merge(file, {result.promise: result for result in both}, order)
    merged = merge(file, {"memory": Result("memory", "", 40, 40)}, order)
    assert [(name, one.trials, one.failures) for name, one in merged.items()] == [("kills", 84, []), ("memory", 40, [])]
    assert merge(file, {}, order) == merged


def fill(folder):
    checkpoint.save_tensors({"w": torch.arange(100.0)}, folder / "net.safetensors")
    (folder / "state.json").write_text("{}")


def dying(run, plan):
    fault_injection.arm(plan)
    for step in (1, 2):
        checkpoint.write(run / f"checkpoint-{step:08d}", fill)
        checkpoint.prune(run, keep=1)


def killed(run, plan):
    process = context().Process(target=dying, args=(run, plan))
    process.start()
    process.join(60)
    return process.exitcode


def test_operations_are_counted_and_died_at(tmp_path):
    log = tmp_path / "log"
    assert killed(tmp_path / "whole", Plan(tmp_path / "whole", "log", log=log)) == 0
    lines = log.read_text().splitlines()
    assert sum(line.startswith("safetensors w") for line in lines) == 2
    assert sum(line == "rename - checkpoint-00000002" for line in lines) == 1
    assert sum(line.startswith("fsync") for line in lines) >= 2 * 5  # files, manifest, draft and parent of each save
    there = 1 + next(i for i, line in enumerate(lines) if line == "rename - checkpoint-00000001")
    for number, count in ((there, 0), (there + 1, 1)):
        run = tmp_path / f"at-{number}"
        assert killed(run, Plan(run, "before", number)) == -signal.SIGKILL
        assert len(checkpoint.steps(run)) == count
        check_checkpoints(run, expect_one=bool(count))
    torn = 1 + next(i for i, line in enumerate(lines) if line.startswith("safetensors"))
    run = tmp_path / "torn"
    assert killed(run, Plan(run, "torn", torn)) == -signal.SIGKILL
    (half,) = run.rglob("net.safetensors")
    assert 0 < half.stat().st_size < 400


def test_no_room_is_an_error_of_the_operation(tmp_path):
    with pytest.raises(OSError, match="No space left"):
        fault_injection.Injector(Plan(tmp_path, "full", 1)).observe("mkdir", str(tmp_path / "a"))


def test_a_share_is_never_nothing_and_always_the_same():
    assert len(sample_trials(range(100), 0.001)) == 1
    assert sample_trials(range(100), 0.3) == sample_trials(range(100), 0.3) != list(range(30))
    assert sample_trials(range(5), 1.0) == [0, 1, 2, 3, 4]


def test_differences_are_seen(tmp_path):
    with pytest.raises(AssertionError, match="tensors differs: b"):
        check_equal({"tensors": {"a": 1, "b": 2}}, {"tensors": {"a": 1, "b": 3}})
    with pytest.raises(AssertionError, match="no checkpoint is left"):
        check_checkpoints(tmp_path, expect_one=True)
    (tmp_path / "checkpoint-00000001").mkdir()
    with pytest.raises(UserError, match="no complete checkpoint"):
        check_checkpoints(tmp_path, expect_one=False)
