"""Read and write LoRA files: diffusers' format and peft's with diffusers' prefixes; kohya's is read too.

A LoRA file holds for some layers of a network two matrices A [r, n] and B [m, r], which change the layer's weight
W [m, n] to W + scale (alpha / r) B A (Hu et al. 2022, section 4.1).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm_kit.config import UserError
from ldm_kit.models.folder import silence_diffusers
from ldm_kit.packages import import_extra

ADAPTER = "default"  # peft's name of an adapter
METADATA, BASE = "lora_adapter_metadata", "base_sha256"  # keys of a file's header: peft's settings; `base_digest`
NETWORKS = ("unet", "text_encoder")  # diffusers' prefixes of the tensors' names


class Settings(BaseModel, extra="ignore", allow_inf_nan=False):
    """The settings of a LoRA that its tensors do not tell, under peft's names."""

    lora_alpha: float
    alpha_pattern: dict[str, float] = Field(default={})
    use_rslora: bool = False


@dataclass(frozen=True)
class LoraFile:
    """Contents of a LoRA file."""

    path: Path
    tensors: Mapping[str, Mapping[str, Tensor]]  # by network, then by peft's name without the adapter's
    alphas: Mapping[str, float]  # alpha by name of the network and layer, where the file is in kohya's format
    settings: Mapping[str, Settings]  # by network; empty where another program wrote the file without them
    base: str | None  # `base_digest` of the model that it was trained on; None: the file does not say

    @classmethod
    def read(cls, path: Path) -> "LoraFile":
        """Read a safetensors file in the format of diffusers, of peft with diffusers' prefixes, or of kohya.

        Raises:
            UserError: the file is missing, is no safetensors file or no LoRA, or is of a network that we do not know.
        """
        tensors, header = _read(path)
        state, alphas = _in_diffusers_format(path, tensors)
        networks: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            network, _, rest = name.partition(".")
            if network not in NETWORKS or "lora" not in rest:
                raise UserError(f"{path} is no LoRA of ours: {name!r:.80} is not of {' or '.join(NETWORKS)}")
            networks.setdefault(network, {})[rest] = value
        if not networks:
            raise UserError(f"{path} is no LoRA: it holds no tensors; expected those of diffusers, peft or kohya")
        networks = {name: _in_peft_format(name, some) for name, some in networks.items()}
        return cls(path, networks, alphas, _settings(path, header), header.get(BASE))

    def peft_config(self, network: str) -> Any:
        """Return peft's config for the LoRA of one network: exact names of layers, rank and alpha of each."""
        peft, tensors = peft_module(), self.tensors[network]
        ranks = {_layer(name): len(value) for name, value in tensors.items() if name.endswith(".lora_A.weight")}
        given, alphas = self.settings.get(network), dict[str, float](ranks)
        alphas |= {name: self.alphas[key] for name in ranks if (key := f"{network}.{name}") in self.alphas}
        return peft.LoraConfig(
            target_modules=sorted({_layer(name) for name in tensors}),
            r=max(ranks.values(), default=1),
            rank_pattern={f"^{name}": rank for name, rank in ranks.items()},
            lora_alpha=1.0 if given is None else given.lora_alpha,
            alpha_pattern={f"^{name}": alpha for name, alpha in alphas.items()}
            if given is None
            else given.alpha_pattern,
            use_dora=any("lora_magnitude_vector" in name for name in tensors),
            use_rslora=given is not None and given.use_rslora,
            lora_bias=any(name.endswith(".lora_B.bias") for name in tensors),
        )


def peft_module() -> Any:
    """Import peft and return it; UserError: it is not installed."""
    return import_extra("peft", "peft", "lora", "LoRA")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot read the LoRA {path} ({error}); expected a .safetensors file, never a pickle"
        ) from None


def _in_diffusers_format(path: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return a file's tensors under diffusers' names, and the alphas that kohya's format has among the tensors."""
    from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin

    loader: Any = StableDiffusionLoraLoaderMixin
    try:
        with silence_diffusers():
            state, alphas = loader.lora_state_dict(dict(tensors)) if tensors else ({}, None)
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise UserError(f"{path} is no LoRA that diffusers can read: {' '.join(str(error).split()):.200}") from None
    return state, {_layer_of_alpha(name): float(alpha) for name, alpha in (alphas or {}).items()}


def _layer_of_alpha(name: str) -> str:
    """Return NETWORK.LAYER of an alpha, which has the name of a tensor in one of diffusers' formats and ".alpha"."""
    network, _, rest = name.removesuffix(".alpha").partition(".")
    return f"{network}.{_layer(next(iter(_in_peft_format(network, {rest: Tensor()}))))}"


def _in_peft_format(network: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of one network, of diffusers' or peft's format, under peft's names."""
    from diffusers.utils import state_dict_utils as formats

    if network == "unet":
        return formats.convert_unet_state_dict_to_peft(tensors)
    named = formats.convert_state_dict(tensors, {**formats.DIFFUSERS_OLD_TO_PEFT, **formats.DIFFUSERS_TO_PEFT})
    return {name.removeprefix("text_model."): value for name, value in named.items()}


def _settings(path: Path, header: Mapping[str, str]) -> dict[str, Settings]:
    if METADATA not in header:
        return {}
    try:
        values = json.loads(header[METADATA])
        of = {n: {k[len(n) + 1 :]: v for k, v in values.items() if k.startswith(f"{n}.")} for n in NETWORKS}
        return {network: Settings.model_validate(some) for network, some in of.items() if some}
    except (ValueError, AttributeError, RecursionError, ValidationError):
        raise UserError(f"{path}: its {METADATA} is broken; expected peft's settings as JSON") from None


def _layer(name: str) -> str:
    return name.partition(".lora_")[0]


def adapter_layers(network: nn.Module) -> dict[str, Any]:
    """Return the layers of a network that have LoRA, by name; none, without importing peft, where it has none."""
    if getattr(network, "peft_config", None) is None:
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}


def write_lora(path: Path, networks: Mapping[str, nn.Module], base: str | None) -> None:
    """Write the LoRA of networks to a file as diffusers' `save_lora_weights` does, with the base's digest.

    Args:
        path: the file.
        networks: the networks by diffusers' prefix; those without LoRA are left out.
        base: `base_digest` of the model without the LoRA; None: unknown.
    """
    peft, tensors, settings = peft_module(), {}, {}
    for name, network in networks.items():
        if adapter_layers(network):
            state = peft.get_peft_model_state_dict(network, adapter_name=ADAPTER)
            tensors |= {f"{name}.{key}": value.detach().cpu().contiguous() for key, value in state.items()}
            config: Any = network.peft_config
            settings |= {f"{name}.{key}": value for key, value in config[ADAPTER].to_dict().items()}
    header = {"format": "pt", METADATA: json.dumps(settings, indent=2, sort_keys=True, default=sorted)}
    save_file(tensors, path, metadata=header if base is None else {**header, BASE: base})
    _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata in a safetensors file's header, which safetensors writes in a random order."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[start:])
