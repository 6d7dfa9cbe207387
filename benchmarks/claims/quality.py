"""Time to quality on OpenMoji, of whole recipes and of single choices in ours, over several seeds.

python -m benchmarks.quality recipes     ours after 0.5, 1 and 2 minutes of a core beside the peers' script after 10
python -m benchmarks.quality widths      the demo's recipe with narrower and wider U-Nets, 10 minutes each
python -m benchmarks.quality choices     the recipe with one thing changed, on a wide U-Net, each for 2 minutes
python -m benchmarks.quality steps       the demo's model drawn with several solvers and numbers of steps; with --model
                                         another of its recipe, which has a table of its own for each width

Every training has a core to itself, one thread, and a budget of that core's processor time, so that what else the
machine does meanwhile changes little. Rows lie in runs/benchmarks/quality, one file a training: a second call goes on.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.quality.recipes import CONFIG, Figures, Recipe
from benchmarks.quality.steps import ROWS, drawn
from benchmarks.quality.trainings import Job, Setting, guide, run
from benchmarks.speed import machine
from benchmarks.speed.page import put, table
from ldm_kit.cli import cli_errors, run_cli
from ldm_kit.config import UserError, read
from ldm_kit.methods.latent import LatentRun

WIDE, WIDE_NAME = "unet.widths=[128,256]", "U-Net 128 and 256 wide"
PEERS = {
    "peers' script, bf16": Recipe(peer_lr=1e-4),
    "peers' script, bf16, at ten times its learning rate": Recipe(peer_lr=1e-3),
    f"peers' script, bf16, {WIDE_NAME}": Recipe((WIDE,), peer_lr=1e-4),
}
OURS, OURS_WIDE = Recipe(), Recipe((WIDE,))
CHANGES = {
    "the recipe": Recipe(),
    "AdamW for all, lr 1e-3": Recipe(("optim.muon=null", "optim.lr=1e-3")),
    "Muon on whole weights": Recipe(("optim.muon.block=null",)),
    "Muon at 6e-3, AdamW at 3e-3": Recipe(("optim.muon.lr=6e-3", "optim.lr=3e-3")),
    "learning rate constant": Recipe(("optim.lr_schedule=constant",)),
    "captions by attention alone": Recipe(("condition.pool=false",)),
    "time added": Recipe(("unet.time=add",)),
    "uniform times": Recipe(("timestep_sampling.density=uniform",)),
    "eps, min-SNR 5, uniform times": Recipe(("prediction_type=eps", "min_snr=5", "timestep_sampling.density=uniform")),
    "flow": Recipe(("prediction_type=flow", "schedule.kind=flow")),
    "average over more (std 0.1)": Recipe(("ema.std=0.1",)),
    "noise assigned over the batch": Recipe(trial="assigned"),
    "the nearest of four noises": Recipe(trial="nearest"),
    "dispersive loss": Recipe(trial="dispersive"),
    "equivariant latents (EQ-VAE)": Recipe(first_stage=("equivariance={}",)),
}
CHOICES = {name: replace(change, overrides=(WIDE, *change.overrides)) for name, change in CHANGES.items()}
TRIED = ((64, 64), (64, 128), (128, 128), (128, 256))
WIDTHS = {
    "48 and 48 (in 16 groups)": Recipe(("unet.widths=[48,48]", "unet.norm_num_groups=16")),
    **{f"{a} and {b}": Recipe((f"unet.widths=[{a},{b}]",)) for a, b in TRIED},
    "64 and 64, two blocks a level": Recipe(("unet.widths=[64,64]", "unet.layers_per_block=2")),
}
FIGURES = {
    "Lite0 distance": "lite0",
    "rank 1": "seen rank1",
    "rank 5": "seen rank5",
    "rank 5, unseen combinations": "unseen rank5",
}


def main(
    names: Annotated[list[str] | None, typer.Argument(help="some of the above; all when left out")] = None,
    autoencoder: Annotated[Path, typer.Option(help="first stage of all")] = Path("runs/demo/ae/model"),
    model: Annotated[Path, typer.Option(help="what `steps` draws with")] = Path("runs/demo/ldm/model"),
    minutes: Annotated[float, typer.Option(help="of one core, for the peers; choices have a fifth of it")] = 10,
    seeds: Annotated[int, typer.Option(help="trainings of each row of recipes and choices")] = 3,
    prompts: Annotated[int, typer.Option(help="pictures that a figure is taken from")] = 200,
    page: Annotated[bool, typer.Option("--page/--no_page", help="write docs/performance.md")] = True,
) -> None:
    """Train, measure, and write the tables."""
    with cli_errors():
        if not autoencoder.is_dir():
            raise UserError(f"no autoencoder in {autoencoder}; `make demo` trains one, or name another: --autoencoder")
        chosen = names or list(SECTIONS)
        if unknown := [name for name in chosen if name not in SECTIONS]:
            raise UserError(f"unknown section {unknown[0]!r}; expected {', '.join(SECTIONS)}")
        setting = Setting(autoencoder, prompts)
        for name in chosen:
            if name == "steps":
                section, title, found = _drawn(model, setting)
                about, flags = "one model, one picture a prompt", {"--model": str(model)}
            else:
                rows = TRAINED[name](minutes, seeds)
                run([job for jobs in rows.values() for job in jobs], setting)
                section, title, found = name, TITLES[name], _table(rows, setting)
                about = "one seed" if seeds == 1 else f"means over {seeds} seeds and their range"
                flags = {"--minutes": f"{minutes:g}", "--seeds": str(seeds)}
            command = " ".join([name, *(f"{flag} {value}" for flag, value in flags.items())])
            text = f"{title}\n\n{found}\n\n{_about(command, about, prompts)}"
            typer.echo(f"{text}\n")
            if page:
                put(f"quality {section}", text)


def recipes(minutes: float, seeds: int) -> dict[str, list[Job]]:
    """Ours for a twentieth, a tenth and a fifth of the peers' time; once on a wide U-Net."""
    cases = [("ours", OURS, 0.05), ("ours", OURS, 0.1), ("ours", OURS, 0.2), (f"ours, {WIDE_NAME}", OURS_WIDE, 0.2)]
    cases += [(name, recipe, 1.0) for name, recipe in PEERS.items()]
    return {f"{name}, {share * minutes:g} min": _jobs(recipe, share * minutes, seeds) for name, recipe, share in cases}


