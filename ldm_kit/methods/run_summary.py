"""What a finished run says of itself: its metrics in words, and its training curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ldm_kit.config import UserError
from ldm_kit.viz.curves import curves, logged_keys


def list_metrics(metrics: Mapping[str, float]) -> str:
    """Return metrics by name, in words that say of which pictures they are."""
    words = {
        name.replace("heldout_", "held-out ").replace("train_", "training "): value for name, value in metrics.items()
    }
    return ", ".join(f"{name} {value:.4g}" for name, value in words.items()) or "nothing held out"


def plot_curves(run: Path, keys: Sequence[str]) -> str:
    """Plot metrics of a run over its steps to pictures/curves.png; the model is saved already, so no failure ends it.

    Args:
        run: the folder of the run, with metrics.jsonl.
        keys: names of the metrics; those that were never logged are left out.

    Returns:
        A sentence on where the pictures are, or why there are no curves.
    """
    log, pictures = run / "metrics.jsonl", run / "pictures"
    try:
        logged = logged_keys(log)
        curves(log, pictures / "curves.png", [key for key in keys if key in logged] or None)
    except (UserError, OSError) as error:
        return f"no curves: {error}"
    return f"pictures in {pictures}"
