"""Training recipes whose quality after a given time is measured: rows of the tables, and files of their results."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from benchmarks import kit

FOLDER = Path("runs/benchmarks/quality")
Figures = dict[str, float]
WIDE, WIDE_NAME = "unet.widths=[128,256]", "U-Net 128 and 256 wide"


@dataclass(frozen=True)
class Recipe:
    """A way of training the quick recipe's denoiser."""

    overrides: tuple[str, ...] = ()  # overrides of the quick recipe, KEY=VALUE
    peer_lr: float | None = None  # learning rate of diffusers' script, which trains it; None: ldm_kit trains it
    first_stage: tuple[str, ...] | None = None  # overrides of the autoencoder's config; None: the table's autoencoder

    @property
    def words(self) -> tuple[str, ...]:
        """All settings of the recipe as texts, from which file names are made."""
        trainer = f"peer {self.peer_lr}" if self.peer_lr else "ours"
        return (*self.overrides, *(f"first {word}" for word in self.first_stage or ()), trainer)


PEERS = {
    "peers' script, bf16": Recipe(peer_lr=1e-4),
    "peers' script, bf16, at ten times its learning rate": Recipe(peer_lr=1e-3),
    f"peers' script, bf16, {WIDE_NAME}": Recipe((WIDE,), peer_lr=1e-4),
}
OURS, OURS_WIDE = Recipe(), Recipe((WIDE,))
CHANGES = {
    "the recipe": Recipe(),
    "AdamW for all, lr 1e-3": Recipe(("optim.muon=null", "optim.lr=1e-3")),
    "Muon on whole weights": Recipe(("optim.muon.block=null",)),
    "Muon at 6e-3, AdamW at 3e-3": Recipe(("optim.muon.lr=6e-3", "optim.lr=3e-3")),
    "learning rate constant": Recipe(("optim.lr_schedule=constant",)),
    "captions by attention alone": Recipe(("condition.pool=false",)),
    "time added": Recipe(("unet.time=add",)),
    "uniform times": Recipe(("timestep_sampling.density=uniform",)),
    "eps, min-SNR 5, uniform times": Recipe(("prediction_type=eps", "min_snr=5", "timestep_sampling.density=uniform")),
    "flow": Recipe(("prediction_type=flow", "schedule.kind=flow")),
    "average over more (std 0.1)": Recipe(("ema.std=0.1",)),
    "equivariant latents (EQ-VAE)": Recipe(first_stage=("equivariance={}",)),
}
CHOICES = {name: replace(change, overrides=(WIDE, *change.overrides)) for name, change in CHANGES.items()}
WIDTHS = {
    "48 and 48 (in 16 groups)": Recipe(("unet.widths=[48,48]", "unet.norm_num_groups=16")),
    **{f"{a} and {b}": Recipe((f"unet.widths=[{a},{b}]",)) for a, b in ((64, 64), (64, 128), (128, 128), (128, 256))},
    "64 and 64, two blocks a level": Recipe(("unet.widths=[64,64]", "unet.layers_per_block=2")),
}


@dataclass(frozen=True)
class Job:
    """One training of a recipe."""

    recipe: Recipe
    minutes: float  # processor time of one core
    seed: int

    def path(self, folder: Path) -> Path:
        """Return the path in `folder` of the JSON file with the figures of the trained model."""
        return folder / f"{file_name(self.recipe.words)}-{self.minutes:g}min-{self.seed}.json"


@dataclass(frozen=True)
class Setting:
    """What all trainings of a table share."""

    autoencoder: Path  # folder of the saved autoencoder
    prompts: int  # most prompts of each kind on which a model is measured

    @property
    def folder(self) -> Path:
        """Folder of results; its name is a hash of the quick recipe, the autoencoder and the number of prompts."""
        digest = hashlib.sha256(f"{self.prompts} {_training_keys(kit.LDM, steps=False)}".encode())
        for path in sorted(self.autoencoder.glob("*.safetensors")):
            digest.update(path.read_bytes())
        return FOLDER / digest.hexdigest()[:12]

    def first_stage(self, recipe: Recipe) -> Path:
        """Return the folder of the autoencoder that a recipe trains on: the table's, or the recipe's own."""
        if recipe.first_stage is None:
            return self.autoencoder
        digest = hashlib.sha256(_training_keys(kit.AE, steps=True).encode()).hexdigest()[:12]
        return FOLDER / "first" / f"{file_name(recipe.first_stage)}-{digest}" / "model"

    def figures(self, job: Job) -> Figures:
        """Load the figures, by name, of a finished job."""
        return json.loads(job.path(self.folder).read_text(encoding="utf-8"))


def _training_keys(config: Path, *, steps: bool) -> str:
    """Return as JSON the parts of a YAML config that decide what is trained; train.steps is left out unless `steps`."""
    tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    if not steps:
        tree["train"].pop("steps", None)
    return json.dumps({key: value for key, value in tree.items() if key not in ("run", "log", "sample")})


def file_name(words: Sequence[str]) -> str:
    """Join words with dashes into a file's name; characters that are no letters or digits become underscores."""
    return "-".join("".join(c if c.isalnum() else "_" for c in word) for word in words)


def recipe_jobs(minutes: float, seeds: int) -> dict[str, list[Job]]:
    """Return trainings, by name of the row, of diffusers' script for `minutes`, and of ldm_kit for 1/20 to 1/5 of it.

    Each is made with seeds 0 to `seeds` - 1.
    """
    cases = [("ours", OURS, 0.05), ("ours", OURS, 0.1), ("ours", OURS, 0.2), (f"ours, {WIDE_NAME}", OURS_WIDE, 0.2)]
    cases += [(name, recipe, 1.0) for name, recipe in PEERS.items()]
    return {f"{name}, {share * minutes:g} min": _jobs(recipe, share * minutes, seeds) for name, recipe, share in cases}


def width_jobs(minutes: float, seeds: int) -> dict[str, list[Job]]:
    """Return trainings of U-Nets of several widths, by name of the row: `minutes` each, with seeds 0 to `seeds` - 1."""
    return {name: _jobs(recipe, minutes, seeds) for name, recipe in WIDTHS.items()}


def choice_jobs(minutes: float, seeds: int) -> dict[str, list[Job]]:
    """Return trainings with one setting changed, by name of the row: `minutes` / 5 each, seeds 0 to `seeds` - 1."""
    return {name: _jobs(recipe, minutes * 0.2, seeds) for name, recipe in CHOICES.items()}


def _jobs(recipe: Recipe, minutes: float, seeds: int) -> list[Job]:
    return [Job(recipe, minutes, seed) for seed in range(seeds)]
