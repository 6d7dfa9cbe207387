"""Stage 2: train the method that a config names, such as a diffusion model of cached latents or of pixels.

accelerate launch train_ldm.py configs/openmoji/ldm_text.yaml optim.lr=3e-4 --resume latest
"""

from pathlib import Path
from typing import Annotated

import typer

from ldm_kit.cli import cli_errors, run_cli
from ldm_kit.config import tree


def main(
    config: Annotated[Path, typer.Argument(help="YAML config, such as configs/openmoji/ldm_text.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, dotted, such as optim.lr=3e-4")] = None,
    resume: Annotated[str | None, typer.Option(help="`latest`, or a checkpoint's folder")] = None,
) -> None:
    """Train a diffusion model; its folder ends up holding model/, pictures/, metrics.jsonl and checkpoints."""
    with cli_errors():
        content = tree(config, overrides or ())  # refuses a wrong file or override before the slow import of torch
        from ldm_kit.methods import check_run
        from ldm_kit.methods.train import train

        train(check_run(content, str(config)), resume=resume)


if __name__ == "__main__":
    run_cli(main)