def widths(minutes: float, seeds: int) -> dict[str, list[Job]]:
    """Ours on U-Nets of several widths, for as long as the peers."""
    return {name: _jobs(recipe, minutes, seeds) for name, recipe in WIDTHS.items()}


def choices(minutes: float, seeds: int) -> dict[str, list[Job]]:
    """Ours with one thing changed, for a fifth of the peers' time."""
    return {name: _jobs(recipe, minutes * 0.2, seeds) for name, recipe in CHOICES.items()}


TRAINED = {"recipes": recipes, "widths": widths, "choices": choices}
SECTIONS = (*TRAINED, "steps")
TITLES = {
    "recipes": "## Time to quality: whole recipes",
    "widths": "## Time to quality: how wide a U-Net\n\nThe demo's recipe, channels of the two levels:",
    "choices": "## Time to quality: single choices\n\nThe demo's recipe on a U-Net 128 and 256 channels wide, with one "
    "thing changed in each row, each for as long:",
}


def _jobs(recipe: Recipe, minutes: float, seeds: int) -> list[Job]:
    return [Job(recipe, minutes, seed) for seed in range(seeds)]


def _table(rows: Mapping[str, Sequence[Job]], setting: Setting) -> str:
    lines = []
    for name, jobs in rows.items():
        found = [setting.done(job) for job in jobs]
        shown = [_shown(key, [one[key] for one in found]) for key in FIGURES.values()]
        steps, seconds = (statistics.median(one[key] for one in found) for key in ("steps", "seconds"))
        lines.append((name, f"{seconds:.0f}", f"{steps:.0f}", *shown))
    return table(("", "core seconds", "steps", *FIGURES), lines)


def _shown(key: str, values: Sequence[float]) -> str:
    """Mean, and the range over seeds where there are several."""
    scale, unit = (1, "") if key == "lite0" else (100, " %")
    low, mean, high = (scale * value for value in (min(values), statistics.mean(values), max(values)))
    return f"{mean:.0f}{unit}" + (f" ({low:.0f} to {high:.0f})" if len(values) > 1 else "")


def _drawn(model: Path, setting: Setting) -> tuple[str, str, str]:
    """The section of a model's solvers and steps: its name, title and table."""
    config = model.parent / "config.yaml"
    if not config.is_file():
        raise UserError(f"no config.yaml beside {model}; `steps` draws with the model of a finished run: --model")
    settings = read(LatentRun, config, [])
    steps, early = settings.train.steps, settings.train.steps // 6
    width = f"unet.widths=[{','.join(map(str, settings.unet.widths))}]"
    worse = guide(setting, Recipe((width,)), early)
    wide = " and ".join(map(str, settings.unet.widths))
    title = (
        f"## What steps are worth: U-Net {wide} channels wide\n\n`train_ldm.py {CONFIG} run={model.parent} {width} "
        f"train.steps={steps}`, guidance 2 (autoguidance is by the same after {early} steps, alone):"
    )
    return f"steps {wide}", title, _steps(drawn(model, worse, setting.prompts))


def _steps(found: Mapping[str, Figures]) -> str:
    first = next(iter(found.values()))["seconds a picture"]
    lines = []
    for name, one in found.items():
        times = first / one["seconds a picture"]
        shown = [f"{one[key]:.0f}" if key == "lite0" else f"{100 * one[key]:.1f} %" for key in FIGURES.values()]
        lines.append((name, str(ROWS[name].evaluations), f"{times:.1f}", *shown))
    return table(("", "network evaluations", "times as fast", *FIGURES), lines)


def _about(command: str, about: str, prompts: int) -> str:
    return (
        f"`python -m benchmarks.quality {command}` on {machine.described()}, each row on one core with one thread; "
        f"{about}, {prompts} prompts (at most) a figure."
    )


if __name__ == "__main__":
    run_cli(main)
