"""Recipes whose time to quality is measured: rows of the tables, and the files that keep their figures."""

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
    """Overrides of the demo's config; with a `peer_lr`, trained by the peers' script at that learning rate.

    `first_stage` trains an autoencoder of the recipe's own, under overrides of the demo's.
    """

    overrides: tuple[str, ...] = ()
    peer_lr: float | None = None
    first_stage: tuple[str, ...] | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """All of the recipe in words."""
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
    """One training."""

    recipe: Recipe
    minutes: float
    seed: int

    def path(self, folder: Path) -> Path:
        """Return the file in a folder that keeps the figures."""
        return folder / f"{file_name(self.recipe.words)}-{self.minutes:g}min-{self.seed}.json"


@dataclass(frozen=True)
class Setting:
    """What all trainings of a table share."""

    autoencoder: Path
    prompts: int

    @property
    def folder(self) -> Path:
        """Folder of figures for this demo config, this autoencoder and so many prompts."""
        digest = hashlib.sha256(f"{self.prompts} {_training_keys(kit.LDM, steps=False)}".encode())
        for path in sorted(self.autoencoder.glob("*.safetensors")):
            digest.update(path.read_bytes())
        return FOLDER / digest.hexdigest()[:12]

    def first_stage(self, recipe: Recipe) -> Path:
        """Return the autoencoder that a recipe trains on: that of the table, or one of the recipe's own."""
        if recipe.first_stage is None:
            return self.autoencoder
        digest = hashlib.sha256(_training_keys(kit.AE, steps=True).encode()).hexdigest()[:12]
        return FOLDER / "first" / f"{file_name(recipe.first_stage)}-{digest}" / "model"

    def figures(self, job: Job) -> Figures:
        """Load the figures of a job."""
        return json.loads(job.path(self.folder).read_text(encoding="utf-8"))


def _training_keys(config: Path, *, steps: bool) -> str:
    """Return the keys of a config that decide what is trained; its length only if `steps`."""
    tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    if not steps:
        tree["train"].pop("steps", None)
    return json.dumps({key: value for key, value in tree.items() if key not in ("run", "log", "sample")})


def file_name(words: Sequence[str]) -> str:
    """Join words into a file's name."""
    return "-".join("".join(c if c.isalnum() else "_" for c in word) for word in words)


def recipe_jobs(minutes: float, seeds: int) -> dict[str, list[Job]]:
    """Return jobs of ours for a twentieth, a tenth and a fifth of the peers' time, once on a wide U-Net, and theirs."""
    cases = [("ours", OURS, 0.05), ("ours", OURS, 0.1), ("ours", OURS, 0.2), (f"ours, {WIDE_NAME}", OURS_WIDE, 0.2)]
    cases += [(name, recipe, 1.0) for name, recipe in PEERS.items()]
    return {f"{name}, {share * minutes:g} min": _jobs(recipe, share * minutes, seeds) for name, recipe, share in cases}


def width_jobs(minutes: float, seeds: int) -> dict[str, list[Job]]:
    """Return jobs of ours on U-Nets of several widths, for as long as the peers."""
    return {name: _jobs(recipe, minutes, seeds) for name, recipe in WIDTHS.items()}


def choice_jobs(minutes: float, seeds: int) -> dict[str, list[Job]]:
    """Return jobs of ours with one thing changed, for a fifth of the peers' time."""
    return {name: _jobs(recipe, minutes * 0.2, seeds) for name, recipe in CHOICES.items()}


def _jobs(recipe: Recipe, minutes: float, seeds: int) -> list[Job]:
    return [Job(recipe, minutes, seed) for seed in range(seeds)]
