"""Shared folders, configs, reference runs and processes of the stress trials, and the comparisons between runs."""

import contextlib
import json
import multiprocessing
import random
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ldm_kit import config as configs
from ldm_kit.methods.base import RunConfig
from ldm_kit.training import checkpoint
from tests.stress import victims
from tests.stress.fault_injection import Plan
from tests.training.helpers import picture_folder, settings, tensors_of

Trial = tuple[str, Callable[[], object]]  # a name, and a check that raises if the promise is broken
LOG_OFTEN = ("log.every=1", "log.evaluate_every=4", "log.pictures=2", "data.heldout=0.2")
ENDLESS = ("train.steps=100000", "train.checkpoint_every=100000", "log.evaluate_every=100000")
TIMEOUT = 120.0  # seconds that a process may take


def sample_trials(trials: Sequence[Trial], share: float) -> list[Trial]:
    """Return a share of the trials, at least one, drawn at random with a fixed seed."""
    count = min(len(trials), max(1, round(len(trials) * share)))
    return [trials[i] for i in sorted(random.Random(1).sample(range(len(trials)), count))]


@dataclass
class Harness:
    """Folders and processes of all trials; reference runs are made once."""

    root: Path
    share: float = 1.0  # of the trials, for a promise that has to know beforehand
    cache: dict[str, Any] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.pictures = picture_folder(self.root / "pictures")
        self.server = multiprocessing.get_context("forkserver")
        self.server.set_forkserver_preload(["tests.stress.preload"])

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """Return the value of `make`, called at the first request for the key."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """Provide a folder for one trial; it is removed unless the trial fails."""
        self.count += 1
        path = self.root / f"trial-{self.count:04d}"
        path.mkdir()
        yield path
        shutil.rmtree(path)

    def config(self, kind: str, run: Path, *overrides: str) -> RunConfig:
        """Return the config of a tiny run."""
        return settings(victims.KINDS[kind], self.pictures, run, *overrides)

    def script(self, kind: str, run: Path, *overrides: str) -> "Script":
        """Write a config file beside the run's folder and return the script that trains it."""
        path = run.with_suffix(".yaml")
        configs.write(self.config(kind, run, *LOG_OFTEN, *overrides), path)
        return Script(self, kind, path, run)

    def process(self, target: Callable[..., object], *arguments: object) -> BaseProcess:
        """Start a function in a process forked from a server that has imported everything."""
        process = self.server.Process(target=target, args=arguments)
        process.start()
        return process

    def run(self, world: int, function: Callable[..., Any], *arguments: object) -> list[Any]:
        """Return what `function(pictures, *arguments)` returns on each of `world` processes; one is this process."""
        if world == 1:
            return [function(self.pictures, *arguments)]
        with self.folder() as folder:
            files = [folder / f"rank-{rank}.pickle" for rank in range(world)]
            processes = [
                self.process(victims.run_rank, environment, file, function, (self.pictures, *arguments))
                for environment, file in zip(rank_environments(world), files, strict=True)
            ]
            codes = [exit_code(process) for process in processes]
            if codes != [0] * world:
                tails = [file.with_suffix(".txt").read_text()[-600:] for file in files]
                raise AssertionError(f"processes ended with {codes}: {tails}")
            return [victims.load_pickle(file) for file in files]


@dataclass
class Script:
    """A training script, its config file and its run's folder."""

    harness: Harness
    kind: str
    config: Path
    run: Path

    @property
    def output(self) -> Path:
        """File of everything that the script printed."""
        return self.run.with_suffix(".txt")

    @property
    def tail(self) -> str:
        """End of what the script printed."""
        return self.output.read_text()[-600:]

    def start(
        self, *arguments: str, environment: Mapping[str, str] | None = None, plan: Plan | None = None
    ) -> BaseProcess:
        """Start the script; a plan makes one of its file operations fail."""
        line = [str(self.config), *arguments]
        name, environment = victims.SCRIPTS[self.kind], dict(environment or {})
        return self.harness.process(victims.run_script, name, line, environment, self.output, plan)

    def start_ranks(self, world: int, *arguments: str) -> list[BaseProcess]:
        """Start the script on several processes connected by gloo."""
        return [self.start(*arguments, environment=environment) for environment in rank_environments(world)]

    def finish(self, *arguments: str, world: int = 1) -> None:
        """Resume the run and train to its end, which must be reached."""
        resumed = ["--resume", "latest", *arguments]
        processes = [self.start(*resumed)] if world == 1 else self.start_ranks(world, *resumed)
        codes = [exit_code(process) for process in processes]
        assert codes == [0] * world, f"resume ended with {codes}: {self.tail}"

    def check_two_more_steps(self, whole: Path, world: int = 1) -> None:
        """Train the interrupted run for two more steps and compare it with one of that length never interrupted."""
        (step,) = checkpoint.steps(self.run)
        end = (f"train.steps={step + 2}", *ENDLESS[1:])
        self.finish(*end, world=world)
        other = self.harness.script(self.kind, whole, *end)
        other.finish(world=world)
        last = f"checkpoint-{step + 2:08d}"
        check_equal(tensors_of(self.run / last), tensors_of(whole / last))
        check_equal({"metrics": logged_metrics(self.run)}, {"metrics": logged_metrics(whole)})


def exit_code(process: BaseProcess, seconds: float = TIMEOUT) -> int | None:
    """Return the exit code of a process, which has to end by itself within `seconds`."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"a process did not end within {seconds:.0f} s")
    return process.exitcode


def rank_environments(world: int) -> list[dict[str, str]]:
    """Return the environment variables of each of `world` processes on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    ranks = [{**common, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world} for rank in range(world)]
    return [{name: str(value) for name, value in names.items()} for names in ranks]


def wait_until(condition: Callable[[], object], process: BaseProcess, seconds: float = TIMEOUT) -> None:
    """Wait until a condition holds, as long as the process lives."""
    deadline = time.monotonic() + seconds
    while not condition() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)


def check_checkpoints(run: Path, expect_one: bool) -> None:
    """Check that every checkpoint of a run verifies, and that there is one if `expect_one`."""
    checkpoints = checkpoint.steps(run)
    for path in checkpoints.values():
        checkpoint.verify(path)
    assert checkpoints or not expect_one, "no checkpoint is left"


def run_result(run: Path) -> dict[str, Any]:
    """Return digests of a finished run's last checkpoint and model, and its logged metrics."""
    last = max(checkpoint.steps(run).items())[1]
    models = sorted((run / "model").rglob("*.safetensors"))
    return {
        "checkpoint": {last.name: tensors_of(last)},
        "model": {path.relative_to(run).as_posix(): victims.sha256(path) for path in models},
        "metrics": logged_metrics(run),
    }


def logged_metrics(run: Path) -> list[dict[str, float]]:
    """Return the lines of metrics.jsonl without what depends on the clock."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "steps_per_second"} for line in lines]


def check_equal(result: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Check that two runs left the same, bit for bit."""
    for name, value in expected.items():
        assert result[name] == value, f"{name} differs: {first_difference(result[name], value)}"


def first_difference(result: Any, expected: Any) -> str:
    """Describe where two results first differ."""
    if isinstance(expected, Mapping) and isinstance(result, Mapping):
        keys = [key for key in {**expected, **result} if result.get(key) != expected.get(key)]
        return ", ".join(map(str, keys))
    pairs = enumerate(zip(result, expected, strict=False))
    first = next(((i, a, b) for i, (a, b) in pairs if a != b), None)
    return f"{len(result)} instead of {len(expected)} lines" if first is None else f"line {first[0]}: {first[1:]}"
