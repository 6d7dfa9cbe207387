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
from ldm_kit.viz.sheet import Section, sheet

OPTIONS = {"steps": 15, "solver": "dpm++", "guidance_scale": 2.0}  # for models that were saved without options
REAL, RECONSTRUCTED = "real faces", "held-out faces, autoencoded"
EACH = 8  # faces of a section of the sheet


@dataclass(frozen=True)
class AutoencoderLoss:
    """What the autoencoder loses: quality of real pictures after encoding and decoding."""

    shares: FactorShares  # how often a classifier still finds the true value of each factor, such as hair colour
    psnr: float  # mean PSNR in dB
    ssim: float  # mean SSIM


@dataclass(frozen=True)
class Summary:
    """Results of the demo: how good the generated faces are, and a sheet of them."""

    figures: dict[str, Any]  # measured values by name, for JSON
    text: str  # the same values, as text with a table
    sheet: Path  # path of the PNG file with the generated pictures


def show(run: Path, count: int, options: SamplingOptions | None = None) -> Summary:
    """Sample pictures with a run's model, measure them, and write RUN/pictures/sheet.png.

    The pictures are judged by a classifier (the reader), which is trained on first use and read from the cache later.
    Parts of the data that are empty are left out. The parts are the training pictures, the held-out ones, and the
    compositional ones (pairs of values, such as winking eyes and tan skin, that training shows only separately).

    Args:
        run: folder of a finished run of latent diffusion on the built-in faces.
        count: number of prompts from each part: captions of the part's pictures.
        options: sampling options; None: no values are given. Values not given are those saved with the model, or else
            the demo's defaults.

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
    coded = pipeline.vae is not None and len(split.heldout) > 0
    lost = measure_autoencoder(pipeline.vae, reader, split.heldout) if coded else None
    path = run / "pictures" / "sheet.png"
    save_png(sheet(sections, ATTRIBUTION), path, {"attribution": ATTRIBUTION})
    return summarise(columns, lost, resolved, path)


def faces_of(run: Path) -> FacesConfig:
    """Return the config of the built-in faces that a run was trained on; raise UserError if it had other data."""
    data = read_run(run / "config.yaml").data
    if not isinstance(data, FacesConfig):
        raise UserError(f"{run} was trained on {data.source}; expected a run on faces, such as `make demo` trains")
    return data


def measure_parts(
    pipeline: Pipeline, reader: FactorReader, split: Split, count: int, options: SamplingOptions
) -> tuple[dict[str, FactorShares], list[Section]]:
    """Generate pictures for captions of each part of a data set, and measure how often they show what the caption says.

    The parts are the training, the held-out and the compositional pictures (combinations that training never showed).

    Args:
        pipeline: the model.
        reader: classifier of factors such as hair colour; not trained on held-out or compositional pictures.
        split: the data set; the factors of its pictures are known.
        count: most captions of each part.
        options: sampling options.

    Returns:
        Shares of right values by the name of the part, after the shares for the real held-out and compositional
        pictures, if there are any; and for each part a section of the demo's sheet (pictures with their prompts).
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
    """Return the parts of a data set (training, held-out and compositional pictures) by their titles in the demo.

    Compositional pictures show combinations of values that training never showed. Parts without pictures are left
    out: they have no captions to sample.
    """
    parts = {"seen in training": split.train, "held-out faces": split.heldout, "never combined": split.compositional}
    return {name: pictures for name, pictures in parts.items() if pictures is not None and len(pictures)}


def measure_real(reader: FactorReader, split: Split) -> FactorShares:
    """Return how often a classifier of factors (such as hair colour) is right about real pictures of a data set.

    These are the held-out and the compositional pictures (combinations of values that training never showed). The
    classifier was not trained on them, so the shares say how far it can be trusted.
    """
    sets = [known_factors(pictures) for pictures in (split.heldout, split.compositional) if pictures is not None]
    pixels = torch.cat([pictures.pictures(range(len(pictures))) for pictures in sets])
    return count_right(reader, pixels, torch.cat([factor_labels(pictures) for pictures in sets]))


def measure_autoencoder(vae: Any, reader: FactorReader, pictures: PictureSet) -> AutoencoderLoss:
    """Encode and decode real pictures; measure how much they change, and how often a classifier is still right.

    The shares of right values are about the best that generated pictures can reach: the same decoder makes them.

    Args:
        vae: the autoencoder, which reconstructs the pictures.
        reader: classifier of factors such as hair colour; not trained on these pictures.
        pictures: at least one real picture; the true factors of all are known.
    """
    pixels, psnr, ssim = reconstruct_all(vae, pictures)
    shares = count_right(reader, pixels, factor_labels(known_factors(pictures)))
    return AutoencoderLoss(shares, float(psnr.mean()), float(ssim.mean()))


def reconstruct_all(vae: Any, pictures: PictureSet) -> tuple[Tensor, Tensor, Tensor]:
    """Encode and decode N pictures with an autoencoder.

    Returns:
        The decoded pictures, uint8 [N, C, R, R]; the PSNR of each in dB, [N]; the SSIM of each, [N].
    """

    device = next(vae.parameters()).device

    def reconstructed(indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        x = to_unit(pictures.pictures(indices)).to(device)
        y = reconstruct(vae, x)
        return to_bytes(y).cpu(), psnr_of(x, y), ssim_of(x, y).cpu()

    size = BatchSize.for_pictures(None, pictures.resolution)
    pixels, psnr, ssim = zip(*size.batches(len(pictures), reconstructed), strict=True)
    return torch.cat(pixels), torch.cat(psnr), torch.cat(ssim)


def summarise(
    columns: Mapping[str, FactorShares], lost: AutoencoderLoss | None, options: ResolvedOptions, path: Path
) -> Summary:
    """Return the demo's results as figures for JSON and as text with a table.

    Args:
        columns: shares of right values by the name of the part of the data, as `measure_parts` returns them.
        lost: what the autoencoder loses of held-out pictures; None: there are no held-out pictures.
        options: the options with which the pictures were sampled.
        path: path of the PNG file with the generated pictures.
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
