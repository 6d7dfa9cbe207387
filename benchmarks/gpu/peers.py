"""diffusers' example scripts on one device, with their best flags, on random pictures that are already on the device.

Flags of stage 2 (train_text_to_image.py): --mixed_precision=bf16 --allow_tf32 --use_ema --foreach_ema, torch's SDPA,
no gradient checkpointing. Stage 1 (train_autoencoderkl.py): --mixed_precision=bf16 --use_ema. To their advantage no
picture is read, decoded or copied, and the perceptual distance is ours.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from autoencoder.config import build as build_autoencoder
from autoencoder.discriminator import Discriminator
from benchmarks.gpu.sizes import Sizes
from benchmarks.kit import AutoencoderRun
from benchmarks.speed.peers import PreparedModule, Stage1Losses
from ldm_kit.models.folder import silence_diffusers


def with_tf32(work: Callable[..., Iterator[object]], *args: Any) -> Iterator[object]:
    """Yield from `work(*args)` while TF32 is allowed in matrix products, as --allow_tf32 does."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield from work(*args)
    finally:
        torch.set_float32_matmul_precision(before)


def _accelerator(sizes: Sizes) -> Accelerator:
    return Accelerator(mixed_precision="bf16", cpu=sizes.device.type == "cpu")


def train_stage2(sizes: Sizes, model: Path, encode: bool) -> Iterator[object]:
    """Train the U-Net of a saved model from random weights; yield after each step.

    Args:
        sizes: batch, picture size and device.
        model: folder of a model in the diffusers layout with CLIP text.
        encode: whether pictures and captions are encoded in every step, as the script does; else latents and text
            states are given.
    """
    accelerator, dtype, device = _accelerator(sizes), torch.bfloat16, sizes.device
    with silence_diffusers():
        with torch.device(device):
            unet: Any = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(model / "unet")).train()
        vae: Any = AutoencoderKL.from_pretrained(model / "vae").requires_grad_(False).to(device, dtype)
        text: Any = CLIPTextModel.from_pretrained(model / "text_encoder").requires_grad_(False).to(device, dtype)
    module = PreparedModule(accelerator, unet, 1e-4, foreach=True)
    pictures = torch.rand(sizes.batch, 3, sizes.side, sizes.side, device=device) * 2 - 1
    ids = torch.randint(text.config.vocab_size, (sizes.batch, sizes.tokens), device=device)
    z = torch.randn(sizes.batch, 4, sizes.latent, sizes.latent, device=device)
    states = torch.randn(sizes.batch, sizes.tokens, text.config.hidden_size, device=device, dtype=dtype)
    noising: Any = DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    while True:
        if encode:
            with torch.no_grad():
                z = vae.encode(pictures.to(dtype)).latent_dist.sample() * vae.config.scaling_factor
                states = text(ids, return_dict=False)[0]
        noise = torch.randn_like(z)
        t = torch.randint(0, len(noising.betas), (len(z),), device=device)
        noisy, target = noising.add_noise(z, noise, t), noising.get_velocity(z, noise, t)
        output = module.net(noisy, t, states, return_dict=False)[0]
        yield module.step(F.mse_loss(output.float(), target.float()))


def train_stage1(sizes: Sizes, config: AutoencoderRun) -> Iterator[object]:
    """Train the autoencoder and the discriminator of a config in turns; yield after one step of each."""
    accelerator, dtype, device = _accelerator(sizes), torch.bfloat16, sizes.device
    vae: Any = build_autoencoder(config.autoencoder)
    module = PreparedModule(accelerator, vae, 4.5e-6, foreach=True)
    rival = PreparedModule(accelerator, Discriminator(config.discriminator), 4.5e-6, averaged=False)
    losses = Stage1Losses(config, vae, rival.net)
    losses.perceptual.to(device)
    with silence_diffusers():
        vae.to(dtype)
        rival.net.to(dtype)
    if module.ema is not None:
        module.ema.to(dtype=dtype)
    x = (torch.rand(sizes.batch_ae, 3, sizes.side, sizes.side, device=device) * 2 - 1).to(dtype)
    while True:
        posterior = vae.encode(x).latent_dist
        module.step(losses.generator(x, vae.decode(posterior.sample()).sample, posterior))
        rival.step(losses.discriminator(x, vae.decode(vae.encode(x).latent_dist.sample()).sample))
        if module.ema is not None:
            module.ema.step(vae.parameters())  # their EMA steps after every batch
        yield None
