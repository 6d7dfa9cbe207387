"""Summary of a finished run: its metrics as text, and the plot of its training curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ldm_kit.config import UserError
from ldm_kit.viz.curves import curves, logged_keys


def list_metrics(metrics: Mapping[str, float]) -> str:
    """Return metrics, given by name, as text such as "held-out psnr 24.1", with heldout_ and train_ spelled out."""
    words = {
        name.replace("heldout_", "held-out ").replace("train_", "training "): value for name, value in metrics.items()
    }
    return ", ".join(f"{name} {value:.4g}" for name, value in words.items()) or "nothing held out"


def pictures_as(kind: str, shape: Sequence[int], autoencoder: str | None) -> str:
    """Return a phrase on training pictures and the form in which the run trains on them, for the log's opening text.

    Args:
        kind: number and kind of the pictures, such as "24 training pictures".
        shape: shape (channels, height, width) of their latents or, without an autoencoder, of the pictures.
        autoencoder: the config's `autoencoder`; None: the run trains on pixels.
    """
    form = "pixels" if autoencoder is None else "latents"
    return f"{kind} as {form} {tuple(shape)}"


def plot_curves(run: Path, keys: Sequence[str]) -> str:
    """Plot metrics of a finished run over its steps, to pictures/curves.png; a failure to plot is not raised.

    Args:
        run: the run's folder, with its metrics.jsonl.
        keys: names of the metrics; those that were never logged are left out. If none of them was logged, all metrics
            in metrics.jsonl are plotted.

    Returns:
        A sentence for the log: where the pictures are, or why there are no curves.
    """
    log, pictures = run / "metrics.jsonl", run / "pictures"
    try:
        logged = logged_keys(log)
        curves(log, pictures / "curves.png", [key for key in keys if key in logged] or None)
    except (UserError, OSError) as error:
        return f"no curves: {error}"
    return f"pictures in {pictures}"
