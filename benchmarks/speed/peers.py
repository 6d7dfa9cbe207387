"""Recipes of diffusers' example scripts and documentation, reimplemented for timing beside ldm_kit.

Stage 2 follows examples/text_to_image/train_text_to_image.py: a frozen VAE and text encoder run on every batch, cast
to the mixed precision's type; the U-Net is trained in float32 weights (under autocast when mixed) by torch's AdamW at
its defaults with clipping at 1, a constant learning rate and EMAModel after each step; the loss is read each step.
Stage 1 follows examples/research_projects/autoencoderkl/train_autoencoderkl.py: weights and pictures cast to the mixed
precision's type, the same optimiser and EMA, and, with adversarial training, autoencoder and discriminator alternate
by batch. Differences, all to their advantage: pictures are decoded beforehand, the perceptual distance is ours (Lite0),
and without adversarial training no discriminator is evaluated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer

from autoencoder.config import build as build_autoencoder
from autoencoder.discriminator import Discriminator
from autoencoder.perceptual import Perceptual
from benchmarks.kit import AutoencoderRun, SamplingOptions, build_denoiser
from benchmarks.speed.workspace import Workspace
from ldm_kit.data.images import PictureSet, to_unit
from ldm_kit.models.folder import silence_diffusers

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Captioned:
    """Data set that returns whole batches: pictures in [-1, 1], mirrored at random, and token ids of their captions."""

    pictures: PictureSet
    tokenizer: Any = None  # transformers' tokenizer of captions; None: no token ids
    length: int = 0  # number of tokens that captions are padded or cut to

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        x = torch.stack([_random_flip(to_unit(self.pictures.picture(index))) for index in indices])
        if self.tokenizer is None:
            return {"pixel_values": x}
        captions = [self.pictures.records[index].text for index in indices]
        rules: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return {
            "pixel_values": x,
            "input_ids": self.tokenizer(captions, max_length=self.length, **rules).input_ids,
        }


def _random_flip(x: Tensor) -> Tensor:
    return x.flip(2) if torch.rand(()) < 0.5 else x


def _identity(batch: Any) -> Any:
    return batch


def _batches(data: Captioned, size: int) -> DataLoader[Any]:
    return DataLoader(data, batch_size=size, shuffle=True, drop_last=True, collate_fn=_identity)  # pyright: ignore[reportArgumentType]


class PreparedModule:
    """A network with AdamW at a constant learning rate `lr`, prepared by accelerate; diffusers' EMA if `averaged`.

    `foreach` is the EMA's flag of that name.
    """

    def __init__(
        self, accelerator: Accelerator, net: nn.Module, lr: float, averaged: bool = True, foreach: bool = False
    ) -> None:
        self.accelerator = accelerator
        optimiser = torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
        schedule = get_scheduler("constant", optimizer=optimiser, num_warmup_steps=0, num_training_steps=10**6)
        self.net, self.optimiser, self.schedule = accelerator.prepare(net, optimiser, schedule)
        self.ema = EMAModel(net.parameters(), foreach=foreach) if averaged else None

    def step(self, loss: Tensor) -> float:
        """Train one step: backward pass, clipping at norm 1, update, EMA; return the loss as a number."""
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad()
        if self.ema is not None:
            self.ema.step(self.net.parameters())
        return loss.item()


def _cast(dtype: torch.dtype, *nets: Any) -> None:
    with silence_diffusers():  # diffusers warns that it does not know what this does to its networks
        for net in nets:
            net.to(dtype)


def load_text_encoder(space: Workspace, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load the workspace's frozen text encoder, with weights of a dtype, and its tokenizer."""
    with silence_diffusers():
        model = AutoModel.from_pretrained(space.text_encoder, local_files_only=True, dtype=dtype)
        return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(space.text_encoder)


def train_stage2(
    space: Workspace, precision: str, overrides: Sequence[str] = (), lr: float = 1e-4
) -> Iterator[PreparedModule]:
    """Train a text-to-image denoiser as diffusers' script does; after each step, yield the network with its EMA.

    Args:
        space: folders and pictures that all variants share.
        precision: accelerate's mixed precision, no or bf16.
        overrides: overrides of the quick recipe, which describes the U-Net and the batch.
        lr: learning rate.
    """
    config = space.stage2(*overrides)
    accelerator, dtype = Accelerator(mixed_precision=precision, cpu=True), DTYPES[precision]
    text, tokenizer = load_text_encoder(space, dtype)
    vae: Any = AutoencoderKL.from_pretrained(space.autoencoder)
    _cast(dtype, vae.requires_grad_(False))
    unet = build_denoiser(config, text.config.hidden_size).train()
    module = PreparedModule(accelerator, unet, lr)
    length = getattr(config.condition, "length", 77)
    data = _batches(Captioned(space.split().train, tokenizer, length), config.train.batch_size)
    noising: Any = DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    while True:
        for batch in accelerator.prepare(data):
            with torch.no_grad():
                z = vae.encode(batch["pixel_values"].to(dtype)).latent_dist.sample() * vae.config.scaling_factor
                states = text(batch["input_ids"]).last_hidden_state
            noise = torch.randn_like(z)
            t = torch.randint(0, len(noising.betas), (len(z),))
            noisy, target = noising.add_noise(z, noise, t), noising.get_velocity(z, noise, t)
            output = module.net(noisy, t, states, return_dict=False)[0]
            module.step(F.mse_loss(output.float(), target.float()))
            yield module


