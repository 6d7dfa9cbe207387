"""First steps, on a CPU, of the configs that only a GPU can train to the end: speed, memory and losses.

`python -m benchmarks.gpu.first_steps` trains each config of configs/gpu for 50 steps with small batches, each in a
process of its own and on the first steps of those that it builds on, and writes the table into docs/results/gpu.md.
Finished configs are kept in --out. `--only NAME` does one.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.gpu.sizes import LITE0
from benchmarks.plans import Case, _shapes, make_folder
from benchmarks.tables import chosen, format_rows, page_of, write_section
from ldm_kit.cli import cli_errors, run_cli
from ldm_kit.methods import read_run
from ldm_kit.methods.train import open_method, train

CONFIGS = Path("configs/gpu")
WORKER = "--worker"  # first argument of the process that trains one config
LARGE = ("ae_kl_f8", "ldm_sd1")  # trained on one picture a step
COLUMNS = {
    "name": ("config", ""),
    "batch": ("batch", "d"),
    "parameters": ("trained parameters, M", ".1f"),
    "state": ("weights, gradients, AdamW and average, GB", ".2f"),
    "seconds": ("seconds a step", ".2f"),
    "peak": ("peak memory, GB", ".1f"),
    "first": ("loss, first fifth of the steps", ".3f"),
    "last": ("last fifth", ".3f"),
}


def prerequisites(config: Path) -> dict[str, Path]:
    """Return the configs whose runs a config builds on, by its key that names the run: autoencoder, base or model."""
    run, configs = read_run(config), {str(read_run(path).run): path for path in Path("configs").rglob("*.yaml")}
    named = {key: str(getattr(run, key, None)) for key in ("autoencoder", "base", "model")}
    return {key: configs[name] for key, name in named.items() if name in configs}


def overrides(config: Path, out: Path, steps: int) -> list[str]:
    """Return the overrides with which a config's first steps are trained below `out`."""
    run = read_run(config)
    given = [f"run={_folder(config, out)}", f"train.steps={steps}", f"train.batch_size={batch_of(config)}"]
    given += [
        "train.workers=0",
        "log.every=1",
        f"log.evaluate_every={steps}",
        "log.tensorboard=false",
        "log.pictures=2",
    ]
    given += [f"{key}={_folder(path, out)}" for key, path in prerequisites(config).items()]
    if run.data.source == "folder":
        given.append(f"data.path={out / 'pictures'}")
    return given + [LITE0] * (config.stem == "ae_kl_f8")


def batch_of(config: Path) -> int:
    """Return the number of pictures in a batch of the first steps."""
    return 1 if config.stem in LARGE else 8


def _folder(config: Path, out: Path) -> Path:
    return out / config.parent.name / config.stem


def worker(config: Path, given: list[str]) -> None:
    """Train the config, and print this process's parameters, times, losses and peak memory as a line of JSON."""
    run = read_run(config, given)
    method = open_method(run)
    parameters = sum(p.numel() for module in method.modules.values() for p in module.parameters() if p.requires_grad)
    del method
    began = time.monotonic()
    folder = train(run).parent
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    names = [name for name in lines[0] if name.endswith("_loss") and not name.startswith("heldout")]
    losses = [line[names[0]] for line in lines if names[0] in line]
    fifth = max(1, len(losses) // 5)
    figures = {
        "parameters": parameters / 1e6,
        "state": parameters * 20 / 1e9,  # float32: weight, gradient, two moments, average
        "seconds": _median(lines, time.monotonic() - began),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "first": sum(losses[:fifth]) / fifth,
        "last": sum(losses[-fifth:]) / fifth,
    }
    print(json.dumps(figures))


def _median(lines: list[dict[str, Any]], whole: float) -> float:
    rates = sorted(1 / line["steps_per_second"] for line in lines if line.get("steps_per_second"))
    return rates[len(rates) // 2] if rates else whole / max(1, len(lines))


def measure(config: Path, out: Path, steps: int) -> dict[str, Any]:
    """Train a config's first steps in a process of its own, unless that was done; return its row of the table."""
    file = _folder(config, out).with_suffix(".json")
    if not file.exists():
        for path in prerequisites(config).values():
            measure(path, out, steps)
        make_folder(Case(_shapes(300), "captions"), out / "pictures")
        command = [sys.executable, "-m", "benchmarks.gpu.first_steps", WORKER, str(config)]
        process = subprocess.run(
            [*command, *overrides(config, out, steps)], capture_output=True, text=True, check=False
        )
        if process.returncode:
            raise RuntimeError(f"{config}: {process.stderr[-2000:]}")
        file.write_text(process.stdout.splitlines()[-1], encoding="utf-8")
    figures = json.loads(file.read_text(encoding="utf-8"))
    return {"name": config.stem, "batch": batch_of(config), **figures}


def main(
    only: Annotated[list[str] | None, typer.Option(help="names of configs; left out: all")] = None,
    out: Annotated[Path, typer.Option(help="folder of runs and figures")] = Path("runs/first_steps"),
    steps: Annotated[int, typer.Option(min=5, help="training steps of each config")] = 50,
    page: Annotated[bool, typer.Option("--page/--no_page", help="write docs/results/gpu.md")] = True,
) -> None:
    """Train the first steps of each config of configs/gpu on this machine."""
    with cli_errors():
        configs = {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}
        for name in chosen(only, configs):
            measure(configs[name], out, steps)
        done = [path for path in configs.values() if _folder(path, out).with_suffix(".json").exists()]
        table = format_rows(COLUMNS, [measure(path, out, steps) for path in done])
        print(table)
        if page:
            write_section(page_of("gpu.md"), "first steps", table)


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        worker(Path(sys.argv[2]), sys.argv[3:])
    else:
        run_cli(main)
