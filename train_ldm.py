"""Stage 2: train a diffusion model on cached latents, or on pixels.

accelerate launch train_ldm.py configs/openmoji/ldm_text.yaml optim.lr=3e-4 --resume latest
"""

from pathlib import Path
from typing import Annotated

import typer

from ldm_kit.cli import cli_errors, run_cli


def main(
    config: Annotated[Path, typer.Argument(help="YAML config, such as configs/openmoji/ldm_text.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, dotted, such as optim.lr=3e-4")] = None,
    resume: Annotated[str | None, typer.Option(help="`latest`, or a checkpoint's folder")] = None,
) -> None:
    """Train a diffusion model; its folder ends up holding model/, pictures/, metrics.jsonl and checkpoints."""
    with cli_errors():
        train(config, overrides or [], resume)


def train(config: Path, overrides: list[str], resume: str | None) -> None:
    """Build, cache latents, train, save."""
    from ldm_kit.data.sources import load
    from ldm_kit.methods.base import Collectives
    from ldm_kit.methods.choose import open_stage, read_run
    from ldm_kit.studios.choose import open_studio
    from ldm_kit.training.session import due, session

    settings = read_run(config, overrides)
    with session(settings, resume) as run:
        with run.first():
            ranks = Collectives(run.average, run.total, run.share)
            stage = open_stage(settings, load(settings.data), run.device, ranks)
        trainer = run.trainer(stage.task)
        log, studio = run.log(trainer), open_studio(stage, run.folder)
        log.say(stage.opening())
        for step in trainer.train(stage.batches):
            log.step(step)
            figures = None
            if run.main and due(step, settings.log.evaluate_every, trainer.config.steps):
                with trainer.ema.applied():
                    figures = log.evaluated(step.number, studio.evaluate)
            run.save_when_due(trainer, step, figures)
        log.flush()
        if run.main:
            with trainer.ema.applied():
                log.say(studio.finish())
        log.close()


if __name__ == "__main__":
    run_cli(main)