def train_stage1(space: Workspace, precision: str, overrides: Sequence[str] = ()) -> Iterator[object]:
    """Train an autoencoder as diffusers' script does; yield after each step.

    With a discriminator, steps of both modules alternate, and it yields after one step of each.

    `precision` is accelerate's mixed precision, no or bf16. `overrides` change the quick recipe, which describes the
    autoencoder, the losses and the batch.
    """
    config = space.stage1(*overrides)
    accelerator, dtype = Accelerator(mixed_precision=precision, cpu=True), DTYPES[precision]
    vae: Any = build_autoencoder(config.autoencoder)
    adversarial = config.loss.adversarial
    module = PreparedModule(accelerator, vae, lr=4.5e-6)
    rival = (
        PreparedModule(accelerator, Discriminator(config.discriminator), 4.5e-6, averaged=False)
        if adversarial
        else None
    )
    losses = Stage1Losses(config, vae, rival.net if rival else None)
    _cast(dtype, vae, *([rival.net] if rival else []))
    if module.ema is not None:
        module.ema.to(dtype=dtype)
    data = _batches(Captioned(space.split().train), config.train.batch_size)
    batches = 0
    while True:
        for batch in accelerator.prepare(data):
            x, batches = batch["pixel_values"].to(dtype), batches + 1
            posterior = vae.encode(x).latent_dist
            made = vae.decode(posterior.sample()).sample
            if rival is None or batches % 2:
                module.step(losses.generator(x, made, posterior))
            else:
                rival.step(losses.discriminator(x, made))
                if module.ema is not None:
                    module.ema.step(vae.parameters())  # their EMA steps after every batch
            if rival is None or batches % 2 == 0:
                yield batches


class Stage1Losses:
    """Losses of the autoencoder and of the discriminator, as in diffusers' script.

    Args:
        config: config with the weights of the losses.
        vae: the autoencoder.
        rival: the discriminator; None: there is none.
    """

    def __init__(self, config: AutoencoderRun, vae: Any, rival: nn.Module | None) -> None:
        self.criterion, self.vae, self.rival = config.loss, vae, rival
        self.perceptual = Perceptual(config.perceptual)

    def generator(self, x: Tensor, made: Tensor, posterior: Any) -> Tensor:
        """Return the autoencoder's loss: reconstruction, perceptual and KL terms, and the adversarial one if any.

        Terms are summed over a picture's elements and averaged over the batch; the adversarial term is weighted by the
        ratio of gradient norms at the decoder's last layer.

        Args:
            x: originals, [B, C, H, W] in [-1, 1].
            made: their reconstructions.
            posterior: diffusers' Gaussian posterior of the latents.
        """
        pixel = F.mse_loss(made.float(), x.float(), reduction="none")
        perceptual = self.perceptual(made, x).view(-1, 1, 1, 1)
        nll = (pixel + self.criterion.perceptual_weight * perceptual).sum() / len(x)
        loss = nll + self.criterion.kl_weight * posterior.kl().sum() / len(x)
        if self.rival is None:
            return loss
        g, last = -self.rival(made).mean(), self.vae.decoder.conv_out.weight
        reconstruction, adversarial = (
            torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (nll, g)
        )
        return loss + 0.5 * (reconstruction / (adversarial + 1e-4)).clamp(0, 1e4).detach() * g

    def discriminator(self, x: Tensor, made: Tensor) -> Tensor:
        """Return the discriminator's hinge loss for originals x and reconstructions `made`, [B, C, H, W] each."""
        assert self.rival is not None
        real, fake = self.rival(x), self.rival(made.detach())
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


@torch.no_grad()
def generate(space: Workspace, options: SamplingOptions, count: int, mixed: bool) -> Iterator[object]:
    """Generate batches of pictures with diffusers, as its documentation shows it; yield each batch, endlessly.

    Guidance evaluates both conditions in one batch; DPM++ is configured from the saved model's scheduler.

    Args:
        space: folders and pictures that all variants share; it has a saved model.
        options: number of steps and guidance scale.
        count: pictures in a batch, of the first `count` captions.
        mixed: whether networks autocast to bf16.
    """
    text, tokenizer = load_text_encoder(space, torch.float32)
    unet: Any = UNet2DConditionModel.from_pretrained(space.model / "unet")
    vae: Any = AutoencoderKL.from_pretrained(space.model / "vae")
    saved: Any = DDPMScheduler.load_config(space.model / "scheduler")
    scheduler: Any = DPMSolverMultistepScheduler.from_config(saved, timestep_spacing="trailing")
    captions = [record.text for record in space.split().train.records[:count]]
    length = getattr(space.stage2().condition, "length", 77)
    rules: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    while True:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            ids = tokenizer([""] * count + captions, max_length=length, **rules).input_ids
            states = text(ids).last_hidden_state
            scheduler.set_timesteps(options.steps)
            shape = (count, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
            z = torch.randn(shape) * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                both = scheduler.scale_model_input(torch.cat([z, z]), t)
                null, conditional = unet(both, t, encoder_hidden_states=states).sample.chunk(2)
                z = scheduler.step(null + options.guidance_scale * (conditional - null), t, z).prev_sample
            x = vae.decode(z / vae.config.scaling_factor).sample
            yield (x / 2 + 0.5).clamp(0, 1).float().permute(0, 2, 3, 1).mul(255).round().byte().numpy()
