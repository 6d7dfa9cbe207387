"""Claims about quality after a given training time on OpenMoji, for whole recipes and single settings, over seeds.

recipes     ours after 0.5, 1 and 2 minutes of a core beside the peers' script after 10
widths      the quick recipe with narrower and wider U-Nets, 10 minutes each
choices     the recipe with one thing changed, on a wide U-Net, each for 2 minutes
steps       the quick recipe's model under several solvers and numbers of steps; --model names another of its recipe

Every training has a core to itself, one thread, and a budget of that core's processor time, so that what else the
machine does meanwhile changes little. Figures are kept in runs/benchmarks/quality, so that a second call goes on.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import kit
from benchmarks.claims.recipes import Figures, Job, Recipe, Setting, choice_jobs, recipe_jobs, width_jobs
from benchmarks.claims.sampling_steps import ROWS, measure_rows
from benchmarks.claims.timed_training import guide_model, train_missing
from benchmarks.speed import machine
from benchmarks.tables import chosen, markdown, page_of, write_section
from ldm_kit.cli import cli_errors
from ldm_kit.config import UserError

TRAINED = {"recipes": recipe_jobs, "widths": width_jobs, "choices": choice_jobs}
SECTIONS = (*TRAINED, "steps")
TITLES = {
    "recipes": "## Time to quality: whole recipes",
    "widths": "## Time to quality: how wide a U-Net\n\nThe quick recipe, channels of the two levels:",
    "choices": "## Time to quality: single choices\n\nThe quick recipe on a U-Net 128 and 256 channels wide, with one "
    "thing changed in each row, each for as long:",
}
FIGURES = {
    "Lite0 distance": "lite0",
    "rank 1": "seen rank1",
    "rank 5": "seen rank5",
    "rank 5, unseen combinations": "unseen rank5",
}


def quality(
    tables: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(SECTIONS)}; all when left out")] = None,
    *,
    autoencoder: Annotated[Path, typer.Option(help="first stage of all")] = kit.QUICK_AE / "model",
    model: Annotated[Path, typer.Option(help="what `steps` samples from")] = kit.QUICK / "model",
    minutes: Annotated[float, typer.Option(help="of one core, for the peers; choices have a fifth of it")] = 10,
    seeds: Annotated[int, typer.Option(help="trainings of each row")] = 3,
    prompts: Annotated[int, typer.Option(help="pictures that a figure is taken from")] = 200,
    page: Annotated[bool, typer.Option("--page/--no_page", help="write the page performance.md")] = True,
) -> None:
    """Train recipes for a given time, measure their pictures, print the tables, and write them to performance.md."""
    with cli_errors():
        if not autoencoder.is_dir():
            raise UserError(f"no autoencoder in {autoencoder}; {kit.AE} trains one, or name another: --autoencoder")
        setting, target = Setting(autoencoder, prompts), page_of("performance.md") if page else None
        for name in chosen(tables, SECTIONS):
            if name == "steps":
                section, table = steps_section(model, setting)
                command, note = f"steps --model {model}", "one model, one picture a prompt"
            else:
                section, table = name, trained_section(name, TRAINED[name](minutes, seeds), setting)
                command = f"{name} --minutes {minutes:g} --seeds {seeds}"
                note = "one seed" if seeds == 1 else f"means over {seeds} seeds and their range"
            text = (
                f"{table}\n\n`python -m benchmarks.claims quality {command}` on {machine.describe()}, each row on one "
                f"core with one thread; {note}, {prompts} prompts (at most) a figure."
            )
            typer.echo(f"{text}\n")
            if target is not None:
                write_section(target, f"quality {section}", text)


def trained_section(name: str, rows: Mapping[str, Sequence[Job]], setting: Setting) -> str:
    """Train and measure the jobs without stored results; return the section `name` of the page: title and table.

    `rows` has the jobs (one for each seed) of each row, by its name. `setting` is what all jobs share.
    """
    train_missing([job for jobs in rows.values() for job in jobs], setting)
    return f"{TITLES[name]}\n\n{trained_table(rows, setting)}"


def trained_table(rows: Mapping[str, Sequence[Job]], setting: Setting) -> str:
    """Return a Markdown table of finished jobs; each row has the mean and range over the jobs (seeds) of a recipe."""
    lines = []
    for name, jobs in rows.items():
        figures = [setting.figures(job) for job in jobs]
        shown = [_mean_and_range(key, [row[key] for row in figures]) for key in FIGURES.values()]
        steps, seconds = (statistics.median(row[key] for row in figures) for key in ("steps", "seconds"))
        lines.append((name, f"{seconds:.0f}", f"{steps:.0f}", *shown))
    trainings = max(len(jobs) for jobs in rows.values())
    head = "one training each" if trainings == 1 else f"{trainings} trainings each"
    return markdown((head, "core seconds", "steps", *FIGURES), lines)


def _mean_and_range(key: str, values: Sequence[float]) -> str:
    scale, unit = (1, "") if key == "lite0" else (100, " %")
    low, mean, high = (scale * value for value in (min(values), statistics.mean(values), max(values)))
    return f"{mean:.0f}{unit}" + (f" ({low:.0f} to {high:.0f})" if len(values) > 1 else "")


def steps_section(model: Path, setting: Setting) -> tuple[str, str]:
    """Measure a model with several solvers and numbers of steps; return the page's section: name, and Markdown text.

    `model` is the model folder of a finished run; `setting` has the autoencoder of the guide model for autoguidance.
    """
    file = model.parent / "config.yaml"
    if not file.is_file():
        raise UserError(f"no config.yaml beside {model}; `steps` samples from the model of a finished run: --model")
    config = kit.read_latent(config=file)
    steps, early = config.train.steps, config.train.steps // 6
    override = f"unet.widths=[{','.join(map(str, config.unet.widths))}]"
    widths = " and ".join(map(str, config.unet.widths))
    guide = guide_model(setting, Recipe((override,)), early)
    title = (
        f"## What steps are worth: U-Net {widths} channels wide\n\n`train_ldm.py {kit.LDM} run={model.parent} "
        f"{override} train.steps={steps}`, guidance 2 (autoguidance is by the same after {early} steps, alone):"
    )
    return f"steps {widths}", f"{title}\n\n{steps_table(measure_rows(model, guide, setting.prompts))}"


def steps_table(rows: Mapping[str, Figures]) -> str:
    """Return a Markdown table of the figures of ways of sampling, by name; speeds are relative to the first one's."""
    first = next(iter(rows.values()))["seconds a picture"]
    lines = []
    for name, figures in rows.items():
        times = first / figures["seconds a picture"]
        shown = [f"{figures[key]:.0f}" if key == "lite0" else f"{100 * figures[key]:.1f} %" for key in FIGURES.values()]
        lines.append((name, str(ROWS[name].evaluations), f"{times:.1f}", *shown))
    return markdown(("one training", "network evaluations", "times as fast", *FIGURES), lines)
