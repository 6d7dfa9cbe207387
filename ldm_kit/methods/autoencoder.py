"""Stage 1 of latent diffusion.

Paper:    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.1.
Idea:     compress pictures to latents that keep what is seen; the diffusion model then works where it is cheap.
Parts:    a KL or VQ autoencoder, a perceptual distance, and a patch discriminator that joins late.
Run:      accelerate launch train_ae.py configs/openmoji/ae_kl.yaml
Expected: see the header of that config.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from pydantic import AliasChoices, Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from autoencoder.adversarial import two_player
from autoencoder.base import Autoencode, Moments, decode, encode, latent_shape
from autoencoder.codebook import Codebook, CodeUsage, forget
from autoencoder.config import AutoencoderConfig, build
from autoencoder.discriminator import Discriminator, DiscriminatorConfig
from autoencoder.equivariance import DRAWS, EquivarianceConfig, Move
from autoencoder.loss import AutoencoderLoss, LossConfig
from autoencoder.perceptual import Perceptual, PerceptualConfig
from autoencoder.vq import VQConfig
from ldm_kit.data.batches import chunks
from ldm_kit.data.images import PictureSet, to_unit
from ldm_kit.data.openmoji.dataset import OpenMojiConfig
from ldm_kit.diffusion import rng
from ldm_kit.methods.base import Collectives, RunConfig
from ldm_kit.metrics.reconstruction import Running, psnr, ssim
from ldm_kit.nets.execution import configure_network
from ldm_kit.training.optim import OptimConfig
from ldm_kit.training.task import LossTerm


class AutoencoderRun(RunConfig):
    """Everything that `train_ae.py` needs to know."""

    autoencoder: AutoencoderConfig
    loss: LossConfig = Field(
        default=LossConfig(),
        validation_alias=AliasChoices("loss", "criterion"),
        description="what the autoencoder is trained on",
    )
    perceptual: PerceptualConfig = PerceptualConfig()
    equivariance: EquivarianceConfig | None = Field(
        default=None, description="train latents that move as pictures do (EQ-VAE); null: not"
    )
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    discriminator_optim: OptimConfig | None = Field(default=None, description="null: as optim")

    @model_validator(mode="after")
    def _fits(self) -> "AutoencoderRun":
        net, judge = self.autoencoder, self.discriminator
        channels = 3 if isinstance(self.data, OpenMojiConfig) else self.data.channels
        if net.resolution != self.data.resolution:
            raise ValueError(
                f"autoencoder.resolution is {net.resolution} but data.resolution {self.data.resolution}; "
                "make them equal"
            )
        if net.channels != channels:
            raise ValueError(f"autoencoder.channels is {net.channels}, but the pictures have {channels}")
        if self.equivariance is not None and isinstance(net, VQConfig):
            raise ValueError("equivariance moves latents between the codes of a codebook; expected autoencoder.kind kl")
        if self.loss.adversarial is not None:
            if judge.channels != channels:
                raise ValueError(f"discriminator.channels is {judge.channels}, but the pictures have {channels}")
            if self._smallest < (least := 3 * 2**judge.layers):
                raise ValueError(
                    f"discriminator.layers {judge.layers} needs pictures of {least} px, got {self._smallest}"
                )
        return self

    @property
    def _smallest(self) -> int:
        """Side in pixels of the smallest pictures that a step may train on."""
        factor, side = 2 ** (len(self.autoencoder.widths) - 1), self.autoencoder.resolution
        return side if self.equivariance is None else factor * self.equivariance.smallest(side // factor)


class Autoencoding:
    """The two players and their losses, for the training loop."""

    def __init__(self, config: AutoencoderRun, ranks: Collectives | None = None) -> None:
        ranks = ranks or Collectives()
        net = config.autoencoder
        self.config = config
        self.vae = build(net)
        learned = config.loss.learned_scale
        beta = net.beta if isinstance(net, VQConfig) else 0.25
        self.autoencode = Autoencode(self.vae, beta=beta, learned_scale=learned)
        self.perceptual = Perceptual(config.perceptual)
        self.criterion = AutoencoderLoss(config.loss, self.perceptual)
        self.discriminator = Discriminator(config.discriminator) if config.loss.adversarial else None
        self.codebook = None
        if isinstance(net, VQConfig):
            self.codebook = Codebook(self.vae.quantize.embedding, net, reduce=ranks.total, share=ranks.share)
        self.average = ranks.average
        self.wrapped: Mapping[str, nn.Module] = self.modules

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Autoencoder, and discriminator if the criterion plays."""
        judge = {"discriminator": self.discriminator} if self.discriminator is not None else {}
        return {"autoencoder": self.autoencode, **judge}

    @property
    def ema_modules(self) -> dict[str, nn.Module]:
        """The autoencoder alone; nobody samples with a discriminator."""
        return {"vae": self.vae}

    @property
    def optim(self) -> dict[str, OptimConfig]:
        """One optimiser each."""
        config = self.config
        return {"autoencoder": config.optim, "discriminator": config.discriminator_optim or config.optim}

    def set_ddp_modules(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Take the modules that DDP wrapped; the perceptual trunk follows to their device."""
        self.wrapped = wrapped
        device = next(self.autoencode.parameters()).device
        for net in self.modules.values():
            configure_network(net, device, self.config.train)
        self.perceptual.to(device)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside weights: the codebook's running statistics."""
        return self.codebook.state_dict() if self.codebook is not None else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        if self.codebook is not None:
            self.codebook.load_state_dict(dict(state))

    def after_step(self, step: int, optimisers: Mapping[str, Optimizer]) -> None:
        """Move the codebook's averages on, revive dead codes, and forget what the optimiser knew of those."""
        if self.codebook is None:
            return
        revived, codes = self.codebook.after_step(step), self.codebook.embedding.weight
        for optimiser in optimisers.values():
            forget(optimiser, codes, revived)

    def discard_step(self) -> None:
        """The step is void, and so is what the codebook has seen of it."""
        if self.codebook is not None:
            self.codebook.discard_step()

    def losses(self, batch: Mapping[str, Tensor], step: int) -> Iterator[LossTerm]:
        """The autoencoder's turn, then the discriminator's once it learns."""
        x, position = batch["x"], batch["position"]
        beforehand, move = self._moves(step, latent_shape(self.vae, *x.shape[-2:])[-1])
        x = x if beforehand is None else beforehand(x)
        shape = latent_shape(self.vae, *x.shape[-2:])
        noise = rng.normal(self.config.seed, "posterior", position, shape)
        return two_player(
            x if move is None else move(x),
            self.wrapped["autoencoder"](x, noise, move),
            step,
            loss=self.criterion,
            last_layer=self.autoencode.last_layer,
            discriminate=self.wrapped.get("discriminator"),
            raw_discriminator=self.discriminator,
            average=self.average,
            codebook=self.codebook,
            judged=self.criterion.judged(position),
        )

    def _moves(self, step: int, side: int) -> tuple[Move | None, Move | None]:
        """Of pictures beforehand and of latents, the same on every process and in every micro-batch of a step."""
        if (wanted := self.config.equivariance) is None:
            return None, None
        u = rng.uniform(self.config.seed, "move", step * DRAWS + torch.arange(DRAWS))
        return wanted.drawn(u.tolist(), side)


@torch.no_grad()
def evaluate(task: Autoencoding, pictures: PictureSet, device: torch.device, batch: int = 64) -> dict[str, float]:
    """PSNR (dB), SSIM, perceptual distance and, for VQ, code usage over a set, from posterior means."""
    means = {name: Running() for name in ("psnr", "ssim", "perceptual")}
    codes = task.vae.quantize.n_e if isinstance(task.config.autoencoder, VQConfig) else None
    usage = CodeUsage(codes) if codes is not None else None
    for part in chunks(pictures, batch):
        x = to_unit(pictures.pictures(part)).to(device)
        made = task.autoencode(x, torch.zeros(len(x), *latent_shape(task.vae, *x.shape[-2:]), device=device))
        y = made.picture.clamp(-1, 1)
        means["psnr"].add(psnr(x, y))
        means["ssim"].add(ssim(x, y))
        means["perceptual"].add(task.perceptual(y, x))
        if usage is not None and made.indices is not None:
            usage.add(made.indices)
    found = {f"heldout_{name}": mean.mean() for name, mean in means.items()}
    return found | ({f"codebook_{k}": v for k, v in usage.summary().items()} if usage is not None else {})


@torch.no_grad()
def pictures_of(vae: Any, x: Tensor) -> Tensor:
    """Pictures [B, C, H, W] in [-1, 1] through posterior mean and back."""
    moments = cast(Moments, encode(vae, x))
    return decode(vae, moments.mean).clamp(-1, 1)
