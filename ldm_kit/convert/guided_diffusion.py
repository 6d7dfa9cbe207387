"""Checkpoints of openai/guided-diffusion into folders of ours.

What the files that openai/guided-diffusion published want to be told, as its README has it:

    64x64_diffusion.pt     --kind unet --image_size 64 --schedule cosine --new_attention_order
    128x128_diffusion.pt   --kind unet --image_size 128 --heads 4
    256x256_diffusion.pt   --kind unet --image_size 256, and so its unconditional twin and lsun_*.pt
    512x512_diffusion.pt   --kind unet --image_size 512
    64x64_classifier.pt    --kind classifier --image_size 64 --schedule cosine
    NxN_classifier.pt      --kind classifier --image_size N
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from conditioning.base import Conditioner
from conditioning.labels import ClassConditioner, ClassEmbedder
from conditioning.none import NoCondition
from ldm_kit.config import UserError
from ldm_kit.convert import guided_diffusion_weights
from ldm_kit.convert.checkpoint_files import names_in, read_weights, refuse_used
from ldm_kit.convert.guided_diffusion_layout import Heads
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.nets.half_unet import HalfUNet
from ldm_kit.training.checkpoint import write


@dataclass(frozen=True)
class Origin:
    """What a guided-diffusion checkpoint does not say of itself."""

    kind: Literal["unet", "classifier"]
    image_size: int
    schedule: Literal["linear", "cosine"] = "linear"
    heads: Heads = field(default_factory=Heads)
    classes: Path | None = None  # a text file, one name a line in the order of the labels; None: "0", "1" and so on

    @property
    def noise(self) -> ScheduleConfig:
        """The 1000 times of its training."""
        return ScheduleConfig(kind=self.schedule)


def convert_guided_diffusion(checkpoint: Path, out: Path, origin: Origin) -> str:
    """Write the folder `out`, for `Pipeline.load` or `NoisyClassifier.load`; says in a sentence what it is.

    Raises:
        UserError: the file cannot be read or is no such checkpoint, what `origin` says does not fit it, or `out` is in
            use.
    """
    refuse_used(out)
    state = read_weights(checkpoint)
    try:
        model = _pipeline(state, origin) if origin.kind == "unet" else _classifier(state, origin)
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, model.save)
    return _told(model, out)


def _pipeline(state: dict[str, Tensor], origin: Origin) -> Pipeline:
    weights, settings = guided_diffusion_weights.unet_from(state, image_size=origin.image_size, heads=origin.heads)
    unet = guided_diffusion_weights.unet_of(settings)
    unet.load_state_dict(weights)
    conditioner = _conditioner(guided_diffusion_weights.classes_from(state), origin.classes)
    variance = "learned_range" if settings["out_channels"] > settings["in_channels"] else "small"
    return Pipeline(None, unet, conditioner, origin.noise, "eps", variance=variance)


def _conditioner(table: Tensor | None, names: Path | None) -> Conditioner:
    if table is None:
        if names is not None:
            raise UserError("this network is unconditional, so that it has no use for --classes")
        return NoCondition()
    classes = _classes(names, [str(k) for k in range(len(table))])
    embedder = ClassEmbedder(classes, table.shape[1], form="vector", null=False)
    embedder.load_state_dict({"embedding.weight": table})
    return ClassConditioner(embedder)


def _classifier(state: dict[str, Tensor], origin: Origin) -> NoisyClassifier:
    weights, settings = guided_diffusion_weights.classifier_from(
        state, image_size=origin.image_size, heads=origin.heads
    )
    classes = _classes(origin.classes, settings["classes"])
    net = HalfUNet(**{**settings, "classes": classes})
    net.load_state_dict(weights)
    return NoisyClassifier(net, tuple(classes), origin.noise, None)


def _classes(names: Path | None, numbers: Sequence[str]) -> list[str]:
    """The names in a file, one a line, or else the numbers; raises UserError unless there is one for each."""
    return list(numbers) if names is None else names_in(names, len(numbers), "class name", "classes")


def _told(model: Pipeline | NoisyClassifier, out: Path) -> str:
    net: nn.Module = model.unet if isinstance(model, Pipeline) else model.net  # pyright: ignore[reportAssignmentType]
    size = f"{model.latent_shape[1]} px pictures, {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M weights"
    if isinstance(model, NoisyClassifier):
        return f"{out}: a noisy classifier of {size}, {len(model.classes)} classes"
    if isinstance(model.conditioner, ClassConditioner):
        classes = f"{len(model.conditioner.classes)} classes and no null class: draw with --guidance_scale 1"
        return f"{out}: a denoiser of {size}, {classes}"
    return f"{out}: an unconditional denoiser of {size}"
