"""What autoencoders of faces lose: PSNR, SSIM, and how often a classifier still finds the value of each factor.

`python -m benchmarks.first_stage RUN ...` measures finished runs of stage 1 on the built-in faces, such as those of
configs/faces/ae_kl.yaml with other settings, on the held-out faces; the classifier is that of the demo.
"""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.tables import format_rows
from ldm_kit.cli import cli_errors, run_cli
from ldm_kit.data import sources
from ldm_kit.demo.show import faces_of, measure_autoencoder
from ldm_kit.models.factor_readers import factor_reader
from ldm_kit.models.manifest import open_first_stage
from ldm_kit.nets.execution import prepare_loaded

COLUMNS = {"name": ("run", ""), "psnr": ("PSNR, dB", ".2f"), "ssim": ("SSIM", ".3f"), "mean": ("right, mean", ".1%")}


def main(runs: Annotated[list[Path], typer.Argument(help="folders of finished runs of stage 1 on faces")]) -> None:
    """Print a table with a row for each run."""
    with cli_errors():
        rows = []
        for run in runs:
            data = faces_of(run)
            split = sources.load(data)
            vae = prepare_loaded(open_first_stage(run), "cpu")
            lost = measure_autoencoder(vae, factor_reader(data, split), split.heldout)
            factors = {factor: share.value for factor, share in lost.shares.factors.items()}
            rows.append({"name": str(run), "psnr": lost.psnr, "ssim": lost.ssim, "mean": lost.shares.mean, **factors})
        names = [name for name in rows[0] if name not in COLUMNS]
        typer.echo(format_rows(COLUMNS | {name: (name, ".1%") for name in names}, rows))


if __name__ == "__main__":
    run_cli(main)
