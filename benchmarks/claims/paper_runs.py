"""The small trainings with which claims of papers are tested: one config of each kind, and what is changed in it."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.claims.paper_pooled import pooled_captions
from ldm_kit.data.images import Split
from ldm_kit.methods.train import train

CONFIGS = Path("configs/benchmarks/claims")
SECONDS = "seconds.json"


@dataclass(frozen=True)
class Variant:
    """A config, and what is changed in it.

    Overrides are KEY=VALUE; in a value, {NAME} is the run of the variant NAME with the same seed.
    """

    config: str  # name of the file in CONFIGS, without .yaml
    overrides: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # variants whose runs this one starts from
    context: Callable[[], AbstractContextManager[None]] = nullcontext  # in which it is trained and sampled
    data: Callable[[], Split] | None = None  # returns the pictures to train on; None: those of the config
    shared: bool = False  # whether it is trained once, with seed 0, for all seeds


_LEARNED = "variance=learned_range"
_BOUND = (_LEARNED, "loss=vlb", "schedule.num_train_timesteps=250", "train.steps=300")
HALF = 400  # steps of PDAE; DiffAE has twice as many
FACTORS = (2, 4, 8, 16)  # reduction factors of first stages
WIDTHS = {2: "[16,16]", 4: "[16,16,32]", 8: "[16,16,32,32]", 16: "[16,16,32,32,64]"}
CHANNELS = {2: 2, 4: 3, 8: 4, 16: 8}  # of latents
LATENT_STEPS = {2: 95, 4: 240, 8: 460, 16: 550}  # of diffusion, which take as long as those of the variant `pixels`
PIXEL_STEPS_LONG = 135  # which take as long as a first stage of f = 4 and the steps in its latents


def _stages(kind: str) -> dict[str, Variant]:
    """Return first stages "KIND-fF" of each reduction factor F, and the diffusion models "KIND-fF-latents"."""
    variants: dict[str, Variant] = {}
    for f in FACTORS:
        first, small = f"{kind}-f{f}", ("unet.widths=[32,64]", "unet.attention_levels=[false,true]")
        shape = (f"autoencoder.widths={WIDTHS[f]}", f"autoencoder.latent_channels={CHANNELS[f]}")
        variants[first] = Variant(f"shapes_{kind}", shape)
        changes = (f"autoencoder={{{first}}}", *small, f"train.steps={LATENT_STEPS[f]}")
        variants[f"{first}-latents"] = Variant("shapes", changes, (first,))
    return variants


VARIANTS = {
    "eps": Variant("digits"),
    "x0": Variant("digits", ("prediction_type=x0",)),
    "linear": Variant("digits", ("schedule.kind=linear",)),
    "learned": Variant("digits", (_LEARNED,)),
    "unconditional": Variant("digits", ("condition={kind: none}", "train.steps=250")),
    "bound": Variant("digits", _BOUND),
    "bound-importance": Variant("digits", (*_BOUND, "timestep_sampling.density=loss_second_moment")),
    "classifier": Variant("digits_classifier"),
    "diffae": Variant("digits_diffae"),
    "diffae-long": Variant("digits_diffae", (f"train.steps={2 * HALF}", "train.batch_size=16")),
    "pdae": Variant("digits_pdae", ("base={unconditional}", f"train.steps={HALF}"), ("unconditional",)),
    "cross-attention": Variant("shapes_text"),
    "pooled": Variant("shapes_text", context=pooled_captions),
    "pixels": Variant("shapes"),
    "pixels-long": Variant("shapes", (f"train.steps={PIXEL_STEPS_LONG}",)),
    **_stages("kl"),
    **_stages("vq"),
}


@dataclass(frozen=True)
class Runs:
    """The trained runs in a folder, NAME-SEED each; what is there is not trained again.

    Args:
        folder: the folder of all runs.
        seeds: seeds of the trainings.
        overrides: KEY=VALUE for all trainings, such as `train.steps=2`; for tests.
        variants: the trainings by name.
        configs: the folder of their configs.
    """

    folder: Path
    seeds: Sequence[int] = (0, 1, 2)
    overrides: tuple[str, ...] = ()
    variants: Mapping[str, Variant] = field(default_factory=lambda: VARIANTS)
    configs: Path = CONFIGS

    def path(self, name: str, seed: int) -> Path:
        """Return the run's folder, which may not exist yet."""
        return self.folder / f"{name}-{0 if self.variants[name].shared else seed}"

    def model(self, name: str, seed: int) -> Path:
        """Return the folder of the saved model of a variant and seed; it and what it needs are trained if missing.

        A training that was cut off is begun anew.
        """
        run, variant = self.path(name, seed), self.variants[name]
        if variant.shared:
            seed = 0
        if not (run / "model").is_dir():
            needed = {need: self.model(need, seed).parent for need in variant.needs}
            changes = [override.format_map(needed) if needed else override for override in variant.overrides]
            shutil.rmtree(run, ignore_errors=True)
            start = time.process_time()
            data = None if variant.data is None else variant.data()
            with variant.context():
                own = [f"run={run}", f"seed={seed}", *changes, *self.overrides]
                train(self.configs / f"{variant.config}.yaml", own, data=data)
            (run / SECONDS).write_text(json.dumps(time.process_time() - start), encoding="utf-8")
        return run / "model"

    def seconds(self, name: str, seed: int) -> float:
        """Return the processor time of a training, in seconds: opening, steps, and evaluation at its end."""
        return json.loads((self.path(name, seed) / SECONDS).read_text(encoding="utf-8"))
