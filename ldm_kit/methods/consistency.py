"""Consistency models, sampled in one step or a few: tuned or distilled from a trained model, or trained anew.

Papers:   Song et al. 2023, "Consistency Models" (CT, CD); Song & Dhariwal 2024, "Improved Techniques for Training
          Consistency Models" (iCT); Geng et al. 2024, "Consistency Models Made Easy" (ECT); Luo et al. 2023, "Latent
          Consistency Models".
Idea:     train f(x_t, t), the predicted x_0, to be equal at neighbouring points of a probability-flow trajectory; then
          f gives the clean end of the trajectory.
Parts:    the student, the network that is trained (modes tune and distill: it starts as a copy of a trained model, the
          base); for distillation or guidance a teacher, a frozen copy of the base; in some recipes a target network, an
          average of the student's past weights.
Run:      accelerate launch train_ldm.py configs/consistency/tune.yaml
Expected: see the header of that config.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from conditioning.base import Inputs
from ldm_kit.data.images import Split
from ldm_kit.data.value_range import check_same_range
from ldm_kit.diffusion.consistency import (
    ConsistencyDenoiser,
    ConsistencyFunction,
    Metric,
    Pair,
    consistency_function,
    consistency_loss,
)
from ldm_kit.diffusion.consistency_targets import ddim_step
from ldm_kit.diffusion.prediction import Prediction, cast_like
from ldm_kit.diffusion.schedule import build
from ldm_kit.methods.base import Grid, Method
from ldm_kit.methods.consistency_base import conditioned_student, new_student, semantic_student
from ldm_kit.methods.consistency_config import ConsistencyRun
from ldm_kit.methods.consistency_levels import Levels, check_levels
from ldm_kit.methods.consistency_metric import metric_of, open_perceptual, perceptual_dependencies
from ldm_kit.methods.consistency_students import Student
from ldm_kit.methods.consistency_teacher import Guidance, Teacher, bound_denoiser, open_base, samples_captions
from ldm_kit.methods.inputs import NoisedBatch, noise_batch
from ldm_kit.methods.measured import Judged
from ldm_kit.methods.networks import millions
from ldm_kit.models.folder import SEMANTIC
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.guidance_embedding import takes_guidance_scale
from ldm_kit.training.precision import autocast
from ldm_kit.training.task import LossTerm

NAME = "consistency"


class Consistency(Method[ConsistencyRun]):
    """Training method of consistency models.

    Attributes:
        student: the network that is trained, and its data.
        levels: chooses timesteps, loss weights and guidance scales of samples.
        teacher: frozen copy of the model that the run starts from, for distillation or guidance; None: neither is used.
        target: the target network, an average of the student's past weights; None: the student itself.
        perceptual: the network of the perceptual distance between predictions; None: the loss is another one.
    """

    Config = ConsistencyRun

    def __init__(self, config: ConsistencyRun, student: Student) -> None:
        check_levels(config, student.schedule_config)
        super().__init__(
            config,
            student.data,
            modules={NAME: student.module},
            ema_modules=student.ema_modules,
            schedule=build(student.schedule_config),
        )
        self.student, self.perceptual = student, open_perceptual(config, pixels=student.vae is None)
        self.dependencies = {**student.dependencies, **perceptual_dependencies(self.perceptual)}
        self.levels = Levels(config, self.schedule)
        guided = config.guidance != 1
        self.teacher = student.teacher() if guided or config.mode == "distill" else None
        self.target = student.teacher() if config.decay != 0 else None

    @classmethod
    def build(cls, config: ConsistencyRun, data: Split, device: torch.device) -> "Consistency":
        """Open the trained model `config.base` on `device`, or build a new network; cache the latents of `data`.

        Raises:
            UserError: the trained model cannot be opened or does not fit pictures or config; cached latents are of
                other pictures; or the latents' standard deviation is not near 1.
            AutoencoderError, ConditioningError: autoencoder or text encoder cannot be opened, or captions are missing.
        """
        if config.mode == "train":
            return cls(config, new_student(config, data, device))
        folder = open_base(config, str(device))
        if folder.class_name == SEMANTIC:
            return cls(config, semantic_student(config, SemanticModel.load(folder.path, device), folder.path, data))
        pipeline = Pipeline.load(folder.path, device)
        check_same_range(f"the model in {folder}", pipeline.value_range, data.train)
        return cls(config, conditioned_student(config, pipeline, folder.path, data))

    def set_ddp_modules(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Store `wrapped`, the module by name (or DDP's wrapper); move what is not trained to its device.

        The target network starts at the student's weights, which are the same on every rank by now.
        """
        super().set_ddp_modules(wrapped)
        self.student.to(self.device)
        for module in (self.teacher, self.target, self.perceptual):
            if module is not None:
                module.to(self.device)
        if self.perceptual is not None:
            self.perceptual.precision = self.precision
        if self.target is not None:
            self.target.load_state_dict(self.student.module.state_dict())

    def state(self) -> dict[str, Tensor]:
        """Return the weights of the target network by name; {} if there is none."""
        return {} if self.target is None else {f"target.{k}": v for k, v in self.target.state_dict().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors that `state` returned."""
        if self.target is not None:
            self.target.load_state_dict({name.removeprefix("target."): value for name, value in state.items()})

    @torch.no_grad()
    def after_step(self, step: int, optimisers: Mapping[str, Optimizer]) -> None:
        """Update the target network, an average of student weights, after step `step` (Song et al. 2023, alg. 2, 3)."""
        if self.target is None:
            return
        pairs = zip(self.target.state_dict().values(), self.student.module.state_dict().values(), strict=True)
        for average, weight in pairs:
            if average.is_floating_point():
                average.lerp_(weight, 1 - self.levels.target_decay(step))
            else:
                average.copy_(weight)

    def losses(self, batch: Mapping[str, Any], step: int) -> Iterator[LossTerm]:
        """Yield a batch's mean weighted loss at step `step`; its mean without weights is logged as `distance`.

        `batch` has mean and logvar of latents, positions, and the condition's inputs or (DiffAE) pictures. The run's
        seed and a sample's position, its number among all samples of the run, determine the sample's noise, timestep,
        guidance scale and dropped condition.
        """
        config, position = self.config, batch["position"]
        t = self.levels.student_timesteps(position, step)
        r = self.levels.target_timesteps(t, step)
        inputs = self.student.inputs(batch, config.seed, self.student.dropout)
        noised = noise_batch(batch, t, config.seed, self.schedule)
        network = self.ddp_modules[NAME]
        distance = self.distances(noised, r, inputs, self.levels.scales(position, config.seed), network)
        weight = self.levels.weight(t, r)
        yield NAME, (distance * cast_like(weight, distance)).mean(), {"distance": distance.mean()}

    def distances(
        self,
        noised: NoisedBatch,
        r: Tensor,
        inputs: Inputs,
        scale: Tensor | None,
        network: Callable[..., Tensor],
    ) -> Tensor:
        """Return the distance [B] between the student's f(x_t, t) and the target network's f(x_r, r), without weights.

        Args:
            noised: clean and noised latents, noise and timesteps t.
            r: timesteps [B] of the target network; -1 is clean data.
            inputs: the condition's inputs by name, [B, ...] each.
            scale: guidance scales [B]; None: no guidance.
            network: the student, or its DDP wrapper.
        """
        x_r = self.next_points(noised, r, inputs, scale)
        target = network if self.target is None else self._autocast(self.target.train(self.student.module.training))
        student, aim = (self.function(net, inputs, scale) for net in (network, target))
        return consistency_loss(student, aim, Pair(noised.x_t, noised.t, x_r, r), self.metric)

    @property
    def metric(self) -> Metric:
        """Distance between two predictions of x_0: l1, l2, pseudo-Huber or perceptual, as the config's `loss` says."""
        return metric_of(self.config, self.perceptual)

    def function(self, network: Callable[..., Tensor], inputs: Inputs, scale: Tensor | None) -> ConsistencyFunction:
        """Return f(x, t), the x_0 that `network`, a function of (x_t, t, inputs, scale), predicts for one batch.

        `inputs` are those of the condition, [B, ...] by name; `scale` [B] is for networks that take guidance scales.
        """
        given = scale if takes_guidance_scale(self.student.module.unet) else None
        denoiser = bound_denoiser(network, self.schedule, self.student.target, inputs, given)
        return consistency_function(ConsistencyDenoiser(denoiser))

    @torch.no_grad()
    def next_points(self, noised: NoisedBatch, r: Tensor, inputs: Inputs, scale: Tensor | None) -> Tensor:
        """Return the points x_r [B, ...] of the trajectories at timesteps r [B], at which the target network predicts.

        Without a teacher, x_r is noised from the data's x_0 and eps. In mode distill the teacher steps to it from x_t,
        given the condition `inputs` and guidance `scale` [B]; in mode tune its guidance first shifts x_0 and eps.
        """
        if self.teacher is None:
            return ddim_step(Prediction(noised.x_0, noised.eps), r, self.schedule)
        network, null = self._autocast(self.teacher), None if scale is None else self.student.null(inputs)
        takes = self.student.teacher_takes_scale
        teacher = Teacher(network, takes, self.schedule, self.student.target, self.config.teacher_step)
        points = teacher.distilled if self.config.mode == "distill" else teacher.guided_data
        return points(noised, r, Guidance(inputs, null, scale))

    def _autocast(self, network: nn.Module) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            with autocast(self.device, self.precision):
                return network(*arguments)

        return call

    def heldout_losses(self, batch: Mapping[str, Any], t: Tensor, seed: int) -> Tensor:
        """Return the distance [B] between student and target network in predicting x_0 of held-out samples.

        The student predicts at timesteps t [B], the target network at the earlier ones that the run's last step pairs
        with t. `batch` is as for `losses`; `seed` fixes noise and guidance scale.
        """
        inputs = self.student.inputs(batch, seed, 0.0)
        r = self.levels.target_timesteps(t, self.config.train.steps - 1)
        noised, scales = noise_batch(batch, t, seed, self.schedule), self.levels.scales(batch["position"], seed)
        return self.distances(noised, r, inputs, scales, self.student.module)

    def samples(self) -> Grid:
        """Return a grid of pictures sampled with the current weights, from fixed seeds."""
        return self.student.samples(self.config.log.pictures, self.eval_batch)

    @classmethod
    def judged(cls, config: ConsistencyRun) -> Judged:
        """Return that measures judge samples; UserError: the model that the run starts from decodes codes."""
        return Judged(captions=samples_captions(config))

    def measured_pictures(self, rows: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Sample a picture for each of N held-out pictures, `rows`, from N `seeds`: uint8 [N, C, R, R]."""
        return self.student.sample_like(rows, seeds, self.eval_batch)

    def save(self, folder: Path) -> None:
        """Save the model in the folder layout of diffusers, with diffusers' scheduler of consistency models."""
        self.student.save(folder)

    def describe_data(self) -> str:
        """Return how many pictures of what shape are trained on, for `describe`."""
        return f"{len(self.data.train)} training pictures as latents {self.student.shape}"

    def describe_model(self) -> str:
        """Return a phrase on the network and where it starts for `describe`, the log's opening text."""
        start = "from nothing" if self.config.mode == "train" else f"of {self.config.base}"
        unet, count = type(self.student.module.unet).__name__, millions(self.student.module)
        return f"consistency model {start} ({self.config.mode}), {unet} with {count} trained parameters"
