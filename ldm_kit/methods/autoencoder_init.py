"""Start the training of an autoencoder from trained weights, of the whole or of the decoder alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel

from autoencoder.config import build
from autoencoder.saved import CLASSES
from autoencoder.vq import VQConfig, prepare_vq
from ldm_kit.config import UserError
from ldm_kit.data.latents import weights_digest
from ldm_kit.methods.autoencoder_config import AutoencoderRun
from ldm_kit.methods.start import from_structure, locate_start, resumed_note, structure_of, trainable
from ldm_kit.models.growth import check_config
from ldm_kit.models.hub import AUTOENCODER
from ldm_kit.models.manifest import open_first_stage

_KEYS = {  # diffusers' config key -> key of the run's config
    "block_out_channels": "autoencoder.widths",
    "layers_per_block": "autoencoder.layers_per_block",
    "down_block_types": "autoencoder.attention_levels",
    "up_block_types": "autoencoder.attention_levels",
    "latent_channels": "autoencoder.latent_channels",
    "in_channels": "autoencoder.channels",
    "out_channels": "autoencoder.channels",
    "norm_num_groups": "autoencoder.norm_num_groups",
    "mid_block_add_attention": "autoencoder.middle_attention",
    "num_vq_embeddings": "autoencoder.codes",
    "vq_embed_dim": "autoencoder.code_dim",
}
_DECODER_ALONE = ("encoder", "quant_conv", "post_quant_conv", "quantize")  # what stays frozen then


@dataclass(frozen=True, eq=False)
class AutoencoderStart:
    """A trained autoencoder that a run starts from; of a resumed run, one of its structure with random weights."""

    vae: AutoencoderKL | VQModel
    sha256: str  # digest of the trained weights
    note: str  # a sentence for the log

    @classmethod
    def open(cls, config: AutoencoderRun, init: str) -> "AutoencoderStart":
        """Open the autoencoder that `init` names, and check that it fits the config.

        Raises:
            UserError: the autoencoder has another architecture than the config describes.
            AutoencoderError: there is no autoencoder, or it cannot be opened.
        """
        folder, where = locate_start(init, AUTOENCODER)
        vae: Any = open_first_stage(folder, whole=True)
        _check(where, vae, config)
        sha256 = weights_digest(vae)
        trainable(vae)
        return cls(vae, sha256, f"started from {where.removeprefix('init ')}, sha256 {sha256}")

    @classmethod
    def reopen(cls, config: AutoencoderRun, structure: Mapping[str, Any], checkpoint: Path) -> "AutoencoderStart":
        """Build the autoencoder of a resumed run from what `structure` returned, with random weights.

        Raises:
            UserError: the structure is invalid.
        """
        sha256, vae = str(structure.get("sha256")), from_structure(structure.get("vae"), CLASSES, checkpoint)
        trainable(vae)
        return cls(vae, sha256, resumed_note(sha256))

    def structure(self) -> dict[str, Any]:
        """Return what a resumed run builds its autoencoder from, as JSON values."""
        return {"sha256": self.sha256, "vae": structure_of(self.vae)}

    def prepared(self, config: AutoencoderRun) -> AutoencoderKL | VQModel:
        """Return the autoencoder, set to be trained as the config says."""
        net, vae = config.autoencoder, self.vae
        if isinstance(net, VQConfig) and isinstance(vae, VQModel):
            prepare_vq(vae, net)
        if config.train_decoder_only:
            for module in filter(None, (getattr(vae, name, None) for name in _DECODER_ALONE)):
                module.requires_grad_(False)
        return vae


MaybeStart = AutoencoderStart | None  # None: random weights


def _check(where: str, vae: AutoencoderKL | VQModel, config: AutoencoderRun) -> None:
    with torch.device("meta"):
        expected = build(config.autoencoder)
    if type(vae) is not type(expected):
        raise UserError(
            f"{where} has the class {type(vae).__name__}, but autoencoder.kind {config.autoencoder.kind} is of class "
            f"{type(expected).__name__}; expected the same"
        )
    check_config(where, vae, expected, _KEYS)
