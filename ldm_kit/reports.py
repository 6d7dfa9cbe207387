"""What stage 1 shows beside its numbers: reconstructions, curves, and the normalised autoencoder."""

import copy
from pathlib import Path

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn

from autoencoder.base import AutoencoderError
from autoencoder.statistics import LatentStatistics, fold, measure
from ldm_kit.data.batches import spread
from ldm_kit.data.images import PictureSet, Split, to_bytes, to_unit
from ldm_kit.methods.autoencoder import Autoencoding, evaluate, pictures_of
from ldm_kit.methods.base import eval_mode
from ldm_kit.models.folder import strip_paths
from ldm_kit.training.checkpoint import write
from ldm_kit.viz.curves import curves
from ldm_kit.viz.grid import pairs_grid
from ldm_kit.viz.png import save_png, tolerate_oserror

MEASURED = 50_000  # pictures at most, for the latents' statistics


class Report:
    """Stage 1: reconstructions, held-out figures, and the normalised autoencoder."""

    def __init__(self, task: Autoencoding, data: Split, folder: Path, device: torch.device) -> None:
        self.task, self.data, self.folder, self.device = task, data, folder, device
        self.shown: PictureSet = data.heldout if len(data.heldout) else data.train
        self.figures: dict[str, float] = {}

    def opening(self) -> str:
        """One line on what is about to be trained."""
        config = self.task.config
        count = sum(p.numel() for p in self.task.vae.parameters())
        return (
            f"{len(self.data.train)} training pictures of {config.data.resolution} px, {len(self.data.heldout)} held "
            f"out; {type(self.task.vae).__name__} with {count / 1e6:.1f} M parameters; {config.train.steps} steps of "
            f"{config.train.batch_size} (global batch), lr {config.optim.lr:g}"
        )

    def evaluate(self, number: int) -> dict[str, float]:
        """Held-out figures with the weights at hand, and a grid of reconstructions."""
        with eval_mode(self.task.autoencode):
            self.figures = evaluate(self.task, self.shown, self.device)
            x = to_unit(self.shown.pictures(spread(len(self.shown), self.task.config.log.pictures)))
            made = pictures_of(self.task.vae, x.to(self.device)).cpu()
        picture = pairs_grid(to_bytes(x), to_bytes(made), columns=8, scale=2)
        out = self.folder / "pictures" / f"reconstruction-{number:08d}.png"
        with tolerate_oserror(out):
            save_png(picture, out, None)
        return self.figures

    def finish(self) -> str:
        """Measure the latents, fold their normalisation in, save model/ and the curves; say where and how good."""
        vae = copy.deepcopy(self.task.vae).eval()
        statistics = self._statistics(vae)
        fold(vae, statistics)
        write(self.folder / "model", lambda draft: _save(vae, draft))
        keys = ("autoencoder_loss", "heldout_psnr", "heldout_perceptual")
        curves(self.folder / "metrics.jsonl", self.folder / "pictures" / "curves.png", keys)
        figures = ", ".join(f"{name.removeprefix('heldout_')} {value:.4g}" for name, value in self.figures.items())
        return (
            f"autoencoder in {self.folder / 'model'}: held-out {figures}; latent mean "
            f"{_listed(statistics.mean)} and deviation {_listed(statistics.std)} folded into its weights; "
            f"pictures in {self.folder / 'pictures'}"
        )

    def _statistics(self, vae: nn.Module) -> LatentStatistics:
        parts = torch.tensor(spread(len(self.data.train), MEASURED)).split(128)
        batches = (to_unit(self.data.train.pictures(part.tolist())).to(self.device) for part in parts)
        try:
            return measure(vae, batches)  # pyright: ignore[reportArgumentType]
        except AutoencoderError as error:
            raise AutoencoderError(f"The autoencoder did not learn usable latents. {error}") from None


def _save(vae: AutoencoderKL | VQModel, folder: Path) -> None:
    vae.save_pretrained(folder)
    strip_paths(folder)


def _listed(values: Tensor) -> str:
    return "[" + ", ".join(f"{value:.3g}" for value in values.tolist()) + "]"
