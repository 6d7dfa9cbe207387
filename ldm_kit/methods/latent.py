"""Stage 2 of latent diffusion (and, with pixels as their own latents, DDPM).

Paper:    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", sections 3.2 and 3.3.
Idea:     diffuse the latents of a frozen autoencoder; the U-Net attends to a text or class encoder tau_theta(y). It
          may also learn the variance of the reverse steps (Nichol & Dhariwal 2021, section 3.1), or predict the
          guided output, given the scale (Tang et al. 2025, arXiv 2502.12154; Meng et al. 2023).
Parts:    cached latents, a conditioner (trained jointly; or frozen, with cached outputs; or none), a U-Net.
Run:      accelerate launch train_ldm.py configs/faces/ldm_text.yaml
Expected: see the header of that config.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn
from torch.optim import Optimizer

from conditioning.base import Conditioner, Inputs
from ldm_kit.data.images import Split, value_range_of
from ldm_kit.data.latents import LatentBatches
from ldm_kit.diffusion import schedule
from ldm_kit.diffusion.loss import Errors, Objective
from ldm_kit.diffusion.prediction import cast_like
from ldm_kit.diffusion.timesteps import TimestepSampler
from ldm_kit.methods.base import Grid, Method, TrainingData
from ldm_kit.methods.conditions import Conditions, check_prompts, describe_kinds, has_captions
from ldm_kit.methods.inputs import DropoutShares, FirstStage, NoisedBatch, check_buckets, drop_parts, noise_batch
from ldm_kit.methods.latent_config import LatentRun as LatentRun
from ldm_kit.methods.latent_config import SampleConfig as SampleConfig
from ldm_kit.methods.latent_init import LatentStart, autoencoder_note, open_network
from ldm_kit.methods.latent_network import GuidedTeacher, GuidedTraining, draw_scales
from ldm_kit.methods.latent_network import LatentDiffusion as LatentDiffusion
from ldm_kit.methods.latent_start import start_from
from ldm_kit.methods.lora import averaged_modules, save_pipeline, trained_parameters
from ldm_kit.methods.measured import Judged
from ldm_kit.methods.picture_maps import PictureMaps, inputs_of
from ldm_kit.methods.run_summary import pictures_as
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.saved_sampling import SAMPLING, SavedSampling
from ldm_kit.nets.execution import prepare_loaded
from ldm_kit.training.precision import autocast
from ldm_kit.training.task import LossTerm


class Latent(Method[LatentRun]):
    """Training method of latent diffusion: a U-Net denoises the latents of a frozen autoencoder.

    Without an autoencoder it denoises pixels. A condition (text or class) is optional.

    Attributes:
        vae: the frozen autoencoder; None: pixels are diffused.
        latent_shape: shape (channels, height, width) of one latent, or of a picture if pixels are diffused.
        conditions: the captions or labels of the run's pictures.
        maps: the picture condition and its pictures; None: there is none.
        prompts: captions, or classes by index or name; each evaluation samples one picture of its grid for each.
        teacher: the frozen model whose guided output is learned; None: there is none.
    """

    Config = LatentRun
    Start = LatentStart

    vae: AutoencoderKL | VQModel | None = None
    latent_shape: tuple[int, ...]
    conditions: Conditions
    maps: PictureMaps | None = None
    prompts: list[str | int]
    teacher: LatentDiffusion | None = None

    def __init__(
        self, config: LatentRun, unet: nn.Module, conditioner: Conditioner, data: TrainingData | None = None
    ) -> None:
        self.module = LatentDiffusion(unet, conditioner)
        ema_modules = averaged_modules(config.lora, unet, conditioner)
        table = schedule.build(config.schedule)
        super().__init__(config, data, modules={"denoiser": self.module}, ema_modules=ema_modules, schedule=table)
        self.null = conditioner.null_inputs()
        self.dropout = DropoutShares.of(config.condition, config.condition_dropout)
        self.times = TimestepSampler(config.timestep_sampling, config.seed, config.train.batch_size, len(table))
        terms = config.prediction_type, config.loss, config.variance, config.vb_weight, config.min_snr
        self.objective = Objective(*terms, levels=config.autoencoder is None)

    @classmethod
    def build(cls, config: LatentRun, data: Split, device: torch.device, start: LatentStart | None = None) -> "Latent":
        """Open the autoencoder, cache latents and captions or labels, and build the networks.

        Args:
            config: the run's config.
            data: training and held-out pictures.
            device: device on which the autoencoder encodes.
            start: trained networks to start from; None: random weights.

        Raises:
            UserError: the training latents have a standard deviation below 0.4 or above 2.5; or `config.latents` holds
                latents of other pictures or another autoencoder; or the conditioner does not know a sample prompt.
            AutoencoderError, ConditioningError: the autoencoder or a text encoder cannot be opened, or pictures lack
                the labels or captions that the condition needs.
        """
        conditions = Conditions.open(config.condition.prompts, data)
        first_stage = FirstStage.open(config, data.train, device)
        shapes = check_buckets(config, data.train, first_stage.reduction, config.unet.factor)
        maps = PictureMaps.open(config.condition.picture, data, first_stage)
        conditioner = conditions.build(config.unet.time_width, None if start is None else start.conditioner)
        prompts: list[str | int] = [*config.sample.prompts] or conditions.examples(config.log.pictures)
        check_prompts(conditioner, [*config.sample.prompts])
        latents = first_stage.latents(data.train, "train")
        unet, notes = open_network(config, latents.shape, conditioner, start, data.train.channels)
        inputs, heldout_inputs = conditions.prepare()
        heldout, shown = None, {} if maps is None else maps.fitted(latents.shape)
        if heldout_inputs is not None:
            heldout_latents, pictures = first_stage.latents(data.heldout, "heldout"), maps and maps.heldout
            heldout = LatentBatches(heldout_latents, heldout_inputs, [], config.seed, pictures)
        batches = conditions.batches(latents, inputs, config.seed, **shown)
        method = cls(config, unet, conditioner, TrainingData(data, batches, heldout))
        method.dependencies = {**first_stage.dependencies, **conditions.dependencies}
        method.vae, method.latent_shape, method.conditions = first_stage.vae, tuple(latents.shape), conditions
        method.prompts, method.maps = prompts, maps
        if start is not None:
            method.start = start.structure(unet, conditioner)
            notes = [*notes, *autoencoder_note(start, first_stage.vae), *filter(None, [conditions.note])]
        method.notes = [*shapes, *notes]
        if config.guidance is not None and config.guidance.base is not None:
            teacher = config.guidance.target == "base"
            base = start_from(config.guidance.base, method.pipeline, inputs, conditions, teacher=teacher)
            method.dependencies["guidance.base"] = base.sha256
            method.teacher = prepare_loaded(base.network, device, config.train) if teacher else None
        return method

    def set_ddp_modules(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Store `wrapped`, {name: module or DDP wrapper}; move schedule and null condition to the module's device."""
        super().set_ddp_modules(wrapped)
        self.null = {name: value.to(self.device) for name, value in self.null.items()}
        if self.teacher is not None:
            self.teacher.to(self.device)

    def state(self) -> dict[str, Tensor]:
        """Return the recent losses by timestep, for the timestep density loss_second_moment; {} for other densities."""
        return self.times.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors that `state` returned."""
        self.times.load_state(state)

    def after_step(self, step: int, optimisers: Mapping[str, Optimizer]) -> None:
        """Update the timestep density loss_second_moment, if used, with the step's losses from all processes."""
        self.times.after_step(self.collectives.sum)

    def discard_step(self) -> None:
        """Discard the losses that were collected in a step that failed and will be repeated."""
        self.times.discard_step()

    def losses(self, batch: Mapping[str, Any], step: int) -> Iterator[LossTerm]:
        """Yield a batch's loss; if the loss contains the variational bound, log the mean of its terms as `vb`.

        `batch` is from `LatentBatches`. Noise, timestep and condition dropout of a sample are functions of the run's
        seed and its position (its number among all samples of the run); `step` is not used.
        """
        position = batch["position"]
        t, weight = self.times.draw(position)
        inputs = drop_parts(self.module.conditioner, batch, self.null, self.config.seed, self.dropout)
        inputs |= inputs_of(self.maps, batch, self.config.seed)
        scale = None if self.config.guidance is None else draw_scales(self.config.guidance, self.config.seed, position)
        noised, network = self._guided(noise_batch(batch, t, self.config.seed, self.schedule), inputs, scale)
        errors = self.errors(noised, inputs, network, batch.get("weight"))
        losses = self.objective.combined(self.objective.weighted(errors, t, self.schedule), len(self.schedule))
        if scale is not None and self.teacher is not None:
            # the guided output differs from the unguided one in proportion to w - 1
            losses = losses / cast_like(scale, losses).square()
        self.times.meet(position, t, losses)
        weight = torch.ones_like(losses) if weight is None else cast_like(weight, losses)
        yield "denoiser", (losses * weight).mean(), {} if errors.bits is None else {"vb": (errors.bits * weight).mean()}

    def _guided(
        self, noised: NoisedBatch, inputs: Inputs, scale: Tensor | None
    ) -> tuple[NoisedBatch, Callable[..., Tensor]]:
        """Return a batch with the x_0 and eps to learn, and the function of (x_t, t, inputs) that the loss trains.

        A guided teacher, if there is one, predicts the x_0 and eps. A network that takes guidance scales gets `scale`.
        """
        network, guidance = self.ddp_modules["denoiser"], self.config.guidance
        if guidance is None or scale is None:
            return noised, network
        if self.teacher is None:
            steps = len(self.schedule)
            return noised, GuidedTraining(network, self.module, self.null, scale, guidance.interval, steps)
        teacher = GuidedTeacher(self.teacher, self.null, self.schedule, self.config.prediction_type, guidance.interval)
        with autocast(self.device, self.precision):
            return teacher.guided(noised, inputs, scale), partial(network, scale=scale)

    def errors(
        self, noised: NoisedBatch, inputs: Inputs, network: Callable[..., Tensor], weight: Tensor | None = None
    ) -> Errors:
        """Return each sample's squared error and, if the loss contains the variational bound, the bound's term.

        The errors are those before min-SNR weights and the importance weights of sampled timesteps are applied.

        Args:
            noised: latents, clean and noised, their noise and timesteps.
            inputs: the conditioner's inputs by name, [B, ...] each.
            network: a `LatentDiffusion`, its DDP wrapper, or what `_guided` returns.
            weight: [B, 1, h, w], by which the squared error of each element counts; None: all count.
        """
        x_0, eps, x_t, t = noised
        return self.objective.errors(network(x_t, t, inputs), x_0, eps, t, self.schedule, weight=weight)

    def heldout_losses(self, batch: Mapping[str, Any], t: Tensor, seed: int) -> Tensor:
        """Return the loss [B] of each held-out sample, without min-SNR weights and without condition dropout.

        Args:
            batch: a batch from `LatentBatches`: mean and logvar of latents, positions, and the conditioner's inputs.
            t: timesteps [B] to which the latents are noised.
            seed: seed of the noise.
        """
        inputs = {**batch["inputs"], **inputs_of(self.maps, batch, seed)}
        errors = self.errors(noise_batch(batch, t, seed, self.schedule), inputs, self.module, batch.get("weight"))
        return self.objective.combined(errors, len(self.schedule))

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline that `save` writes: current weights, on the training device, with the run's sampling options."""
        config = self.config
        networks: tuple[Any, Any, Any] = self.vae, self.module.unet, self.module.conditioner
        saved = SavedSampling.of(SAMPLING, config.sample, config.condition_dropout)
        saved = saved if config.guidance is None else saved.joined(config.guidance.saved)
        own: Any = {"saved": saved, "picture": config.condition.picture, "value_range": value_range_of(self.data.train)}
        return Pipeline(*networks, config.schedule, config.prediction_type, None, config.variance, **own)

    def samples(self) -> Grid:
        """Return a grid of pictures, one sampled for each prompt, from seeds 0, 1, 2, ..."""
        return self.conditions.sample_grid(self.pipeline, self.prompts, self.eval_batch, self.maps)

    @classmethod
    def judged(cls, config: LatentRun) -> Judged:
        """Return that measures judge samples, with captions if the condition is text."""
        return Judged(captions=has_captions(config.condition))

    def measured_pictures(self, rows: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Sample a picture for each of N held-out pictures, `rows`, from N `seeds`: uint8 [N, C, R, R]."""
        return self.conditions.sample_like(self.pipeline, rows, seeds, self.eval_batch, self.maps)

    def save(self, folder: Path) -> None:
        """Save the pipeline into `folder`: a sub-folder for each component, and model_index.json, as in diffusers."""
        save_pipeline(self.pipeline, folder, self.start)

    def summary(self, model: Path) -> str:
        """Return a sentence for the log: the saved model's folder and the held-out loss."""
        loss = f"held-out loss {self.metrics['heldout_loss']:.4f}" if self.metrics else "nothing held out"
        return f"model in {model}: {loss}"

    def describe_data(self) -> str:
        """Return a phrase on the training set (how many pictures, of what) for `describe`, the log's opening text."""
        return pictures_as(f"{len(self.data.train)} training pictures", self.latent_shape, self.config.autoencoder)

    def describe_model(self) -> str:
        """Return a phrase on the networks (classes, parameters) for `describe`, the log's opening text."""
        name, kinds = type(self.module.unet).__name__, describe_kinds(self.config.condition)
        return f"{name} and conditioner {kinds} with {trained_parameters(self.module)}"
