"""Train both stages of latent diffusion on faces with `ldm-kit`, then sample and measure.

Run it with `python -m ldm_kit.demo`. A finished run is measured with `python -m ldm_kit.demo --measure RUN`.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm_kit.cli import cli_errors, run_cli

if TYPE_CHECKING:
    from ldm_kit.models.options import SamplingOptions

AE, LDM = Path("runs/demo/ae"), Path("runs/demo/ldm")
STAGE_1 = ("train-ae", "configs/faces/ae_kl.yaml", f"run={AE}")
STAGE_2 = ("train-ldm", "configs/faces/ldm_minilm.yaml", f"run={LDM}", f"autoencoder={AE}")
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1")
_SAVED = "of sampling; left out: as the run was judged"
PLAIN = ("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "ldm_kit")


def main(
    prompts: Annotated[int, typer.Option(min=1, help="prompts of each kind to measure")] = 200,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="train anew, or go on where an earlier demo stopped")
    ] = True,
    measure: Annotated[Path | None, typer.Option(help="train nothing; sample and measure this finished run")] = None,
    guidance_scale: Annotated[float | None, typer.Option("--guidance_scale", help=_SAVED)] = None,
    steps: Annotated[int | None, typer.Option(help=_SAVED)] = None,
) -> None:
    """Train an autoencoder and a text-to-image model on faces; end with pictures and figures."""
    with cli_errors():
        began = time.monotonic()
        given = {"guidance_scale": guidance_scale, "steps": steps}
        options = _options({name: value for name, value in given.items() if value is not None})
        if measure is None:
            _print("1/3  stage 1: an autoencoder (64 px pictures to 8x8 latents)")
            _train(STAGE_1, AE, fresh)
            _print(f"2/3  stage 2: latent diffusion with text cross-attention ({_minutes(began)} so far)")
            _train(STAGE_2, LDM, fresh)
            _print(f"3/3  sampling and measuring ({_minutes(began)} so far)")
        _show(measure or LDM, prompts, options, began)


def _options(given: dict[str, Any]) -> "SamplingOptions":
    """Return sampling options from the values given, by name, on the command line; raise UserError if one is wrong."""
    from ldm_kit.config import check
    from ldm_kit.models.options import SamplingOptions

    return check(SamplingOptions, given, "ldm_kit.demo")


def _show(run: Path, prompts: int, options: "SamplingOptions", began: float) -> None:
    """Sample pictures with a run's model and measure them; print the results and write them to demo.json.

    Args:
        run: folder of the run; demo.json is written beside its sheet of pictures.
        prompts: number of prompts of each kind: captions of training, held-out and compositional pictures (combinations
            of values that training never showed).
        options: sampling options.
        began: `time.monotonic()` at the start of the demo, for the duration that is printed.
    """
    from ldm_kit.demo.show import show

    summary = show(run, prompts, options)
    figures = {**summary.figures, "seconds": time.monotonic() - began}
    text = json.dumps(figures, indent=1, allow_nan=False)
    summary.sheet.with_name("demo.json").write_text(text, encoding="utf-8")
    typer.echo(summary.text)
    _print(f"done in {_minutes(began)}; look at {summary.sheet}")


def _train(command: tuple[str, ...], run: Path, fresh: bool) -> None:
    """Train through accelerate; exit with the status of the training if it fails.

    Args:
        command: the command of `ldm-kit`, its config and overrides.
        run: folder of the run.
        fresh: whether the folder is deleted before; else the run is resumed from its last checkpoint.
    """
    import shutil

    if fresh and run.exists():
        shutil.rmtree(run)
    resume = ["--resume", "latest"] if not fresh else []
    process = subprocess.run([*LAUNCH, *PLAIN, *command, *resume], check=False)
    if process.returncode:
        raise typer.Exit(process.returncode)


def _print(text: str) -> None:
    typer.secho(f"\n=== {text}", bold=True)


def _minutes(began: float) -> str:
    seconds = round(time.monotonic() - began)
    return f"{seconds // 60} min {seconds % 60:02d} s"


if __name__ == "__main__":
    run_cli(main)
