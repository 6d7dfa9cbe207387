"""The torture harness at a tiny share, and whether it would see what it looks for."""

import signal

import pytest
import torch

from benchmarks.torture import __main__ as torture
from benchmarks.torture import corruption, crash
from benchmarks.torture.bench import Bench, good, same
from benchmarks.torture.table import page, table
from benchmarks.torture.trial import Case, Clock, Missing, Result, attempt, sample
from ldm_kit.config import UserError
from ldm_kit.training import checkpoint
from tests.training.helpers import context


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))  # the harness sets it for good


def test_a_tiny_share_of_what_needs_no_other_process(tmp_path, capsys):
    written = tmp_path / "page.md"
    arguments = ["--only", "corruption", "--share", "0.03", "--folder", str(tmp_path), "--page", str(written)]
    assert torture.main(arguments) == 0
    said = capsys.readouterr()
    assert "| damage found, file named, `latest` falls back | 8 | 0 |" in said.out
    assert "corruption: 7/8, 0 failed, about" in said.err
    assert said.out.strip() in written.read_text()


def test_a_promise_tried_again_replaces_its_result_and_no_other(tmp_path):
    file = tmp_path / "results.json"
    torture.kept(file, [Result("worlds", 40, 40, ["torn"]), Result("kills", 84, 84)])
    found = torture.kept(file, [Result("worlds", 40, 40)])
    assert [(one.promise, one.trials, one.failures) for one in found] == [("kills", 84, []), ("worlds", 40, [])]
    assert torture.kept(file, []) == found


def test_blind_verification_is_seen(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "verify", lambda folder: None)
    assert torture.main(["--only", "corruption", "--share", "0.005", "--folder", str(tmp_path)]) == 1
    assert "the damage was not found" in capsys.readouterr().out


def fill(folder):
    checkpoint.save_tensors({"w": torch.arange(100.0)}, folder / "net.safetensors")
    (folder / "state.json").write_text("{}")


def dying(run, plan):
    crash.arm(plan)
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
    assert killed(tmp_path / "whole", crash.Plan(tmp_path / "whole", "log", log=log)) == 0
    lines = log.read_text().splitlines()
    assert sum(line.startswith("safetensors w") for line in lines) == 2
    assert sum(line == "rename - checkpoint-00000002" for line in lines) == 1
    assert sum(line.startswith("fsync") for line in lines) >= 2 * 5  # files, manifest, draft and parent of each save
    there = 1 + next(i for i, line in enumerate(lines) if line == "rename - checkpoint-00000001")
    for number, count in ((there, 0), (there + 1, 1)):
        run = tmp_path / f"at-{number}"
        assert killed(run, crash.Plan(run, "before", number)) == -signal.SIGKILL
        assert len(checkpoint.steps(run)) == count
        good(run, had=bool(count))
    torn = 1 + next(i for i, line in enumerate(lines) if line.startswith("safetensors"))
    run = tmp_path / "torn"
    assert killed(run, crash.Plan(run, "torn", torn)) == -signal.SIGKILL
    (half,) = run.rglob("net.safetensors")
    assert 0 < half.stat().st_size < 400


def test_no_room_is_an_error_of_the_operation(tmp_path):
    with pytest.raises(OSError, match="No space left"):
        crash._Armed(crash.Plan(tmp_path, "full", 1)).meet("mkdir", str(tmp_path / "a"))


def fail():
    raise UserError("it broke")


def absent():
    raise Missing("not installed")


def test_failures_absences_and_time_are_told(capsys):
    cases = [Case("fine", lambda: None), Case("bad", fail), Case("absent", absent)]
    result = attempt("kills", lambda: cases, 1.0, Clock(60))
    assert (result.planned, result.trials, len(result.failures)) == (3, 2, 1)
    late = attempt("memory", lambda: cases, 1.0, Clock(0))
    told = table([result, late])
    assert "- kills: bad: it broke (test_torture.py:" in told
    assert "- kills: not tried: not installed" in told
    assert "- memory: 3 of 3 trials were not begun: time was up" in told
    assert "0.1 % of the trials" not in page([Result("kills", 1)], 1.0)
    assert "FAILED kills: bad" in capsys.readouterr().err


def test_a_share_is_never_nothing_and_always_the_same():
    assert len(sample(range(100), 0.001)) == 1
    assert sample(range(100), 0.3) == sample(range(100), 0.3) != list(range(30))
    assert sample(range(5), 1.0) == [0, 1, 2, 3, 4]


def test_differences_are_seen(tmp_path):
    with pytest.raises(AssertionError, match="tensors differs: b"):
        same({"tensors": {"a": 1, "b": 2}}, {"tensors": {"a": 1, "b": 3}})
    with pytest.raises(AssertionError, match="no checkpoint is left"):
        good(tmp_path, had=True)
    (tmp_path / "checkpoint-00000001").mkdir()
    with pytest.raises(UserError, match="no complete checkpoint"):
        good(tmp_path, had=False)


@pytest.mark.slow
def test_a_tiny_share_of_everything(tmp_path):
    only = ["resume", "kills", "boundaries", "worlds", "nan", "signals", "disk", "memory"]
    assert torture.main(["--only", *only, "--share", "0.004", "--folder", str(tmp_path)]) == 0


def test_all_damage_is_tried(tmp_path):
    names = [case.name for case in corruption.cases(Bench(tmp_path))]
    assert len(names) >= 220
    assert len({*names}) == len(names)
