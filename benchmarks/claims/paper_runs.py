"""The small trainings with which claims of papers are tested: one config of each kind, and what is changed in it."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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


_LEARNED = "variance=learned_range"
_BOUND = (_LEARNED, "loss=vlb", "schedule.num_train_timesteps=250", "train.steps=200")
VARIANTS = {
    "eps": Variant("digits"),
    "x0": Variant("digits", ("prediction_type=x0",)),
    "linear": Variant("digits", ("schedule.kind=linear",)),
    "learned": Variant("digits", (_LEARNED,)),
    "unconditional": Variant("digits", ("condition={kind: none}",)),
    "bound": Variant("digits", _BOUND),
    "bound-importance": Variant("digits", (*_BOUND, "timestep_sampling.density=loss_second_moment")),
    "classifier": Variant("digits_classifier"),
    "diffae": Variant("digits_diffae"),
    "pdae": Variant("digits_pdae", ("base={unconditional}",), ("unconditional",)),
}


@dataclass(frozen=True)
class Runs:
    """The trained runs in a folder, NAME-SEED each; what is there is not trained again.

    Args:
        folder: the folder of all runs.
        seeds: seeds of the trainings.
        overrides: KEY=VALUE for all trainings, such as `train.steps=2`; for tests.
    """

    folder: Path
    seeds: Sequence[int] = (0, 1, 2)
    overrides: tuple[str, ...] = ()

    def path(self, name: str, seed: int) -> Path:
        """Return the run's folder, which may not exist yet."""
        return self.folder / f"{name}-{seed}"

    def model(self, name: str, seed: int) -> Path:
        """Return the folder of the saved model of a variant and seed; it and what it needs are trained if missing.

        A training that was cut off is begun anew.
        """
        run, variant = self.path(name, seed), VARIANTS[name]
        if not (run / "model").is_dir():
            needed = {need: self.model(need, seed).parent for need in variant.needs}
            changes = [override.format_map(needed) if needed else override for override in variant.overrides]
            shutil.rmtree(run, ignore_errors=True)
            start = time.process_time()
            train(CONFIGS / f"{variant.config}.yaml", [f"run={run}", f"seed={seed}", *changes, *self.overrides])
            (run / SECONDS).write_text(json.dumps(time.process_time() - start), encoding="utf-8")
        return run / "model"

    def seconds(self, name: str, seed: int) -> float:
        """Return the processor time of a training, in seconds: opening, steps, and evaluation at its end."""
        return json.loads((self.path(name, seed) / SECONDS).read_text(encoding="utf-8"))
