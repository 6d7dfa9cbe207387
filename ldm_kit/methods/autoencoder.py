"""Stage 1 of latent diffusion.

Paper:    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.1.
Idea:     compress pictures to latents that keep what is seen; the diffusion model then works where it is cheap.
Parts:    a KL or VQ autoencoder, a perceptual distance, and a patch discriminator that joins late.
Run:      accelerate launch train_ae.py configs/openmoji/ae_kl.yaml
Expected: see the header of that config.
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from autoencoder.adversarial import two_player
from autoencoder.base import Autoencode, AutoencoderError, Moments, decode, encode, latent_shape
from autoencoder.codebook import Codebook, CodeUsage, forget
from autoencoder.config import build
from autoencoder.discriminator import Discriminator
from autoencoder.equivariance import DRAWS, Move
from autoencoder.loss import AutoencoderLoss
from autoencoder.perceptual import Perceptual
from autoencoder.statistics import LatentStatistics, fold, measure
from autoencoder.vq import VQConfig
from ldm_kit.data.batches import PictureBatches, chunks, spread
from ldm_kit.data.images import PictureSet, Split, to_bytes, to_unit
from ldm_kit.diffusion import rng
from ldm_kit.methods.autoencoder_config import AutoencoderRun as AutoencoderRun
from ldm_kit.methods.base import Grid, Method, TrainingData, millions
from ldm_kit.metrics.reconstruction import RunningMean, psnr, ssim
from ldm_kit.models.folder import strip_paths
from ldm_kit.training.optim import OptimConfig
from ldm_kit.training.task import LossTerm
from ldm_kit.viz.grid import columns_for, enlargement, pairs_grid

STATISTICS_PICTURES = 50_000  # pictures at most, over which the latents' statistics are measured


class Autoencoding(Method[AutoencoderRun]):
    """An autoencoder and, if the loss is adversarial, the discriminator that it is trained against."""

    Config = AutoencoderRun

    def __init__(self, config: AutoencoderRun, data: TrainingData | None = None) -> None:
        net = config.autoencoder
        self.vae = build(net)
        beta = net.beta if isinstance(net, VQConfig) else 0.25
        self.autoencode = Autoencode(self.vae, beta=beta, learned_scale=config.loss.learned_scale)
        self.perceptual = Perceptual(config.perceptual)
        self.loss = AutoencoderLoss(config.loss, self.perceptual)
        self.discriminator = Discriminator(config.discriminator) if config.loss.adversarial else None
        modules: dict[str, nn.Module] = {"autoencoder": self.autoencode}
        if self.discriminator is not None:
            modules["discriminator"] = self.discriminator
        super().__init__(config, data, modules=modules, ema_modules={"vae": self.vae})
        self.codebook = None
        if isinstance(net, VQConfig):
            embedding = self.vae.quantize.embedding
            self.codebook = Codebook(embedding, net, reduce=self._sum, share=self._broadcast)
        self.statistics: LatentStatistics | None = None  # of the latents, once they are measured for saving

    @classmethod
    def build(cls, config: AutoencoderRun, data: Split, device: torch.device) -> "Autoencoding":
        """Build the networks and the batches of pictures; the trainer moves the networks."""
        return cls(config, TrainingData(data, PictureBatches(data.train, config.seed, config.flip)))

    @property
    def optim(self) -> dict[str, OptimConfig]:
        """Optimiser config of each of `modules`."""
        config = self.config
        return {"autoencoder": config.optim, "discriminator": config.discriminator_optim or config.optim}

    def set_ddp_modules(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Take the modules as DDP wraps them; the perceptual backbone follows to their device."""
        super().set_ddp_modules(wrapped)
        self.perceptual.to(self.device)

    def state(self) -> dict[str, Tensor]:
        """Return the codebook's running statistics."""
        return self.codebook.state_dict() if self.codebook is not None else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        if self.codebook is not None:
            self.codebook.load_state_dict(dict(state))

    def after_step(self, step: int, optimisers: Mapping[str, Optimizer]) -> None:
        """Update the codebook's averages, replace dead codes, and reset the optimiser's moments of those."""
        if self.codebook is None:
            return
        revived, codes = self.codebook.after_step(step), self.codebook.embedding.weight
        for optimiser in optimisers.values():
            forget(optimiser, codes, revived)

    def discard_step(self) -> None:
        """Forget what the codebook gathered in an attempt that does not count."""
        if self.codebook is not None:
            self.codebook.discard_step()

    def losses(self, batch: Mapping[str, Tensor], step: int) -> Iterator[LossTerm]:
        """Yield the autoencoder's loss, then the discriminator's once it is trained."""
        x, position = batch["x"], batch["position"]
        before, move = self._moves(step, latent_shape(self.vae, *x.shape[-2:])[-1])
        x = x if before is None else before(x)
        shape = latent_shape(self.vae, *x.shape[-2:])
        noise = rng.normal(self.config.seed, "posterior", position, shape)
        return two_player(
            x if move is None else move(x),
            self.ddp_modules["autoencoder"](x, noise, move),
            step,
            loss=self.loss,
            last_layer=self.autoencode.last_layer,
            discriminate=self.ddp_modules.get("discriminator"),
            raw_discriminator=self.discriminator,
            average=self.collectives.mean,
            codebook=self.codebook,
            judged=self.loss.judged(position),
        )

    def _moves(self, step: int, side: int) -> tuple[Move | None, Move | None]:
        """Draw the moves of pictures and of latents, the same on every process and in every micro-batch of a step."""
        if (config := self.config.equivariance) is None:
            return None, None
        u = rng.uniform(self.config.seed, "move", step * DRAWS + torch.arange(DRAWS))
        return config.drawn(u.tolist(), side)

    def _sum(self, value: Tensor) -> Tensor:
        return self.collectives.sum(value)

    def _broadcast(self, value: Tensor) -> Tensor:
        return self.collectives.broadcast(value)

    @property
    def shown(self) -> PictureSet:
        """Held-out pictures, or the training set where nothing is held out."""
        return self.data.heldout if len(self.data.heldout) else self.data.train

    def heldout_metrics(self) -> dict[str, float]:
        """Measure reconstructions of held-out pictures, or of the training set where nothing is held out."""
        return evaluate(self, self.shown, self.device)

    def samples(self) -> Grid:
        """Reconstruct some held-out pictures, each row above its reconstructions."""
        x = to_unit(self.shown.pictures(spread(len(self.shown), self.config.log.pictures)))
        reconstructions = reconstruct(self.vae, x.to(self.device)).cpu()
        columns, scale = columns_for(2 * len(x), 8), enlargement(x.shape[-1])
        return Grid(pairs_grid(to_bytes(x), to_bytes(reconstructions), columns, scale), "reconstruction")

    def save(self, folder: Path) -> None:
        """Save a copy of the autoencoder, with the normalisation of its latents folded into its weights.

        Raises:
            AutoencoderError: latents that are all but constant.
        """
        vae = copy.deepcopy(self.vae).eval()
        self.statistics = self._statistics(vae)
        fold(vae, self.statistics)
        vae.save_pretrained(folder)
        strip_paths(folder)

    def _statistics(self, vae: nn.Module) -> LatentStatistics:
        indices = torch.tensor(spread(len(self.data.train), STATISTICS_PICTURES)).split(128)
        batches = (to_unit(self.data.train.pictures(batch.tolist())).to(self.device) for batch in indices)
        try:
            return measure(vae, batches)  # pyright: ignore[reportArgumentType]
        except AutoencoderError as error:
            raise AutoencoderError(f"The autoencoder did not learn usable latents. {error}") from None

    def curve_keys(self) -> list[str]:
        """Return the keys of metrics.jsonl that are plotted."""
        return ["autoencoder_loss", "heldout_psnr", "heldout_perceptual"]

    def summary(self, model: Path) -> str:
        """Return what was saved where, its held-out metrics, and the latents' statistics."""
        metrics = ", ".join(f"{name.removeprefix('heldout_')} {value:.4g}" for name, value in self.metrics.items())
        assert self.statistics is not None
        mean, std = (_listed(value) for value in (self.statistics.mean, self.statistics.std))
        folded = f"latent mean {mean} and deviation {std} folded into its weights"
        return f"autoencoder in {model}: held-out {metrics}; {folded}"

    def describe_data(self) -> str:
        """Return what `describe` says of the training set."""
        return f"{len(self.data.train)} training pictures of {self.config.data.resolution} px"

    def describe_model(self) -> str:
        """Return what `describe` says of the network."""
        return f"{type(self.vae).__name__} with {millions(self.vae)} parameters"


