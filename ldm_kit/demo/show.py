"""The demo's results: a sheet of faces generated for prompts, and how often they show what their prompts say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data import sources
from ldm_kit.data.faces.dataset import ATTRIBUTION, FacesConfig
from ldm_kit.data.factors import known_factors
from ldm_kit.data.images import PictureSet, Split, subset, to_bytes, to_unit
from ldm_kit.demo.measure import choose_prompts, sample_prompts
from ldm_kit.demo.sheet import Section, sheet
from ldm_kit.memory import BatchSize
from ldm_kit.methods import read_run
from ldm_kit.methods.autoencoder_metrics import reconstruct
from ldm_kit.metrics.factor_reader import FactorReader
from ldm_kit.metrics.factor_shares import FactorShares, count_right, fidelity_table
from ldm_kit.metrics.reconstruction import psnr as psnr_of
from ldm_kit.metrics.reconstruction import ssim as ssim_of
from ldm_kit.models.factor_readers import factor_labels, factor_reader
from ldm_kit.models.options import ResolvedOptions, SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.training.precision import is_bf16_fast
from ldm_kit.viz.png import save_png

OPTIONS = {"steps": 15, "solver": "dpm++", "guidance_scale": 2.0}  # for models that were saved without options
REAL, RECONSTRUCTED = "real faces", "held-out faces, autoencoded"
EACH = 8  # faces of a section of the sheet


@dataclass(frozen=True)
class AutoencoderLoss:
    """What is left of real pictures after encoding and decoding."""

    shares: FactorShares  # how often a reader is still right about them
    psnr: float  # mean PSNR in dB
    ssim: float  # mean SSIM


@dataclass(frozen=True)
class Summary:
    """Results of the demo."""

    figures: dict[str, Any]  # measured values by name, for JSON
    text: str  # the same values, as text with a table
    sheet: Path  # path of the PNG file with the generated pictures


def show(run: Path, count: int, options: SamplingOptions | None = None) -> Summary:
    """Sample pictures with a run's model, measure them, and write sheet.png to the run's pictures.

    The reader that judges them is trained on first use, and is read from the cache later. Parts of the split that have
    no picture are left out.

    Args:
        run: folder of a finished run of latent diffusion on the built-in faces.
        count: number of prompts to sample from each of the training, held-out and compositional captions.
        options: sampling options; None, and values not given: those that the run was judged with.

    Raises:
        UserError: the run was trained on other data, or an option is impossible with its model.
    """
    data = faces_of(run)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    pipeline = Pipeline.load(run / "model", device or "cpu", torch.bfloat16 if is_bf16_fast(device or "cpu") else None)
    resolved = (options or SamplingOptions()).resolve(pipeline, OPTIONS)
    split = sources.load(data)
    reader = factor_reader(data, split, device=str(device or "cpu"))
    columns, sections = measure_parts(pipeline, reader, split, count, resolved)
    lost = measure_autoencoder(pipeline, reader, split.heldout) if len(split.heldout) else None
    path = run / "pictures" / "sheet.png"
    save_png(sheet(sections, ATTRIBUTION), path, {"attribution": ATTRIBUTION})
    return summarise(columns, lost, resolved, path)


def faces_of(run: Path) -> FacesConfig:
    """Return the config of the faces that a run was trained on; raise UserError if these are other data."""
    data = read_run(run / "config.yaml").data
    if not isinstance(data, FacesConfig):
        raise UserError(f"{run} was trained on {data.source}; expected a run on faces, such as `make demo` trains")
    return data


def measure_parts(
    pipeline: Pipeline, reader: FactorReader, split: Split, count: int, options: SamplingOptions
) -> tuple[dict[str, FactorShares], list[Section]]:
    """Sample at most `count` captions of each part of a split and measure the pictures.

    Args:
        pipeline: the model.
        reader: reads factors from pictures; not trained on held-out or compositional pictures.
        split: pictures that know their factors.
        count: most captions of each part.
        options: sampling options.

    Returns:
        Shares of right values by name, first those of the real held-out and compositional pictures, if there are any;
        and a section of the sheet for each part.
    """
    columns = {REAL: measure_real(reader, split)} if len(parts_of(split)) > 1 else {}
    sections: list[Section] = []
    for name, pictures in parts_of(split).items():
        chosen = subset(pictures, choose_prompts(pictures, count, name))
        prompts = [record.text for record in chosen.records]
        generated = sample_prompts(pipeline, prompts, options)
        columns[name] = count_right(reader, generated, factor_labels(known_factors(chosen)))
        sections.append(Section(name, generated[:EACH], prompts[:EACH]))
    return columns, sections


def parts_of(split: Split) -> dict[str, PictureSet]:
    """Return the parts of a split that have pictures, and so prompts, by the names under which they are shown."""
    parts = {"seen in training": split.train, "held-out faces": split.heldout, "never combined": split.compositional}
    return {name: pictures for name, pictures in parts.items() if pictures is not None and len(pictures)}


def measure_real(reader: FactorReader, split: Split) -> FactorShares:
    """Count how often a reader is right about the real held-out and compositional pictures, none of which it knows."""
    sets = [known_factors(pictures) for pictures in (split.heldout, split.compositional) if pictures is not None]
    pixels = torch.cat([pictures.pictures(range(len(pictures))) for pictures in sets])
    return count_right(reader, pixels, torch.cat([factor_labels(pictures) for pictures in sets]))


def measure_autoencoder(pipeline: Pipeline, reader: FactorReader, pictures: PictureSet) -> AutoencoderLoss:
    """Encode and decode real pictures; measure how much they change, and whether a reader is still right about them.

    The shares of right values are a bound for those of generated pictures.

    Args:
        pipeline: the model, whose autoencoder reconstructs the pictures.
        reader: reads factors from pictures; not trained on these.
        pictures: real pictures that know their factors, at least one.
    """
    pixels, psnr, ssim = reconstruct_all(pipeline, pictures)
    shares = count_right(reader, pixels, factor_labels(known_factors(pictures)))
    return AutoencoderLoss(shares, float(psnr.mean()), float(ssim.mean()))


def reconstruct_all(pipeline: Pipeline, pictures: PictureSet) -> tuple[Tensor, Tensor, Tensor]:
    """Encode and decode pictures; return them as uint8 [N, C, R, R], and each one's PSNR in dB and SSIM, [N]."""

    def reconstructed(indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        x = to_unit(pictures.pictures(indices)).to(pipeline.device)
        y = reconstruct(pipeline.vae, x)
        return to_bytes(y).cpu(), psnr_of(x, y), ssim_of(x, y).cpu()

    size = BatchSize.for_pictures(None, pictures.resolution)
    pixels, psnr, ssim = zip(*size.batches(len(pictures), reconstructed), strict=True)
    return torch.cat(pixels), torch.cat(psnr), torch.cat(ssim)


def summarise(
    columns: Mapping[str, FactorShares], lost: AutoencoderLoss | None, options: ResolvedOptions, path: Path
) -> Summary:
    """Return the results as figures and as text.

    Args:
        columns: shares of right values by name, as `measure_parts` returns them.
        lost: what the autoencoder changes of held-out pictures; None: there are no held-out pictures.
        options: the options with which the pictures were sampled.
        path: path of the sheet.
    """
    quality: dict[str, Any] = {"psnr": None, "ssim": None}
    lines = [
        f"sampled in {options.steps} steps of {options.solver} with guidance {options.guidance_scale:g};",
        "how often a face shows what its prompt says, read by an independent classifier, with 95 % intervals:",
        "",
    ]
    if lost is not None:
        columns = {**{k: v for k, v in columns.items() if k == REAL}, RECONSTRUCTED: lost.shares,
                   **{k: v for k, v in columns.items() if k != REAL}}  # fmt: skip
        quality = {"psnr": lost.psnr, "ssim": lost.ssim}
        lines = [f"the autoencoder on held-out faces: PSNR {lost.psnr:.2f} dB, SSIM {lost.ssim:.3f}", "", *lines]
    figures = {**quality, "options": options.settings(), **{name: shares.figures for name, shares in columns.items()}}
    return Summary(figures, "\n".join([*lines, fidelity_table(columns)]), path)
