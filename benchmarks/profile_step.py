"""Where a training step's time goes on this machine: by phase of the loop, and by kind of operation.

python -m benchmarks.profile_step                    both stages of the demo, written to docs/performance.md
python -m benchmarks.profile_step stage1 --steps 20

Phases are timed by wrapping the loop's own parts; processor time is what other programs on the machine cannot disturb.
Operations come from torch.profiler, over steps of their own, since it slows down what it watches.
"""

import os
import re
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import typer
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.speed import machine, ours
from benchmarks.speed.page import put, table
from benchmarks.speed.world import World
from ldm_kit.cli import cli_errors, run_cli
from ldm_kit.config import UserError

PHASES = {  # what is wrapped, and the phase that it is: a phase's time is its own, without those within
    "torch.utils.data.dataloader._BaseDataLoaderIter.__next__": "loader and cache",
    "ldm_kit.training.loop.Trainer._accumulate": "forward and loss",
    "ldm_kit.diffusion.rng.normal": "noise and times",
    "ldm_kit.diffusion.rng.uniform": "noise and times",
    "autoencoder.perceptual.Perceptual.forward": "perceptual distance, forward",
    "torch.Tensor.backward": "backward",
    "ldm_kit.training.loop.Trainer.grad_norms": "gradient's norm, finite?, clipping",
    "ldm_kit.training.loop.Trainer.check_finite": "gradient's norm, finite?, clipping",
    "ldm_kit.training.optim.clip": "gradient's norm, finite?, clipping",
    "ldm_kit.training.muon.Muon.step": "Muon",
    "torch.optim.AdamW.step": "AdamW",
    "ldm_kit.training.ema.Ema.update": "averages (EMA)",
    "ldm_kit.training.log.Log.step": "log",
}
REST = "the loop itself"
NETWORKS = ("forward and loss", "perceptual distance, forward", "backward")  # whose operations are told apart
MARK = "phase: "
KINDS = (  # the first pattern found in an operation's name says its kind
    ("Python and modules", MARK),
    ("autograd's bookkeeping", r"autograd::|Backward\d"),
    ("convolution", r"conv"),
    ("attention", r"bmm|softmax|scaled_dot"),
    ("linear maps", r"::(mm|addmm|linear|matmul)\b"),
    ("norms", r"norm"),
    ("activations", r"silu|gelu|relu|hardtanh|sigmoid"),
    ("casts and copies", r"copy|::to\b|clone|contiguous|::cat\b|fill_|zero|empty|pad|index|stack|resize"),
    ("views", r"view|reshape|expand|transpose|permute|detach|::t\b|slice|select|chunk|split|narrow|unsqueeze|flatten"),
)
OTHER = "other arithmetic"


