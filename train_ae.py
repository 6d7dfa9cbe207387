"""Stage 1: train an autoencoder.

accelerate launch train_ae.py configs/openmoji/ae_kl.yaml optim.lr=3e-4 --resume latest
"""

from pathlib import Path
from typing import Annotated

import typer

from ldm_kit.cli import cli_errors, run_cli


def main(
    config: Annotated[Path, typer.Argument(help="YAML config, such as configs/openmoji/ae_kl.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, dotted, such as optim.lr=3e-4")] = None,
    resume: Annotated[str | None, typer.Option(help="`latest`, or a checkpoint's folder")] = None,
) -> None:
    """Train an autoencoder; its folder ends up holding model/, pictures/, metrics.jsonl and checkpoints."""
    with cli_errors():
        train(config, overrides or [], resume)


def train(config: Path, overrides: list[str], resume: str | None) -> None:
    """Build, train, normalise, save."""
    from ldm_kit.config import read
    from ldm_kit.data.batches import PictureBatches
    from ldm_kit.data.sources import load
    from ldm_kit.methods.autoencoder import AutoencoderRun, Autoencoding
    from ldm_kit.methods.base import Collectives
    from ldm_kit.reports import Report
    from ldm_kit.training.session import due, session

    settings = read(AutoencoderRun, config, overrides)
    with session(settings, resume) as run:
        with run.first():
            data = load(settings.data)
        task = Autoencoding(settings, Collectives(run.average, run.total, run.share))
        trainer = run.trainer(task)
        log, report = run.log(trainer), Report(task, data, run.folder, run.device)
        log.say(report.opening())
        for step in trainer.train(PictureBatches(data.train, settings.seed, settings.flip)):
            log.step(step)
            figures = None
            if run.main and due(step, settings.log.evaluate_every, trainer.config.steps):
                with trainer.ema.applied():
                    figures = log.evaluated(step.number, report.evaluate)
            run.save_when_due(trainer, step, figures)
        log.flush()
        if run.main:
            with trainer.ema.applied():
                log.say(report.finish())
        log.close()


if __name__ == "__main__":
    run_cli(main)
