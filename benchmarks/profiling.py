"""Profile of a training step on this machine, by phase of the loop and by kind of operation.

python -m benchmarks.profiling                    both stages of the quick recipe, written to the page performance.md
python -m benchmarks.profiling stage1 --steps 20

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
from pkgutil import resolve_name
from typing import Annotated, Any
from unittest.mock import patch

import typer
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.speed import machine
from benchmarks.speed.workspace import Workspace, train_stage1, train_stage2
from benchmarks.tables import chosen, markdown, page_of, write_section
from ldm_kit.cli import cli_errors, run_cli

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
    """Stopwatch of a training step's phases: measures wall-clock and processor time spent in each.

    Phases nest; time counts for the innermost one alone. `spent` has [seconds by the clock, seconds of processor
    time] by name of the phase.
    """

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.stack, self.last = [REST], _now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Return a context in which time counts for the phase `name`; torch.profiler records the phase too."""
        self.charge()
        self.stack.append(name)
        try:
            with record_function(MARK + name):
                yield
        finally:
            self.charge()
            self.stack.pop()

    def charge(self) -> None:
        """Add the time since the last call to the current (innermost) phase."""
        now = _now()
        for index in range(2):
            self.spent[self.stack[-1]][index] += now[index] - self.last[index]
        self.last = now

    def restart(self) -> None:
        """Set the times of all phases to 0."""
        self.spent.clear()
        self.last = _now()

    def wrap(self, action: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return the function `action` wrapped so that its time counts for the phase `name`."""

        @wraps(action)
        def charged(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return action(*args, **kwargs)

        return charged


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


@contextmanager
def clock_on_phases() -> Iterator[Clock]:
    """Return a context with a `Clock`, in which the functions in PHASES are patched to count as their phases."""
    clock = Clock()
    with ExitStack() as stack:
        for target, name in PHASES.items():
            owner, _, attribute = target.rpartition(".")
            module = resolve_name(owner)
            stack.enter_context(patch.object(module, attribute, clock.wrap(getattr(module, attribute), name)))
        yield clock


def phase_table(clock: Clock, units: Iterator[object], steps: int) -> str:
    """Train `steps` steps; return a Markdown table of processor time, share and wall-clock time of each phase.

    `clock` is that of `clock_on_phases`; each `next` of `units` trains a step.
    """
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
    return markdown(("phase", "ms of processor time", "share", "ms by the clock"), rows)


def operation_table(units: Iterator[object], steps: int, top: int) -> str:
    """Train `steps` steps under torch.profiler; return a Markdown table of the networks' time by kind of operation.

    Each `next` of `units` trains a step. The `top` slowest operations are printed too.
    """
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            next(units)
    spent: dict[str, float] = defaultdict(float)
    for event in recorded.events() or ():
        if phase_of(event) in NETWORKS:
            spent[event.name] += event.self_cpu_time_total
    for name, micro in sorted(spent.items(), key=lambda item: -item[1])[:top]:
        typer.echo(f"{micro / 1e3 / steps:9.2f} ms  {name}")
    kinds: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for name, micro in spent.items():
        kinds[kind_of(name)].append((micro, name))
    return markdown(("forward and backward", "share", "most of it"), _shares(kinds, sum(spent.values())))


def _shares(kinds: Mapping[str, Iterable[tuple[float, str]]], total: float) -> list[tuple[str, str, str]]:
    rows = []
    for name, events in sorted(kinds.items(), key=lambda item: -sum(micro for micro, _ in item[1])):
        share = sum(micro for micro, _ in events) / total
        most = ", ".join(f"{one.split('::')[-1]} {100 * micro / total:.0f} %" for micro, one in sorted(events)[:-4:-1])
        rows.append((name, f"{100 * share:.1f} %", most))
    return rows


def kind_of(name: str) -> str:
    """Return the kind (a label in KINDS, else OTHER) of the operation that torch.profiler calls `name`."""
    return next((label for label, pattern in KINDS if re.search(pattern, name)), OTHER)


def phase_of(event: Any) -> str | None:
    """Return the innermost phase within which torch.profiler recorded an event; None: within no phase."""
    while event is not None:
        if event.name.startswith(MARK):
            return event.name.removeprefix(MARK)
        event = event.cpu_parent
    return None


STAGES: dict[str, Callable[[Workspace], Iterator[object]]] = {"stage1": train_stage1, "stage2": train_stage2}
VARIATIONS: dict[str, dict[str, Callable[[Workspace], Iterator[object]]]] = {
    "stage1": {"without the perceptual distance": partial(train_stage1, overrides=("perceptual={spec: none}",))},
    "stage2": {"with torch's AdamW alone": partial(train_stage2, overrides=("optim.muon=null",))},
}


def profile_stage(stage: str, space: Workspace, steps: int, top: int) -> str:
    """Profile training steps of a stage, and return Markdown with the tables of phases and of operations.

    Sentences say what a step of each of the stage's VARIATIONS costs.

    Args:
        stage: stage1 (autoencoder) or stage2 (denoiser).
        space: folders that the runs use.
        steps: training steps to time.
        top: how many of the slowest operations to print on the screen.
    """
    with clock_on_phases() as clock:
        units = STAGES[stage](space)
        _warm(units)
        paragraphs = [f"### The quick recipe's {stage[:-1]} {stage[-1]}", phase_table(clock, units, steps)]
        paragraphs.append(operation_table(units, max(2, steps // 4), top))
    for name, open_stage in VARIATIONS[stage].items():
        units = open_stage(space)
        _warm(units)
        start = time.process_time()
        for _ in range(steps):
            next(units)
        paragraphs.append(f"A step {name}: {1e3 * (time.process_time() - start) / steps:.1f} ms of processor time.")
    return "\n\n".join(paragraphs)


def _warm(units: Iterator[object]) -> None:
    for _ in range(2):
        next(units)


def main(
    stages: Annotated[list[str] | None, typer.Argument(help="stage1, stage2; both when left out")] = None,
    steps: Annotated[int, typer.Option(help="steps to be timed")] = 8,
    top: Annotated[int, typer.Option(help="operations to be listed on the screen")] = 12,
    page: Annotated[bool, typer.Option("--page/--no_page", help="write the page performance.md")] = True,
) -> None:
    """Profile training steps, print the tables, and write them into the page performance.md."""
    with cli_errors(), tempfile.TemporaryDirectory(prefix="profile-") as folder, open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        stages, target = chosen(stages, STAGES), page_of("performance.md") if page else None
        space = Workspace.make(Path(folder), 64 if steps < 4 else 1024)
        for stage in stages:
            with redirect_stderr(nowhere):
                text = profile_stage(stage, space, steps, top)
            command = f"`python -m benchmarks.profiling {stage}` on {machine.describe()}; means of {steps} steps."
            text = f"{text}\n\n{command}"
            text = text if stage != "stage1" else f"## Where a step's time goes\n\n{text}"
            typer.echo(text)
            if target is not None:
                write_section(target, f"profile {stage}", text)


if __name__ == "__main__":
    run_cli(main)
