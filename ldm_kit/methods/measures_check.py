"""Checks of a config's `log.measures` before pictures are encoded, and what `train.keep_best` can name by them."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from ldm_kit.config import UserError
from ldm_kit.data.factors import known_factors
from ldm_kit.data.images import Split
from ldm_kit.methods.measured import Judged, Measured
from ldm_kit.methods.measures import PREFIX, needs_features
from ldm_kit.methods.run_config import RunConfig
from ldm_kit.models.feature_nets import FLAG, LITE0, FeatureNet, load_feature_net, unseen
from ldm_kit.models.measures import CLIP, INCEPTION, PICTURES, PROMPTS, RANDOM
from ldm_kit.models.set_measures import SETS
from ldm_kit.training.log import MeasuresConfig

KEY = "log.measures"
BETTER: dict[str, str] = {  # by name of a measure that a run can take: which values are better
    **{name: measure.better for name, measure in SETS.items()},
    **dict.fromkeys((INCEPTION, CLIP, *PROMPTS), "higher"),
    **{name: measure.better for name, measure in (PICTURES | RANDOM).items() if measure.compare is not None},
}
_OWN: dict[str, str] = {  # likewise of the other figures that evaluations measure without being asked
    "perceptual": "lower",
    **dict.fromkeys(("accuracy", "accuracy5", *(f"accuracy_q{q}" for q in range(1, 5))), "higher"),
    **dict.fromkeys(("codebook_usage", "codebook_perplexity", "codebook_perplexity_share"), "higher"),
    **dict.fromkeys(("loss", "mse_inferred", "mse_random"), "lower"),
}
_ALWAYS = ("psnr", "ssim", "perceptual")  # every evaluation of an autoencoder measures these
C = TypeVar("C", bound=RunConfig)


def check_measures(config: RunConfig, method: type[Measured], data: Split | None = None) -> None:
    """Check that a run can take the measures that its config names.

    Args:
        config: the run's config.
        method: the class of its training method.
        data: the run's pictures; None: not loaded yet, so that only the config is checked.

    Raises:
        UserError: a measure is unknown, or cannot be taken of this run or these pictures.
    """
    settings = config.log.measures
    if not settings.names:
        return
    for name in settings.names:
        if name not in (*_ALWAYS, *BETTER):
            raise UserError(f"{KEY}.names has {name!r:.60}; expected some of {', '.join(BETTER)}")
    channels = getattr(config.data, "channels", 3)
    if needs_features(settings.names) and getattr(config.data, "range", None) and channels not in (1, 3):
        raise UserError(f"{KEY}.names: {unseen(channels)}; expected measures that need no features")
    judged = method.judged(config)
    for name in settings.names:
        if reason := _refusal(name, settings, judged):
            raise UserError(f"{KEY}.names has {name}, but {reason}")
    if data is not None:
        _check_pictures(config, data)


def _refusal(name: str, settings: MeasuresConfig, judged: Judged) -> str:
    """Return why a measure cannot be taken of a run's pictures; "" if it can."""
    features = settings.features or LITE0
    if name == INCEPTION and not features.startswith("inception"):
        return f"it is defined for {KEY}.features inception alone"
    if name == CLIP and not features.startswith("open_clip:"):
        return f"it needs a network that reads captions; expected {KEY}.features open_clip:ARCHITECTURE/WEIGHTS"
    if name in (CLIP, *PROMPTS) and not judged.captions:
        return "it is for models that are sampled with captions"
    if judged.semantic and name not in PICTURES | RANDOM:
        return (
            "a semantic model samples no pictures to compare with held-out ones without a prior; expected it in the "
            "config of its prior"
        )
    if name in RANDOM and not judged.semantic:
        return "it is for semantic models (DiffAE and PDAE)"
    if name in PICTURES and not judged.reconstructions:
        return "it is for reconstructions, which only an autoencoder makes"
    if name == "perceptual" and judged.semantic:
        return "of semantic models only ldm-kit evaluate measures it"
    if name in _ALWAYS and not judged.semantic:
        return f"every evaluation of an autoencoder has {name} already; expected others"
    return ""


def _check_pictures(config: RunConfig, data: Split) -> None:
    """Check that enough pictures are held out; for prompt fidelity, also that their factors are known."""
    settings, total = config.log.measures, len(data.heldout)
    count = settings.count_of(total)
    if not total:
        raise UserError(f"{KEY} compares with held-out pictures, and nothing is held out")
    if count > total:
        raise UserError(f"{KEY}.count is {count}, but {total} pictures are held out")
    for name in settings.names:
        if name in SETS and min(count, config.log.max_heldout) < SETS[name].least:
            raise UserError(f"{KEY}.names has {name}, which needs {SETS[name].least} held-out pictures; got {count}")
        if name == CLIP and not any(record.text for record in data.heldout.records):
            raise UserError(f"{KEY}.names has {name}, but the held-out pictures have no captions")
        if name in PROMPTS:
            known_factors(data.heldout)


def open_feature_net(settings: MeasuresConfig, device: torch.device) -> FeatureNet | None:
    """Load the feature network of a run's measures; None: they need none. Random numbers stay as they are.

    Raises:
        UserError: the network is unknown, or its weights or a package are missing.
    """
    if not needs_features(settings.names):
        return None
    try:
        with torch.random.fork_rng(devices=[]):  # a network is built with random weights, before it gets its own
            return load_feature_net(settings.features or LITE0, settings.feature_size, device)
    except UserError as error:
        text = str(error).replace("--feature_size", f"{KEY}.feature_size").replace(FLAG, f"{KEY}.features")
        raise UserError(text) from None


def figures_with(names: Sequence[str] | None, settings: MeasuresConfig) -> list[str] | None:
    """Return `names`, those of a method's own metrics (None: not known), and the names of the run's measures."""
    return None if names is None else [*names, *(f"{PREFIX}{name}" for name in settings.names)]


def better(metric: str) -> str | None:
    """Return which values of a figure, such as heldout_psnr or train_ssim, are better: "lower" or "higher".

    None: it is not known, as of a figure that an installed method measures.
    """
    name = metric.removeprefix(PREFIX).removeprefix("train_")
    return None if name == metric else {**_OWN, **BETTER}.get(name)


def with_direction(config: C) -> C:
    """Return a config whose `train.keep_best` says that higher values are better, if it names such a figure.

    Raises:
        UserError: it says that higher values are better of a figure of which lower ones are.
    """
    spec = config.train.keep_best
    metric = "" if spec is None else spec.removeprefix("max:")
    direction = better(metric)
    if direction == "higher":
        return config.model_copy(update={"train": config.train.model_copy(update={"keep_best": f"max:{metric}"})})
    if direction == "lower" and spec != metric:
        name = metric.removeprefix(PREFIX)
        raise UserError(f"train.keep_best is {spec!r}, but lower values of {name} are better; expected {metric}")
    return config


def comparable(metrics: dict[str, float] | None, config: Any) -> dict[str, float] | None:
    """Return an evaluation's metrics if they can be compared with the best so far, else None.

    They cannot be if `train.keep_best` names a measure that was not due at this evaluation.
    """
    spec, names = config.train.keep_best, figures_with([], config.log.measures) or []
    if metrics is None or spec is None:
        return metrics
    metric = spec.removeprefix("max:")
    return None if metric in names and metric not in metrics else metrics
