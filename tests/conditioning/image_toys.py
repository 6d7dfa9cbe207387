"""Tiny image encoders with random weights, which stand for pretrained ones."""

import json
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from safetensors.torch import save_file

CLIP = "tiny-eyes"


def timm_weights(folder: Path, name: str = "test_vit", seed: int = 0) -> tuple[Any, str]:
    """A network of timm, and the name by which a config finds its weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(name, pretrained=False).eval()
    path = folder / f"{name}-{seed}.safetensors"
    save_file(model.state_dict(), path)
    return model, f"timm:{name}@{path}"


def clip_weights(folder: Path, seed: int = 0) -> tuple[Any, str]:
    """A model of open_clip whose images have 16 pixels and 4 patches, and the name of its weights."""
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 12, "head_width": 4, "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 64, "width": 8, "heads": 1, "layers": 1},
    }
    (folder / f"{CLIP}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{CLIP}.json")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model(CLIP).eval()
    path = folder / f"clip-{seed}.safetensors"
    save_file(model.state_dict(), path)
    return model, f"open_clip:{CLIP}/{path}"


def pictures(count: int = 3, side: int = 16, channels: int = 3, seed: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, side, side), generator=draw).to(torch.uint8)


def unit_rms(x: torch.Tensor) -> torch.Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt()
