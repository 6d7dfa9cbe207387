"""Folders and configs of runs whose model has a likelihood: a diffusion model of pixels."""

from collections.abc import Sequence
from pathlib import Path

from ldm_kit.config import UserError
from ldm_kit.inference.generate_cascade import is_cascade
from ldm_kit.methods import read_run
from ldm_kit.methods.latent_config import LatentRun
from ldm_kit.models.folder import model_folder


def run_folders(path: Path) -> tuple[Path, Path]:
    """Return a run's folder and its model's folder, given one of the two.

    Raises:
        UserError: the run's folder has no config.yaml.
    """
    model = model_folder(path)
    if is_cascade(model):
        raise UserError(f"{path} holds a cascade, which has no likelihood; expected a run on pixels")
    run = model.parent if model.name == "model" else path
    if not (run / "config.yaml").is_file():
        raise UserError(
            f"{run} has no config.yaml, which says what pictures are held out; expected a run's folder, or the "
            "model/ within it"
        )
    return run, model


def read_pixel_run(run: Path, overrides: Sequence[str]) -> LatentRun:
    """Return the config of the run in the folder `run`, after replacing the values of some keys.

    Args:
        run: the run's folder.
        overrides: new values, such as `data.path=elsewhere`.

    Raises:
        UserError: the run's model has no likelihood: it is no diffusion model of pixels, or it is a flow model.
    """
    config = read_run(run / "config.yaml", overrides)
    if not isinstance(config, LatentRun):
        raise UserError(f"{run} is a run of method {config.method}, which has no likelihood; expected latent")
    if config.autoencoder is not None:
        raise of_latents(run)
    if getattr(config.data, "range", None) is not None:
        raise UserError(
            f"{run} is trained on values of a range, and bits/dim are of pixels of 8 bits; expected another"
        )
    if config.schedule.kind == "flow":
        raise UserError(f"{run} is a flow model, whose schedule has no variational bound; expected another schedule")
    return config


def of_latents(where: Path) -> UserError:
    """Return the error that says: the model in the folder `where` has no likelihood, as it is a model of latents."""
    return UserError(
        f"{where} is a model of latents: how likely the decoder makes a picture is unknown, and so is the picture's "
        "likelihood; expected a model of pixels (autoencoder: null)"
    )
