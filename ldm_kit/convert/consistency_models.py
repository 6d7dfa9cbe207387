"""Conversion of checkpoints of openai/consistency_models (Song et al. 2023) to folders that ldm_kit and diffusers open.

The published networks are ADM's U-Nets with attention in the head order of flash attention. They take c_in(sigma) x and
the time 250 ln(sigma), which diffusers' CMStochasticIterativeScheduler computes. Distilled (cd_*.pt) and trained
(ct_*.pt) models have the same weights by name and shape and differ in the number of noise levels of their training:

    cd_imagenet64_*.pt, cd_bedroom256_*.pt, cd_cat256_*.pt      --levels 40 (the default)
    ct_imagenet64.pt                                            --levels 201
    ct_bedroom256.pt, ct_cat256.pt                              --levels 151

edm_*.pt are the EDM models that cd_*.pt were distilled from, no consistency models; as the shapes of their weights are
the same, this conversion does not notice the mistake.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import CMStochasticIterativeScheduler
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.convert import guided_diffusion_weights
from ldm_kit.convert.checkpoint_files import check_unused, read_weights
from ldm_kit.convert.guided_diffusion_layout import Heads, denoiser_layout
from ldm_kit.convert.options import ConsistencyModelsOptions
from ldm_kit.models.consistency_folder import CONSISTENCY_PIPELINE
from ldm_kit.models.saving import scheduler_entry, unet_entry, write_index
from ldm_kit.training.checkpoint import write

SMALLEST_SIDE = 8  # side of the smallest features in all published networks
_CLASSES = "class_embedding.weight"


def convert_consistency_models(checkpoint: Path, out: Path, options: ConsistencyModelsOptions) -> str:
    """Convert a consistency model of openai/consistency_models to a folder; return a description of the model.

    `Pipeline.load(out)` and `diffusers.ConsistencyModelPipeline.from_pretrained(out)` open it.

    Raises:
        UserError: the file cannot be read, is not openai/consistency_models', or does not fit the options; or the
            folder `out` exists and is not empty.
    """
    check_unused(out)
    state_dict = read_weights(checkpoint)
    try:
        unet = unet_from(state_dict, options)
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from None
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=options.levels, sigma_min=0.002, sigma_max=80.0)
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, lambda folder: _save(folder, unet, scheduler))
    return f"{out}: {_describe(unet, options.levels)}"


def unet_from(state_dict: Mapping[str, Tensor], options: ConsistencyModelsOptions) -> UNet2DModel:
    """Return the network of a checkpoint as diffusers' U-Net, in float32 and evaluation mode.

    If the model is conditional, its class embeddings are part of the U-Net.

    Args:
        state_dict: as `torch.load` returns it, in any floating dtype, on any device.
        options: side of the pictures, and the channels and order of attention heads.

    Raises:
        UserError: the weights are another network's, some are missing or too many, or the options do not fit them.
    """
    side = options.image_size or SMALLEST_SIDE * denoiser_layout(state_dict).factor
    heads = Heads(options.head_size, new_order=not options.legacy_attention)
    weights, settings = guided_diffusion_weights.unet_from(state_dict, image_size=side, heads=heads)
    _check_kind(settings)
    table = guided_diffusion_weights.class_table(state_dict)
    classes = {} if table is None else {_CLASSES: table}
    embedded = {"class_embed_type": None, "num_class_embeds": None if table is None else len(table)}
    unet = UNet2DModel(**{**settings, **embedded})
    unet.load_state_dict({**weights, **classes})
    return unet.eval()


def _check_kind(settings: Mapping[str, Any]) -> None:
    """Check that the settings of an ADM U-Net are those of a consistency model; raises UserError if not."""
    if settings["out_channels"] != settings["in_channels"]:
        raise UserError(
            f"the network gives {settings['out_channels']} channels for {settings['in_channels']}, as a denoiser with "
            "a learned variance does; expected as many, as a consistency model has"
        )
    if "time_embedding_type" in settings:
        raise UserError(
            "the time enters as other sinusoids than the first level has channels, which diffusers knows for whole "
            "timesteps alone; a consistency model has times between them"
        )


def _save(folder: Path, unet: UNet2DModel, scheduler: CMStochasticIterativeScheduler) -> None:
    unet.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    entries = {"unet": unet_entry(unet), "scheduler": scheduler_entry(scheduler)}
    write_index(folder, {"_class_name": CONSISTENCY_PIPELINE, **entries})


def _describe(unet: UNet2DModel, levels: int) -> str:
    config: Any = unet.config
    millions = sum(p.numel() for p in unet.parameters()) / 1e6
    classes = config.num_class_embeds
    kind = "an unconditional consistency model" if classes is None else f"a consistency model of {classes} classes"
    return (
        f"{kind}, {config.sample_size} px pictures, {millions:.1f} M weights, {levels} noise levels; "
        "sample.py and diffusers.ConsistencyModelPipeline open it"
    )
