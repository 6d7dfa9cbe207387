"""Pictures, configs and undisturbed runs that the trials share, and processes in which real doors are run."""

import contextlib
import json
import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.torture import victims
from ldm_kit import config as configs
from ldm_kit.training import checkpoint
from tests.training.helpers import CLASSES, CLASSIFIER, KL, TEXT, VQ, picture_folder, settings, tensors_of

KINDS = {"kl": KL, "vq": VQ, "text": TEXT, "classes": CLASSES, "classifier": CLASSIFIER}
DOORS = {"kl": "train_ae", "vq": "train_ae", "text": "train_ldm", "classes": "train_ldm", "classifier": "train_ldm"}
QUIET = ("log.every=1", "log.evaluate_every=4", "log.pictures=2", "data.heldout=0.2")
LONG = 120.0  # seconds that a process may take


@dataclass
class Bench:
    """A folder for everything that the trials write; what is expensive is made once."""

    root: Path
    share: float = 1.0  # of the trials, for those that have to know beforehand
    made: dict[str, Any] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        os.environ["LDM_KIT_CACHE"] = str(self.root / "cache")
        self.pictures = picture_folder(self.root / "pictures")
        self.server = multiprocessing.get_context("forkserver")
        self.server.set_forkserver_preload(["benchmarks.torture.preload"])

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made when it is first asked for."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder for one trial; what a failed one has left stays."""
        self.count += 1
        path = self.root / f"trial-{self.count:04d}"
        path.mkdir()
        yield path
        shutil.rmtree(path)

    def config(self, kind: str, run: Path, *overrides: str) -> Any:
        """A tiny run's config."""
        return settings(KINDS[kind], self.pictures, run, *overrides)

    def door(self, kind: str, run: Path, *overrides: str) -> "Door":
        """A door with a config file beside the run's folder."""
        path = run.with_suffix(".yaml")
        configs.write(self.config(kind, run, *QUIET, *overrides), path)
        return Door(self, DOORS[kind], path, run)

    def process(self, target: Callable[..., object], *arguments: object) -> BaseProcess:
        """A function in a process of its own, forked from a server that has imported everything."""
        process = self.server.Process(target=target, args=arguments)
        process.start()
        return process

    def together(self, world: int, function: Callable[..., Any], *arguments: object) -> list[Any]:
        """What a function returns in each of several processes that talk gloo."""
        with self.folder() as folder:
            files = [folder / f"rank-{rank}.pickle" for rank in range(world)]
            processes = [
                self.process(victims.rank, environment, file, function, arguments)
                for environment, file in zip(places(world), files, strict=True)
            ]
            codes = [ended(process) for process in processes]
            if codes != [0] * world:
                said = [file.with_suffix(".txt").read_text()[-600:] for file in files]
                raise AssertionError(f"processes ended with {codes}: {said}")
            return [victims.unpickled(file) for file in files]


@dataclass
class Door:
    """A door, its config and its run's folder."""

    bench: Bench
    name: str
    config: Path
    run: Path

    @property
    def said(self) -> Path:
        """What it has printed."""
        return self.run.with_suffix(".txt")

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None, plan: Any = None) -> BaseProcess:
        """Start it; with a crash plan it dies by itself."""
        line = [str(self.config), *arguments]
        return self.bench.process(victims.door, self.name, line, dict(environment or {}), self.said, plan)

    def start_ranks(self, world: int, *arguments: str) -> list[BaseProcess]:
        """Start it on several processes that talk gloo."""
        return [self.start(*arguments, environment=environment) for environment in places(world)]

    def finish(self, *arguments: str, world: int = 1) -> None:
        """Go on to the end, which must be reached."""
        resumed = ["--resume", "latest", *arguments]
        processes = [self.start(*resumed)] if world == 1 else self.start_ranks(world, *resumed)
        codes = [ended(process) for process in processes]
        assert codes == [0] * world, f"resume ended with {codes}: {self.said.read_text()[-600:]}"


def ended(process: BaseProcess, seconds: float = LONG) -> int | None:
    """The exit code of a process, which has to end by itself."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"a process did not end within {seconds:.0f} s")
    return process.exitcode


def places(world: int) -> list[dict[str, str]]:
    """The environment variables by which processes find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    ranks = [{**common, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world} for rank in range(world)]
    return [{name: str(value) for name, value in names.items()} for names in ranks]


def good(run: Path, had: bool) -> None:
    """Whatever bears a checkpoint's name verifies; there is one if there was one before."""
    found = checkpoint.steps(run)
    for path in found.values():
        checkpoint.verify(path)
    assert found or not had, "no checkpoint is left"


def outcome(run: Path) -> dict[str, Any]:
    """All that a finished run leaves: hashes of the last checkpoint's and the model's tensors, and its figures."""
    last = max(checkpoint.steps(run).items())[1]
    models = sorted((run / "model").rglob("*.safetensors"))
    return {
        "checkpoint": {last.name: tensors_of(last)},
        "model": {path.relative_to(run).as_posix(): victims.sha256(path) for path in models},
        "metrics": figures(run),
    }


def figures(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "steps_per_second"} for line in lines]


def same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Two runs left the same, bit for bit."""
    for part, value in expected.items():
        assert found[part] == value, f"{part} differs: {difference(found[part], value)}"


def difference(found: Any, expected: Any) -> str:
    """Where two results first differ."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        keys = [key for key in {**expected, **found} if found.get(key) != expected.get(key)]
        return ", ".join(map(str, keys))
    pairs = enumerate(zip(found, expected, strict=False))
    first = next(((i, a, b) for i, (a, b) in pairs if a != b), None)
    return f"{len(found)} instead of {len(expected)} lines" if first is None else f"line {first[0]}: {first[1:]}"


def until(happens: Callable[[], object], process: BaseProcess, seconds: float = LONG) -> None:
    """Wait until something happens, while a process lives."""
    deadline = time.monotonic() + seconds
    while not happens() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
