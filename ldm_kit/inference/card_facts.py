"""What a model card states of a run: networks, data, training, figures, all read from the run's folder."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ldm_kit.config import UserError
from ldm_kit.data.digits import DigitsConfig
from ldm_kit.data.faces.dataset import ATTRIBUTION as FACES
from ldm_kit.data.faces.dataset import FacesConfig
from ldm_kit.data.hub import HubConfig
from ldm_kit.data.openmoji.dataset import ATTRIBUTION as OPENMOJI
from ldm_kit.data.openmoji.dataset import OpenMojiConfig
from ldm_kit.data.shapes.dataset import ShapesConfig
from ldm_kit.data.sources import MixConfig
from ldm_kit.inference.evaluate_report import format_number
from ldm_kit.methods import read_run
from ldm_kit.methods.run_config import RunConfig, method_name
from ldm_kit.models.folder import INDEX
from ldm_kit.training.log import FILE, last_evaluation

KINDS = {
    "latent": "a latent diffusion model",
    "autoencoder": "an autoencoder, the first stage of latent diffusion",
    "classifier": "a classifier of noisy pictures, for classifier guidance",
    "diffae": "a diffusion autoencoder (DiffAE)",
    "pdae": "a diffusion autoencoder on a frozen model (PDAE)",
    "prior": "a prior of semantic codes",
    "consistency": "a consistency model",
}


@dataclass(frozen=True)
class Source:
    """A data set, as a model card names it."""

    what: str
    licence: str | None  # the Hub's name of the licence; None: not known to the kit
    attribution: str = ""


def source_of(data: Any) -> Source:
    """Return what a model card says of the data section of a run's config; a user's own pictures have no licence."""
    match data:
        case FacesConfig():
            return Source("the built-in faces", "cc-by-4.0", FACES)
        case OpenMojiConfig():
            return Source("OpenMoji's drawings", "cc-by-sa-4.0", OPENMOJI)
        case ShapesConfig():
            return Source("the built-in shapes, which the kit renders", "apache-2.0")
        case DigitsConfig():
            return Source(f"hand-written digits ({data.name})", None)
        case HubConfig():
            return Source(f"the data set `{data.name}` on the Hugging Face Hub, at commit {data.revision[:12]}", None)
        case MixConfig():
            return _mixed([*dict.fromkeys(source_of(one.data) for one in data.parts)])
        case _:
            return Source(f"pictures of the author's own (data source `{data.source}`)", None)


def _mixed(sources: list[Source]) -> Source:
    """Return several data sets as one, of a known licence only if all have that one; all attributions stay."""
    licences = {source.licence for source in sources}
    attributions = " ".join(source.attribution for source in sources if source.attribution)
    return Source(
        " and ".join(source.what for source in sources), licences.pop() if len(licences) == 1 else None, attributions
    )


@dataclass(frozen=True)
class Facts:
    """A finished run, as its folder describes it."""

    run: Path
    model: Path  # the finished model within it
    config: RunConfig
    method: str
    diffusers_class: str | None  # class of plain diffusers that opens the model; None: there is none
    parameters: dict[str, int]  # number of parameters by component
    metrics: dict[str, float]  # held-out values of the last evaluation in training
    evaluations: tuple[Mapping[str, Any], ...]  # results of `ldm-kit evaluate` in the run's folder
    pictures: Path | None  # the last grid of samples or reconstructions

    @property
    def source(self) -> Source:
        """The data set."""
        return source_of(self.config.data)


def read_facts(path: Path) -> Facts:
    """Read what a finished run's folder says of it.

    Args:
        path: the run's folder, or the model/ within it.

    Raises:
        UserError: it is no run, or the run has no finished model.
    """
    run = path.parent if path.name == "model" and (path.parent / "config.yaml").is_file() else path
    if not (run / "config.yaml").is_file():
        raise UserError(f"{path} is no run: it has no config.yaml, from which a model card says data and training")
    if not (run / "model").is_dir():
        raise UserError(f"the run in {run} has no finished model yet; `ldm-kit export {run}` makes one of a checkpoint")
    config = read_run(run / "config.yaml")
    return Facts(
        run=run,
        model=run / "model",
        config=config,
        method=method_name(config),
        diffusers_class=_diffusers_class(run / "model"),
        parameters=_parameters(run / "model"),
        metrics=last_evaluation(run / FILE),
        evaluations=tuple(_evaluations(run)),
        pictures=_last_grid(run / "pictures"),
    )


def figure_rows(evaluation: Mapping[str, Any]) -> list[str]:
    """Return rows of a Markdown table of an evaluation's values with their intervals."""
    rows: list[str] = []
    for name, figure in evaluation["measures"].items():
        interval = figure.get("interval")
        within = "-" if interval is None else f"[{', '.join(map(format_number, interval))}]"
        rows.append(f"| {figure.get('title', name)} | {format_number(figure.get('value'))} | {within} |")
    return rows


def _diffusers_class(model: Path) -> str | None:
    for name in (INDEX, "config.json"):
        if (model / name).is_file():
            kind = json.loads((model / name).read_text(encoding="utf-8")).get("_class_name", "")
            return kind if isinstance(kind, str) and kind and not kind.startswith("ldm_kit.") else None
    return None


def _parameters(model: Path) -> dict[str, int]:
    """Return the number of parameters of each component, from the headers of its safetensors files."""
    counts: dict[str, int] = {}
    for file in sorted(model.rglob("*.safetensors")):
        name = file.parent.relative_to(model).as_posix()
        with safe_open(file, "pt") as tensors:
            count = sum(prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
        counts[name] = counts.get(name, 0) + count
    return counts


def _evaluations(run: Path) -> Iterator[Mapping[str, Any]]:
    for path in sorted(run.glob("evaluation*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and isinstance(content.get("measures"), dict):
            yield content


def _last_grid(folder: Path) -> Path | None:
    grids = sorted([*folder.glob("samples-*.png"), *folder.glob("reconstruction-*.png")])
    return grids[-1] if grids else None
