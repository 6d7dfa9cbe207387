"""Conversion of checkpoints of openai/guided-diffusion to saved models.

The files that openai/guided-diffusion published need these options, according to the README there:

    64x64_diffusion.pt     --kind unet --image_size 64 --schedule cosine --new_attention_order
    128x128_diffusion.pt   --kind unet --image_size 128 --heads 4
    256x256_diffusion.pt   --kind unet --image_size 256; the unconditional 256 px model and lsun_*.pt need the same
    512x512_diffusion.pt   --kind unet --image_size 512
    64x64_classifier.pt    --kind classifier --image_size 64 --schedule cosine
    NxN_classifier.pt      --kind classifier --image_size N, for other N
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from conditioning.base import Conditioner
from conditioning.labels import ClassConditioner
from conditioning.none import NoCondition
from ldm_kit.config import UserError
from ldm_kit.convert import guided_diffusion_weights
from ldm_kit.convert.checkpoint_files import check_unused, read_names, read_weights
from ldm_kit.convert.guided_diffusion_layout import Heads
from ldm_kit.convert.options import GuidedDiffusionOptions
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.nets.half_unet import HalfUNet
from ldm_kit.training.checkpoint import write


def convert_guided_diffusion(checkpoint: Path, out: Path, options: GuidedDiffusionOptions) -> str:
    """Convert a checkpoint of openai/guided-diffusion to a saved model in the folder `out`; return a description of it.

    `Pipeline.load(out)` opens a denoiser, `NoisyClassifier.load(out)` a classifier.

    Raises:
        UserError: the file cannot be read, is not openai/guided-diffusion's, or does not fit the options; or the folder
            `out` exists and is not empty.
    """
    check_unused(out)
    state_dict = read_weights(checkpoint)
    try:
        model = _pipeline(state_dict, options) if options.kind == "unet" else _classifier(state_dict, options)
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, model.save)
    return f"{out}: {_describe(model)}"


def _heads(options: GuidedDiffusionOptions) -> Heads:
    return Heads(options.head_size, options.heads, options.new_attention_order)


def _noise(options: GuidedDiffusionOptions) -> ScheduleConfig:
    return ScheduleConfig(kind=options.schedule)


def _pipeline(state_dict: dict[str, Tensor], options: GuidedDiffusionOptions) -> Pipeline:
    weights, settings = guided_diffusion_weights.unet_from(
        state_dict, image_size=options.image_size, heads=_heads(options)
    )
    unet = guided_diffusion_weights.build_adm_unet(settings)
    unet.load_state_dict(weights)
    conditioner = _conditioner(guided_diffusion_weights.class_table(state_dict), options.classes)
    variance = "learned_range" if settings["out_channels"] > settings["in_channels"] else "small"
    return Pipeline(None, unet, conditioner, _noise(options), "eps", variance=variance)


def _conditioner(table: Tensor | None, names: Path | None) -> Conditioner:
    if table is None:
        if names is not None:
            raise UserError("this network is unconditional, so that it has no use for --classes")
        return NoCondition()
    return ClassConditioner.of_table(table, _class_names(names, [str(k) for k in range(len(table))]))


def _classifier(state_dict: dict[str, Tensor], options: GuidedDiffusionOptions) -> NoisyClassifier:
    weights, settings = guided_diffusion_weights.classifier_from(
        state_dict, image_size=options.image_size, heads=_heads(options)
    )
    classes = _class_names(options.classes, settings["classes"])
    net = HalfUNet(**{**settings, "classes": classes})
    net.load_state_dict(weights)
    return NoisyClassifier(net, tuple(classes), _noise(options), None)


def _class_names(names: Path | None, numbers: Sequence[str]) -> list[str]:
    """Return the class names in the file `names`, one a line; None: the class numbers `numbers` serve as names.

    Raises:
        UserError: the file cannot be read, or does not hold one name for each class.
    """
    return list(numbers) if names is None else read_names(names, len(numbers), "class name", "classes")


def _describe(model: Pipeline | NoisyClassifier) -> str:
    net: nn.Module = model.unet if isinstance(model, Pipeline) else model.net  # pyright: ignore[reportAssignmentType]
    size = f"{model.latent_shape[1]} px pictures, {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M weights"
    if isinstance(model, NoisyClassifier):
        return f"a noisy classifier of {size}, {len(model.classes)} classes"
    if isinstance(model.conditioner, ClassConditioner):
        classes = f"{len(model.conditioner.classes)} classes and no null class: sample with --guidance_scale 1"
        return f"a denoiser of {size}, {classes}"
    return f"an unconditional denoiser of {size}"
