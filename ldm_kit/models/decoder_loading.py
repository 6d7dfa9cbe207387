"""Load the decoder of a saved semantic model: DiffAE's U-Net, or PDAE's gradient estimator with its base model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm_kit.config import UserError
from ldm_kit.models.base_model import BaseModel, reopen_base
from ldm_kit.models.components import FIRST_STAGE, load_first_stage
from ldm_kit.models.consistency import ConsistencyDecoder, is_consistency_model
from ldm_kit.models.decoders import SHIFT, UNETS, CodeDecoder, Decoder, ShiftDecoder
from ldm_kit.models.folder import ModelFolder
from ldm_kit.nets.execution import prepare_loaded
from ldm_kit.nets.semantic_unet import SemanticUNet
from ldm_kit.nets.shift_unet import ShiftUNet
from ldm_kit.nets.token_unet import TokenUNet


def load_decoder(folder: ModelFolder, device: torch.device | str) -> Decoder:
    """Load the decoder of a semantic model's folder to a device, in evaluation mode.

    Raises:
        UserError: a component is missing or broken, or its class is not supported; or PDAE's base model is missing or
            has changed.
    """
    decoder = _load_shift(folder, device) if "shift" in folder else _load_unet(folder, device)
    return decoder.to(device)


def _load_unet(folder: ModelFolder, device: torch.device | str) -> CodeDecoder:
    kind = folder.entry("unet", UNETS)
    unet = folder.component("unet", kind, {"SemanticUNet": SemanticUNet, "TokenUNet": TokenUNet}, device)
    vae = None
    if "vae" in folder:
        kind = folder.entry("vae", dict.fromkeys(FIRST_STAGE, "diffusers"))
        vae = load_first_stage(folder, "vae", kind, device)
    schedule, prediction_type, variance = folder.noise()
    if prediction_type not in ("eps", "v") or variance == "learned_range":
        raise UserError(
            f"{folder}: the scheduler says prediction_type {prediction_type} and variance {variance}, but a semantic "
            "model's U-Net predicts eps or v alone"
        )
    decoder = ConsistencyDecoder if is_consistency_model(folder.index) else CodeDecoder
    return decoder(unet, vae, schedule, prediction_type)


def _load_shift(folder: ModelFolder, device: torch.device | str) -> ShiftDecoder:
    kind = folder.entry("shift", {SHIFT[1]: SHIFT[0]})
    base = reopen_base(folder.path, folder.index.get("base"))
    for module in (base.unet, base.vae):
        if module is not None:
            prepare_loaded(module, device)  # it was opened on the CPU, where its null condition is computed
    return ShiftDecoder(folder.component("shift", kind, {kind: _WithBase(base)}, device), base)


@dataclass(frozen=True)
class _WithBase:
    """Loads a `ShiftUNet` on the U-Net of `base`, by a method `from_pretrained(folder)` like that of a diffusers class.

    `ModelFolder.component` calls `from_pretrained(folder)` alone, but `ShiftUNet.from_pretrained` also needs the U-Net.
    """

    base: BaseModel

    def from_pretrained(self, folder: Path, **options: Any) -> Any:
        return ShiftUNet.from_pretrained(folder, base=self.base.unet, **options)
