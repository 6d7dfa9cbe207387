"""Stage 1 of latent diffusion: training of the autoencoder.

Paper:    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.1.
Idea:     compress pictures to small latents with little visible loss, so that diffusion of the latents is cheap.
Parts:    a KL or VQ autoencoder, a perceptual distance, and a patch discriminator that may start at a later step.
Run:      accelerate launch train_ae.py configs/faces/ae_kl.yaml
Expected: see the header of that config.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from autoencoder.adversarial import frozen, two_player, whole_batch_weight
from autoencoder.base import Autoencode, AutoencoderError, Reconstruction, latent_shape
from autoencoder.codebook import Codebook, forget
from autoencoder.config import build
from autoencoder.discriminator import Discriminator
from autoencoder.equivariance import DRAWS, Move, moved_weights
from autoencoder.loss import AutoencoderLoss
from autoencoder.loss_terms import generator_loss, laid_over
from autoencoder.perceptual import Perceptual
from autoencoder.statistics import LatentStatistics, fold, from_sums
from autoencoder.vq import VQConfig
from ldm_kit.data.batches import PictureBatches, chosen, spread
from ldm_kit.data.images import PictureSet, Split
from ldm_kit.data.latents import weights_digest
from ldm_kit.data.value_range import value_range_of, write_range
from ldm_kit.diffusion import rng
from ldm_kit.methods.autoencoder_config import AutoencoderRun as AutoencoderRun
from ldm_kit.methods.autoencoder_init import AutoencoderStart, MaybeStart
from ldm_kit.methods.autoencoder_metrics import (
    describe_latents,
    evaluate,
    figure_names,
    of_training,
    reconstruct_levels,
    sums_of_latents,
)
from ldm_kit.methods.base import Grid, Method, TrainingData
from ldm_kit.methods.measured import MeasuredReconstructions
from ldm_kit.methods.networks import millions
from ldm_kit.methods.run_summary import list_metrics
from ldm_kit.models.folder import strip_paths
from ldm_kit.training.optim import OptimConfig
from ldm_kit.training.task import LossTerm
from ldm_kit.viz.grid import columns_for, enlargement, pairs_grid

MOST = 50_000  # most training pictures over which mean and deviation of the latents are measured


class Autoencoding(MeasuredReconstructions, Method[AutoencoderRun]):
    """Training method of an autoencoder and, if the loss has an adversarial term, of its discriminator."""

    Config = AutoencoderRun
    Start = AutoencoderStart

    def __init__(self, config: AutoencoderRun, data: TrainingData | None = None, start: MaybeStart = None) -> None:
        net = config.autoencoder
        self.vae = build(net) if start is None else start.prepared(config)
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
        if isinstance(net, VQConfig) and not config.train_decoder_only:
            self.codebook = Codebook(self.vae.quantize.embedding, net, reduce=self._sum, share=self._broadcast)
        self.statistics: LatentStatistics | None = None  # of the latents; measured by `save`
        self.ratio: tuple[int, Tensor] | None = None  # a step, and the adversarial loss's adaptive weight in it

    @classmethod
    def build(
        cls, config: AutoencoderRun, data: Split, device: torch.device, start: MaybeStart = None
    ) -> "Autoencoding":
        """Build the networks, or go on with those of `start`, and batches of `data`; the trainer has the `device`."""
        method = cls(config, TrainingData(data, PictureBatches(data.train, config.seed, config.flip)), start)
        if config.perceptual.spec != "none":
            method.dependencies = {"perceptual.weights": weights_digest(method.perceptual)}
        if start is not None:
            method.start, method.notes = start.structure(), [start.note]
        return method

    @property
    def optim(self) -> dict[str, OptimConfig]:
        """Optimiser config by module name; `optim` without Muon for the discriminator if the config has none for it."""
        adamw = self.config.optim.model_copy(update={"muon": None})
        return {"autoencoder": self.config.optim, "discriminator": self.config.discriminator_optim or adamw}

    def set_ddp_modules(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Store `wrapped`, the modules by name (or DDP's wrappers); move the perceptual network to their device."""
        super().set_ddp_modules(wrapped)
        self.perceptual.to(self.device).precision = self.precision

    def state(self) -> dict[str, Tensor]:
        """Return the codebook's moving averages: each entry's count and sum of latents; {} without a codebook."""
        return self.codebook.state_dict() if self.codebook is not None else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors that `state` returned."""
        if self.codebook is not None:
            self.codebook.load_state_dict(dict(state))

    def after_step(self, step: int, optimisers: Mapping[str, Optimizer]) -> None:
        """Update spectral norms and the codebook's moving averages; replace unused entries, reset their Adam moments.

        `step` is the number of steps completed before this one; `optimisers`, by name, have made their update.
        """
        if self.discriminator is not None:
            self.discriminator.after_step()
        if self.codebook is None:
            return
        revived, codes = self.codebook.after_step(step), self.codebook.embedding.weight
        for optimiser in optimisers.values():
            forget(optimiser, codes, revived)

    def discard_step(self) -> None:
        """Discard the latents that the codebook collected during a step that failed and will be repeated."""
        if self.codebook is not None:
            self.codebook.discard_step()

    def losses(self, batch: Mapping[str, Tensor], step: int) -> Iterator[LossTerm]:
        """Yield (name, loss of batch["x"], scalars to log): autoencoder and, if trained at `step`, discriminator."""
        target, made, judged, weight = self._reconstructed(batch, step, self.ddp_modules["autoencoder"])
        return two_player(
            target,
            made,
            step,
            loss=self.loss,
            last_layer=self.autoencode.last_layer,
            discriminate=self.ddp_modules.get("discriminator"),
            raw_discriminator=self.discriminator,
            average=self.collectives.mean,
            codebook=self.codebook,
            judged=judged,
            weight=weight,
            ratio=self.ratio[1] if self.ratio is not None and self.ratio[0] == step else None,
        )

    def _reconstructed(
        self, batch: Mapping[str, Tensor], step: int, autoencode: nn.Module
    ) -> tuple[Tensor, Reconstruction, Tensor | None, Tensor | None]:
        """Return targets, reconstructions, bool [B]: which get a perceptual loss (None: all), and pixels' weights."""
        x, position, config, weight = batch["x"], batch["position"], self.config, batch.get("weight")
        before, move = self._moves(step, latent_shape(self.vae, *x.shape[-2:])[-1])
        x = x if before is None else before(x)
        noise = rng.normal(config.seed, "posterior", position, latent_shape(self.vae, *x.shape[-2:]))
        start = float(rng.uniform(config.seed, "judged", torch.tensor([step])))
        judged = self.loss.judged(position % config.train.batch_size, config.train.batch_size, start)
        weight = None if weight is None else moved_weights(weight, before, move)
        return x if move is None else move(x), autoencode(x, noise, move), judged, weight

    def needs_whole_batch(self, step: int) -> bool:
        """Return whether step `step` needs `see_whole_batch`: whether its adversarial loss has an adaptive weight."""
        game = self.config.loss.adversarial
        return game is not None and game.adaptive and game.factor(step) > 0

    def see_whole_batch(self, batches: Iterable[Mapping[str, Tensor]], step: int) -> None:
        """Store the adaptive weight of step `step`'s adversarial loss, computed over all micro-batches `batches`."""
        game, discriminator = self.config.loss.adversarial, self.discriminator
        assert game is not None
        assert discriminator is not None

        def losses(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            target, made, judged, weight = self._reconstructed(batch, step, self.autoencode)
            shown = laid_over(made.picture, target, weight)
            return self.loss(target, made, judged, weight).nll, generator_loss(discriminator(shown).float())

        last_layer = self.autoencode.last_layer
        with frozen(self.autoencode), frozen(discriminator):
            last_layer.requires_grad_(True)
            weight = whole_batch_weight(map(losses, batches), last_layer, game.max_weight, self.collectives.mean)
        self.ratio = step, weight

    def _moves(self, step: int, side: int) -> tuple[Move | None, Move | None]:
        """Draw step `step`'s EQ-VAE transforms of pictures and of latents of width `side`; None: no transform."""
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
        """Pictures to evaluate and to show: the held-out set, or the training set if nothing is held out."""
        return self.data.heldout if len(self.data.heldout) else self.data.train

    def heldout_metrics(self) -> dict[str, float]:
        """Return metrics of reconstructed held-out pictures; if none are held out, of training pictures (train_...)."""
        indices = chosen(len(self.shown), self.config.log.max_heldout)
        metrics = evaluate(self.autoencode, self.perceptual, self.shown, indices, self.eval_batch)
        return metrics if len(self.data.heldout) else {of_training(name): value for name, value in metrics.items()}

    @classmethod
    def figures(cls, config: AutoencoderRun, data: Split | None) -> list[str]:
        """Return the names of the metrics of `heldout_metrics`; if `data` is None (not loaded), all possible names."""
        return figure_names(config, data)

    def samples(self) -> Grid:
        """Return a grid that alternates a row of pictures with a row of their reconstructions."""
        pictures = self.shown.pictures(spread(len(self.shown), self.config.log.pictures))
        reconstructions = torch.cat([*self.eval_batch.map(pictures, partial(reconstruct_levels, self.vae))])
        layout = columns_for(2 * len(pictures), 8), enlargement(pictures.shape[-1])
        return Grid(pairs_grid(pictures, reconstructions, *layout), "reconstruction")

    def save(self, folder: Path) -> None:
        """Save the autoencoder into `folder`, with latents of standard deviation 1, or with those of init if frozen.

        Raises:
            AutoencoderError: a channel of the latents is constant or not finite.
        """
        vae = copy.deepcopy(self.vae).eval()
        if not self.config.train_decoder_only:
            self.statistics = self._statistics()
            fold(vae, self.statistics)
        vae.save_pretrained(folder)
        write_range(folder, value_range_of(self.data.train))
        strip_paths(folder)

    def _statistics(self) -> LatentStatistics:
        try:
            return from_sums([self.shared_work.run(self.in_evaluation, "training_sums")])
        except AutoencoderError as error:
            raise AutoencoderError(f"The autoencoder did not learn usable latents. {error}") from None

    def training_sums(self) -> Tensor:
        """Return `sums_of_latents` [4, Z] of Z latent channels, which give `save` the latents' mean and deviation."""
        return sums_of_latents(self.vae, self.data.train, spread(len(self.data.train), MOST), self.eval_batch)

    def curve_keys(self) -> list[str]:
        """Return the keys of metrics.jsonl whose training curves are plotted."""
        return ["autoencoder_loss", *(name for name in self.metrics if name.endswith(("_psnr", "_perceptual")))]

    def summary(self, model: Path) -> str:
        """Return a sentence for the log: the saved model's folder, metrics, and statistics of the latents."""
        return f"autoencoder in {model}: {list_metrics(self.metrics)}; {describe_latents(self.statistics)}"

    def describe_data(self) -> str:
        """Return a phrase on the training set (how many pictures, of what) for `describe`, the log's opening text."""
        return f"{len(self.data.train)} training pictures of {self.config.data.resolution} px"

    def describe_model(self) -> str:
        """Return a phrase on the network (class, number of parameters) for `describe`, the log's opening text."""
        return f"{type(self.vae).__name__} with {millions(self.vae)} parameters{self.config.batch_norm_note}"
