"""Train both stages of latent diffusion on OpenMoji with the training scripts, then sample and measure.

Run it with `python -m ldm_kit.demo`.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ldm_kit.cli import cli_errors, run_cli

AE, LDM = Path("runs/demo/ae"), Path("runs/demo/ldm")
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1")
PLAIN = ("--mixed_precision", "no", "--dynamo_backend", "no")


def main(
    prompts: Annotated[int, typer.Option(help="prompts of each kind to measure")] = 200,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="train anew, or go on where an earlier demo stopped")
    ] = True,
) -> None:
    """Train an autoencoder and a text-to-image model on OpenMoji; end with pictures and figures."""
    with cli_errors():
        began = time.monotonic()
        _print("1/3  stage 1: an autoencoder (32 px pictures to 8x8 latents)")
        _train("train_ae.py", "configs/demo/ae.yaml", AE, fresh)
        _print(f"2/3  stage 2: latent diffusion with text cross-attention ({_minutes(began)} so far)")
        _train("train_ldm.py", "configs/demo/ldm.yaml", LDM, fresh)
        _print(f"3/3  sampling and measuring ({_minutes(began)} so far)")
        from ldm_kit.demo.show import show

        summary = show(LDM, prompts)
        (LDM / "demo.json").write_text(json.dumps({**summary.figures, "seconds": time.monotonic() - began}, indent=1))
        typer.echo(summary.text)
        _print(f"done in {_minutes(began)}; look at {summary.sheet}")


def _train(script: str, config: str, run: Path, fresh: bool) -> None:
    """Run a training script on a config file through accelerate; exit with the script's status if it fails.

    `run` is the folder of the run. If `fresh`, it is deleted before; else the run is resumed from its last checkpoint.
    """
    import shutil

    if fresh and run.exists():
        shutil.rmtree(run)
    resume = ["--resume", "latest"] if not fresh else []
    process = subprocess.run([*LAUNCH, *PLAIN, script, config, *resume], check=False)
    if process.returncode:
        raise typer.Exit(process.returncode)


def _print(text: str) -> None:
    typer.secho(f"\n=== {text}", bold=True)


def _minutes(began: float) -> str:
    seconds = round(time.monotonic() - began)
    return f"{seconds // 60} min {seconds % 60:02d} s"


if __name__ == "__main__":
    run_cli(main)