class Clock:
    """Seconds by the clock and of processor time, charged to the innermost phase."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.stack, self.last = [REST], _now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Whatever happens within is this phase's."""
        self.charge()
        self.stack.append(name)
        try:
            with record_function(MARK + name):
                yield
        finally:
            self.charge()
            self.stack.pop()

    def charge(self) -> None:
        """All time since the last charge goes to the phase that we are in."""
        now = _now()
        for index in range(2):
            self.spent[self.stack[-1]][index] += now[index] - self.last[index]
        self.last = now

    def restart(self) -> None:
        """Forget all."""
        self.spent.clear()
        self.last = _now()

    def wrapped(self, action: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The same action, charged."""

        @wraps(action)
        def charged(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return action(*args, **kwargs)

        return charged


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


@contextmanager
def watched() -> Iterator[Clock]:
    """A clock on all phases."""
    from pkgutil import resolve_name

    clock = Clock()
    with ExitStack() as stack:
        for target, name in PHASES.items():
            owner, _, attribute = target.rpartition(".")
            room = resolve_name(owner)
            stack.enter_context(patch.object(room, attribute, clock.wrapped(getattr(room, attribute), name)))
        yield clock


def phases(clock: Clock, units: Iterator[object], steps: int) -> str:
    """A table of phases, over `steps` steps."""
    clock.restart()
    for _ in range(steps):
        next(units)
    clock.charge()
    totals = [sum(column) for column in zip(*clock.spent.values(), strict=True)]
    rows = []
    for name, spent in sorted(clock.spent.items(), key=lambda item: -item[1][1]):
        wall, cpu = (1e3 * seconds / steps for seconds in spent)
        rows.append((name, f"{cpu:.1f}", f"{100 * spent[1] / totals[1]:.1f} %", f"{wall:.1f}"))
    rows.append(("**whole step**", f"{1e3 * totals[1] / steps:.1f}", "100 %", f"{1e3 * totals[0] / steps:.1f}"))
    return table(("phase", "ms of processor time", "share", "ms by the clock"), rows)


def operations(units: Iterator[object], steps: int, top: int) -> str:
    """A table of what the networks compute, forward and backward, over `steps` steps."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            next(units)
    spent: dict[str, float] = defaultdict(float)
    for event in found.events() or ():
        if phase_of(event) in NETWORKS:
            spent[event.name] += event.self_cpu_time_total
    for name, micro in sorted(spent.items(), key=lambda item: -item[1])[:top]:
        typer.echo(f"{micro / 1e3 / steps:9.2f} ms  {name}")
    kinds: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for name, micro in spent.items():
        kinds[kind(name)].append((micro, name))
    return table(("forward and backward", "share", "most of it"), _shares(kinds, sum(spent.values())))


def _shares(kinds: Mapping[str, Iterable[tuple[float, str]]], total: float) -> list[tuple[str, str, str]]:
    rows = []
    for name, found in sorted(kinds.items(), key=lambda item: -sum(micro for micro, _ in item[1])):
        share = sum(micro for micro, _ in found) / total
        most = ", ".join(f"{one.split('::')[-1]} {100 * micro / total:.0f} %" for micro, one in sorted(found)[:-4:-1])
        rows.append((name, f"{100 * share:.1f} %", most))
    return rows


def kind(name: str) -> str:
    """The kind of an operation."""
    return next((label for label, pattern in KINDS if re.search(pattern, name)), OTHER)


def phase_of(event: Any) -> str | None:
    """The innermost phase that an operation of the profile lies in."""
    while event is not None:
        if event.name.startswith(MARK):
            return event.name.removeprefix(MARK)
        event = event.cpu_parent
    return None


STAGES: dict[str, Callable[[World], Iterator[object]]] = {"stage1": ours.stage1, "stage2": ours.stage2}
VARIATIONS: dict[str, dict[str, Callable[[World], Iterator[object]]]] = {
    "stage1": {"without the perceptual distance": partial(ours.stage1, overrides=("perceptual={spec: none}",))},
    "stage2": {"with torch's AdamW alone": partial(ours.stage2, overrides=("optim.muon=null",))},
}


def described(stage: str, world: World, steps: int, top: int) -> str:
    """Both tables of a stage, and what variations of it cost."""
    with watched() as clock:
        units = STAGES[stage](world)
        _warm(units)
        parts = [f"### The demo's {stage[:-1]} {stage[-1]}", phases(clock, units, steps)]
        parts.append(operations(units, max(2, steps // 4), top))
    for name, opened in VARIATIONS[stage].items():
        units = opened(world)
        _warm(units)
        began = time.process_time()
        for _ in range(steps):
            next(units)
        parts.append(f"A step {name}: {1e3 * (time.process_time() - began) / steps:.1f} ms of processor time.")
    return "\n\n".join(parts)


def _warm(units: Iterator[object]) -> None:
    for _ in range(2):
        next(units)


def main(
    stages: Annotated[list[str] | None, typer.Argument(help="stage1, stage2; both when left out")] = None,
    steps: Annotated[int, typer.Option(help="steps to be timed")] = 8,
    top: Annotated[int, typer.Option(help="operations to be listed on the screen")] = 12,
    page: Annotated[bool, typer.Option("--page/--no_page", help="write docs/performance.md")] = True,
) -> None:
    """Profile, print, write the tables."""
    with cli_errors(), tempfile.TemporaryDirectory(prefix="profile-") as folder, open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        chosen = stages or list(STAGES)
        if unknown := [stage for stage in chosen if stage not in STAGES]:
            raise UserError(f"unknown stage {unknown[0]!r}; expected {' or '.join(STAGES)}")
        world = World.make(Path(folder))
        for stage in chosen:
            with redirect_stderr(nowhere):
                text = described(stage, world, steps, top)
            about = f"`python -m benchmarks.profile_step {stage}` on {machine.described()}; means of {steps} steps."
            text = f"{text}\n\n{about}"
            text = text if stage != "stage1" else f"## Where a step's time goes\n\n{text}"
            typer.echo(text)
            if page:
                put(f"profile {stage}", text)


if __name__ == "__main__":
    run_cli(main)
