"""Open the trained model that becomes a consistency model, or build a new one, with the data to train it on."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from conditioning.base import Conditioner
from conditioning.factory import kind_of
from ldm_kit.config import UserError
from ldm_kit.data.images import Split, digest
from ldm_kit.data.latents import LatentBatches, weights_digest
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.methods.base import TrainingData
from ldm_kit.methods.condition_values import several_captions, split_conditions
from ldm_kit.methods.conditions import Conditions
from ldm_kit.methods.consistency_config import ConsistencyRun
from ldm_kit.methods.consistency_students import CodedUNet, ConditionedStudent, SemanticStudent
from ldm_kit.methods.inputs import FirstStage
from ldm_kit.methods.latent import Latent
from ldm_kit.methods.latent_network import LatentDiffusion
from ldm_kit.methods.latent_start import copy_weights
from ldm_kit.methods.semantic import pictured_latents
from ldm_kit.methods.start import trainable
from ldm_kit.models.compatibility import check_one_condition
from ldm_kit.models.consistency import ConsistencyDecoder
from ldm_kit.models.consistency_folder import check_trainable
from ldm_kit.models.decoders import CodeDecoder
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.saved_sampling import GUIDANCE, RECONSTRUCTION, SAMPLING, SavedSampling
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.guidance_embedding import check_no_guidance_scale, takes_guidance_scale, zero_guidance_scale

GUIDANCE_WIDTH = 256  # sinusoids that embed the guidance scale (Luo et al. 2023)


def new_student(config: ConsistencyRun, data: Split, device: torch.device) -> ConditionedStudent:
    """Build a student with random weights, for consistency training without a teacher (`mode: train`).

    The batches of `data` are made too, by the autoencoder on `device`: the student trains on them.
    """
    latent = Latent.build(config.latent_run(), data, device)
    pipeline = replace(latent.pipeline, saved=_saved(config, config.condition_dropout))
    module = LatentDiffusion(pipeline.unet, pipeline.conditioner)
    return ConditionedStudent(
        module=module,
        ema_modules=latent.ema_modules,
        schedule_config=config.schedule,
        target=config.prediction_type,
        vae=latent.vae,
        shape=latent.latent_shape,
        data=TrainingData(data, latent.batches, latent.heldout),
        dependencies=latent.dependencies,
        dropout=config.condition_dropout,
        pipeline=pipeline,
        conditions=latent.conditions,
        prompts=latent.prompts,
    )


def conditioned_student(config: ConsistencyRun, base: Pipeline, folder: Path, data: Split) -> ConditionedStudent:
    """Return the student (network and data) that starts from `base`, a trained pixel or latent diffusion model.

    Args:
        config: the run's config.
        base: the trained model, whose networks the student takes.
        folder: the trained model's folder, for messages and the cache of latents.
        data: the run's pictures.

    Raises:
        UserError: the pictures do not fit the model, or it cannot be the teacher that the config needs.
        ConditioningError: pictures lack the captions or labels that the model needs, or have an unknown class.
    """
    check_trainable(base.unet, f"base {folder}")
    sha256 = _digest(base.schedule_config, base.target, {"unet": base.unet, **base.conditioner.trainable}, base.vae)
    shape = base.latent_shape
    _check_guidance(config, base, folder)
    unet = _without_variance(base.unet, shape[0])
    if isinstance(config.guidance, tuple):
        unet = _with_guidance_scale(unet, folder)
    check_one_condition(base.picture, base.conditioner, folder, sizes=base.takes_sizes)
    conditions = _conditions(base.conditioner, data)
    prompts = [*config.sample.prompts] or conditions.examples(config.log.pictures)
    base.conditioner.prepare(prompts)
    latents = _first_stage(config, base.vae, folder, base.device).latents
    train = latents(data.train, "train")
    _check_shape(tuple(train.shape), shape, folder)
    inputs, heldout_inputs = conditions.prepare()
    heldout = None
    if heldout_inputs is not None and len(data.heldout):
        heldout = LatentBatches(latents(data.heldout, "heldout"), heldout_inputs, [], config.seed)
    dropout = _dropout(config, base, folder)
    pipeline = replace(base, unet=unet, variance="small", saved=_saved(config, dropout))
    trainable(unet, *base.conditioner.trainable.values())
    return ConditionedStudent(
        module=LatentDiffusion(unet, base.conditioner),
        ema_modules={"unet": unet, **base.conditioner.trainable},
        schedule_config=base.schedule_config,
        target=base.target,
        vae=base.vae,
        shape=tuple(train.shape),
        data=TrainingData(data, conditions.batches(train, inputs, config.seed), heldout),
        dependencies={"base": sha256, **conditions.dependencies},
        dropout=dropout,
        teacher_takes_scale=base.takes_scale,
        pipeline=pipeline,
        conditions=conditions,
        prompts=prompts,
    )


def semantic_student(config: ConsistencyRun, base: SemanticModel, folder: Path, data: Split) -> SemanticStudent:
    """Return the student (network and data) that starts from `base`, a trained DiffAE in `folder`.

    Raises:
        UserError: the model is a PDAE, the pictures do not fit it, or the config asks for guidance or sets
            `condition_dropout` or a sampling option other than `steps`.
    """
    decoder = base.decoder
    if not isinstance(decoder, CodeDecoder):
        raise UserError(f"{folder} is a PDAE, which decodes by a frozen model; expected a DiffAE or a diffusion model")
    if config.guidance != 1:
        raise UserError(f"guidance needs a null condition, and the semantic model in {folder} has none; leave it out")
    if (idle := config.idle_for_codes) is not None:
        raise UserError(f"{idle} has no effect on the semantic model in {folder}, which decodes codes; leave it out")
    networks: dict[str, nn.Module] = {"unet": decoder.unet, "encoder": base.encoder}
    sha256 = _digest(decoder.schedule_config, decoder.target, networks, decoder.vae)
    training, shape = pictured_latents(config, _first_stage(config, decoder.vae, folder, base.device), data)
    _check_shape(shape, decoder.shape, folder)
    steps = {"decode_steps": config.sample.steps}
    few = ConsistencyDecoder(decoder.unet, decoder.vae, decoder.schedule_config, decoder.target)
    saved = base.saved.joined(SavedSampling({RECONSTRUCTION: steps}))
    trainable(decoder.unet)
    return SemanticStudent(
        module=CodedUNet(decoder.unet),
        ema_modules={"unet": decoder.unet},
        schedule_config=decoder.schedule_config,
        target=decoder.target,
        vae=decoder.vae,
        shape=shape,
        data=training,
        dependencies={"base": sha256},
        model=replace(base, decoder=few, saved=saved),
        steps=config.sample.steps,
    )


def _dropout(config: ConsistencyRun, base: Pipeline, folder: Path) -> float:
    """Return the share of samples to train on the null condition; `base` is the trained model, in `folder`.

    It is 0 in distillation from a teacher whose null condition was never trained, which the student could only copy.
    Tuning takes its targets from the data, so that it can train a null condition that `base` lacks.

    Raises:
        UserError: the config asks for another share than the default although the teacher's null was never trained.
    """
    if config.mode != "distill" or base.saved.trains_null:
        return config.condition_dropout
    if config.condition_dropout not in (0, type(config).model_fields["condition_dropout"].default):
        raise UserError(
            f"condition_dropout is {config.condition_dropout:g}, but the null condition of the teacher in {folder} was "
            "never trained (condition_dropout 0); expected 0"
        )
    return 0.0


def _saved(config: ConsistencyRun, dropout: float) -> SavedSampling:
    saved = SavedSampling.of(SAMPLING, config.sample, dropout)
    if isinstance(config.guidance, tuple):
        scales = config.guidance_range
        return saved.joined(SavedSampling({GUIDANCE: {"min_scale": scales.min_scale, "max_scale": scales.max_scale}}))
    return saved


def _digest(schedule: ScheduleConfig, target: str, networks: Mapping[str, nn.Module], vae: nn.Module | None) -> str:
    named = {**networks, **({} if vae is None else {"vae": vae})}
    return digest([schedule.model_dump_json(), target, *(f"{n} {weights_digest(net)}" for n, net in named.items())])


def _first_stage(config: ConsistencyRun, vae: Any, folder: Path, device: torch.device) -> FirstStage:
    return FirstStage(config.model_copy(update={"autoencoder": None if vae is None else str(folder)}), vae, device)


def _conditions(conditioner: Conditioner, data: Split) -> Conditions:
    """Return a loaded conditioner together with the captions or class names of the pictures `data`."""
    config = type(conditioner).Config.model_construct(kind=kind_of(type(conditioner)))
    train, heldout = (
        [raw if isinstance(raw, str) else data.train.classes[raw] for raw in values]
        for values in split_conditions(config, data)
    )
    conditions = Conditions(config, data, train, heldout, several_captions(config, data))
    conditions.conditioner = conditioner
    return conditions


def _check_guidance(config: ConsistencyRun, base: Pipeline, folder: Path) -> None:
    """Check that the trained model `base`, in `folder`, can be the teacher of the guidance that the config asks for.

    Raises:
        UserError: the base takes the guidance scale as input, and the config gives a single scale, or scales on which
            the base was not trained; or the base does not take it, and guidance needs a null condition that it lacks.
    """
    if base.takes_scale:
        if not isinstance(config.guidance, tuple):
            raise UserError(
                f"guidance is {config.guidance:g}, but the model in {folder} takes the scale as input; expected two, "
                "LOW and HIGH"
            )
        needed, taken = config.guidance_range, base.saved.guidance_range
        if config.mode == "tune":  # whose guidance is the difference to scale 1
            needed = needed._replace(min_scale=1.0)
        if not taken.min_scale <= needed.min_scale <= needed.max_scale <= taken.max_scale:
            raise UserError(
                f"guidance [{config.guidance[0]:g}, {config.guidance[1]:g}] takes a teacher for scales of {needed}, "
                f"but the model in {folder} takes {taken}"
            )
    elif config.guidance != 1 and base.conditioner.null is None:
        raise UserError(f"guidance needs a null condition, but the model in {folder} is unconditional; leave it out")
    elif config.guidance != 1 and not base.saved.trains_null:
        raise UserError(
            f"guidance needs a null condition, but that of the model in {folder} was never trained "
            "(condition_dropout 0); leave it out"
        )


def _check_shape(shape: tuple[int, ...], expected: tuple[int, ...], folder: Path) -> None:
    if shape != expected:
        given, needed = ("x".join(map(str, numbers)) for numbers in (shape, expected))
        raise UserError(f"data gives latents of {given}, but the model in {folder} denoises {needed}; take its size")


def _without_variance(unet: Any, channels: int) -> Any:
    """Cut a U-Net's output to the first `channels`, in place: a consistency model needs no learned variance."""
    if unet.config["out_channels"] != channels:
        layer = unet.conv_out
        cut = nn.Conv2d(layer.in_channels, channels, layer.kernel_size, padding=layer.padding)
        cut.load_state_dict({name: value[:channels] for name, value in layer.state_dict().items()})
        unet.conv_out = cut.to(layer.weight)
        unet.register_to_config(out_channels=channels)
    return unet


def _with_guidance_scale(unet: Any, folder: Path) -> Any:
    """Return a U-Net with the weights of `unet` that also takes the guidance scale, without effect at first.

    `folder` is the trained model's folder, for messages. A U-Net that takes the scale already is returned as it is.
    """
    if takes_guidance_scale(unet):
        return unet
    if not isinstance(unet, UNet2DConditionModel):
        check_no_guidance_scale(GUIDANCE_WIDTH)
    scaled: Any = UNet2DConditionModel.from_config({**unet.config, "time_cond_proj_dim": GUIDANCE_WIDTH})
    copy_weights(f"base {folder}", "unet", unet, zero_guidance_scale(scaled))
    return scaled.to(unet.conv_in.weight)