@torch.no_grad()
def evaluate(method: Autoencoding, pictures: PictureSet, device: torch.device, batch: int = 64) -> dict[str, float]:
    """Measure PSNR (dB), SSIM, perceptual distance and, for VQ, code usage over a set, from posterior means."""
    means = {name: RunningMean() for name in ("psnr", "ssim", "perceptual")}
    codes = method.vae.quantize.n_e if isinstance(method.config.autoencoder, VQConfig) else None
    usage = CodeUsage(codes) if codes is not None else None
    for indices in chunks(pictures, batch):
        x = to_unit(pictures.pictures(indices)).to(device)
        output = method.autoencode(x, torch.zeros(len(x), *latent_shape(method.vae, *x.shape[-2:]), device=device))
        y = output.picture.clamp(-1, 1)
        means["psnr"].add(psnr(x, y))
        means["ssim"].add(ssim(x, y))
        means["perceptual"].add(method.perceptual(y, x))
        if usage is not None and output.indices is not None:
            usage.add(output.indices)
    metrics = {f"heldout_{name}": mean.mean() for name, mean in means.items()}
    return metrics | ({f"codebook_{k}": v for k, v in usage.summary().items()} if usage is not None else {})


@torch.no_grad()
def reconstruct(vae: Any, x: Tensor) -> Tensor:
    """Pass pictures [B, C, H, W] in [-1, 1] through posterior mean and back."""
    moments = cast(Moments, encode(vae, x))
    return decode(vae, moments.mean).clamp(-1, 1)


def _listed(values: Tensor) -> str:
    return "[" + ", ".join(f"{value:.3g}" for value in values.tolist()) + "]"
