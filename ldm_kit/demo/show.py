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
from ldm_kit.demo.measure import FactorShares, choose_prompts, count_right, fidelity_table, sample_prompts
from ldm_kit.demo.sheet import Section, sheet
from ldm_kit.memory import BatchSize
from ldm_kit.methods import read_run
from ldm_kit.methods.autoencoder_metrics import reconstruct
from ldm_kit.metrics.factor_reader import FactorReader
from ldm_kit.metrics.reconstruction import psnr as psnr_of
from ldm_kit.models.factor_readers import factor_labels, factor_reader
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.training.precision import is_bf16_fast
from ldm_kit.viz.png import save_png

OPTIONS = {"steps": 15, "solver": "dpm++", "guidance_scale": 2.0}  # for models that were saved without options
REAL, RECONSTRUCTED = "real faces", "held-out faces, autoencoded"
EACH = 8  # faces of a section of the sheet


@dataclass(frozen=True)
class Summary:
    """Results of the demo."""

    figures: dict[str, Any]  # measured values by name, for JSON
    text: str  # the same values, as text with a table
    sheet: Path  # path of the PNG file with the generated pictures


def show(run: Path, count: int, options: SamplingOptions | None = None) -> Summary:
    """Sample pictures with a run's model, measure them, and write sheet.png to the run's pictures.

    The reader that judges them is trained on first use, and is read from the cache later.

    Args:
        run: folder of a finished run of latent diffusion on the built-in faces.
        count: number of prompts to sample from each of the training, held-out and compositional captions.
        options: sampling options; None: those that the run was judged with.

    Raises:
        UserError: the run was trained on other data.
    """
    data = _faces_of(run)
    split = sources.load(data)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    pipeline = Pipeline.load(run / "model", device or "cpu", torch.bfloat16 if is_bf16_fast(device or "cpu") else None)
    resolved = (options or SamplingOptions()).resolve(pipeline, OPTIONS)
    reader = factor_reader(data, device=str(device or "cpu"))
    columns, sections = measure_parts(pipeline, reader, split, count, resolved)
    bound = measure_reconstructed(pipeline, reader, split.heldout)
    columns = {REAL: columns.pop(REAL), RECONSTRUCTED: bound, **columns}
    path = run / "pictures" / "sheet.png"
    save_png(sheet(sections, ATTRIBUTION), path, {"attribution": ATTRIBUTION})
    return _summary(columns, autoencoder_psnr(pipeline, split.heldout), path)


def _faces_of(run: Path) -> FacesConfig:
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
        Shares of right values by name, first those of the real held-out and compositional pictures; and a section of
        the sheet for each part.
    """
    columns = {REAL: measure_real(reader, split)}
    sections: list[Section] = []
    for name, pictures in parts_of(split).items():
        chosen = subset(pictures, choose_prompts(pictures, count, name))
        prompts = [record.text for record in chosen.records]
        generated = sample_prompts(pipeline, prompts, options)
        columns[name] = count_right(reader, generated, factor_labels(known_factors(chosen)))
        sections.append(Section(name, generated[:EACH], prompts[:EACH]))
    return columns, sections


def parts_of(split: Split) -> dict[str, PictureSet]:
    """Return the parts of a split from which prompts are taken, by the names under which they are shown."""
    parts = {"seen in training": split.train, "held-out faces": split.heldout, "never combined": split.compositional}
    return {name: pictures for name, pictures in parts.items() if pictures is not None}


def measure_real(reader: FactorReader, split: Split) -> FactorShares:
    """Count how often a reader is right about the real held-out and compositional pictures, none of which it knows."""
    sets = [known_factors(pictures) for pictures in (split.heldout, split.compositional) if pictures is not None]
    pixels = torch.cat([pictures.pictures(range(len(pictures))) for pictures in sets])
    return count_right(reader, pixels, torch.cat([factor_labels(pictures) for pictures in sets]))


def measure_reconstructed(pipeline: Pipeline, reader: FactorReader, pictures: PictureSet) -> FactorShares:
    """Count how often a reader is right about real pictures after encoding and decoding: a bound for generated ones.

    Args:
        pipeline: the model, whose autoencoder reconstructs the pictures.
        reader: reads factors from pictures; not trained on these.
        pictures: real pictures that know their factors.
    """

    def reconstructed(indices: Sequence[int]) -> Tensor:
        x = to_unit(pictures.pictures(indices)).to(pipeline.device)
        return to_bytes(reconstruct(pipeline.vae, x)).cpu()

    size = BatchSize.for_pictures(None, pictures.resolution)
    pixels = torch.cat([*size.batches(len(pictures), reconstructed)])
    return count_right(reader, pixels, factor_labels(known_factors(pictures)))


def _summary(columns: Mapping[str, FactorShares], psnr: float, path: Path) -> Summary:
    figures = {"psnr": psnr, **{name: shares.figures for name, shares in columns.items()}}
    text = (
        f"PSNR of the autoencoder on held-out faces: {psnr:.2f} dB\n\n"
        f"how often a face shows what its prompt says, read by an independent classifier:\n{fidelity_table(columns)}"
    )
    return Summary(figures, text, path)


def autoencoder_psnr(pipeline: Pipeline, pictures: PictureSet) -> float:
    """Compute the mean PSNR in dB of pictures after encoding and decoding by the pipeline's autoencoder."""

    def decibels(indices: Sequence[int]) -> Tensor:
        x = to_unit(pictures.pictures(indices)).to(pipeline.device)
        return psnr_of(x, reconstruct(pipeline.vae, x))

    size = BatchSize.for_pictures(None, pictures.resolution)
    return float(torch.cat([*size.batches(len(pictures), decibels)]).mean())
