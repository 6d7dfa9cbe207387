"""Load, save and sample a diffusion model. `Pipeline.load(folder)` opens folders that ldm_kit or diffusers saved.

A folder has the diffusers layout, with safetensors. Plain diffusers opens a KL autoencoder with CLIP text as
StableDiffusionPipeline, latents alone as LDMPipeline, and pixels alone as DDIMPipeline or DDPMPipeline.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_kit.data.lists import check_lists
from ldm_kit.data.value_range import check_same_range, read_range, write_range
from ldm_kit.diffusion import rng
from ldm_kit.diffusion.denoiser import Denoiser, NetworkDenoiser
from ldm_kit.diffusion.guidance import ClassifierGuided
from ldm_kit.diffusion.samplers import State
from ldm_kit.memory import Batch, BatchSize
from ldm_kit.models import compatibility
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.compatibility import LatentSpace
from ldm_kit.models.components import Components
from ldm_kit.models.consistency_folder import open_components
from ldm_kit.models.decoding import autocast_network
from ldm_kit.models.folder import ModelFolder, Noise
from ldm_kit.models.guided import classifier_gradient, clipped, guided_denoiser, step_variance, with_scale
from ldm_kit.models.image_prior import ImagePrior, with_prior
from ldm_kit.models.lora import merge_lora
from ldm_kit.models.lora_paths import LoraPath
from ldm_kit.models.options import ResolvedOptions, SamplingOptions
from ldm_kit.models.picture_condition import (
    PictureInputs,
    Pictures,
    check_pictures,
    finished,
    picture_inputs,
    with_level,
)
from ldm_kit.models.pipeline_parts import PipelineParts
from ldm_kit.models.saved_sampling import SavedSampling
from ldm_kit.models.saving import check_uncast, save_components
from ldm_kit.models.size_condition import check_same_sizes, with_size_condition
from ldm_kit.models.sizes import latent_shape_at
from ldm_kit.nets.apply import apply_unet
from ldm_kit.nets.casting import cast_weights, is_cast
from ldm_kit.progress import report_steps
from ldm_kit.solvers.samplers import sample


@dataclass(eq=False)
class Pipeline(PipelineParts):
    """A latent or pixel diffusion model: autoencoder, U-Net, conditioner and noise schedule, in evaluation mode."""

    def network(self, options: ResolvedOptions | None = None) -> Callable[..., Any]:
        """Return the U-Net as a function of (x, t, cond); with `options` it also gets their guidance scale."""
        network = partial(apply_unet, self.unet)
        network = network if options is None else with_scale(network, options, len(self.schedule))
        return autocast_network(network, None if is_cast(self.unet, self.precision) else self.precision)

    def with_guides(
        self, classifier: NoisyClassifier | None = None, autoguidance_model: "Pipeline | None" = None
    ) -> "Pipeline":
        """Return this model with these guides in place of its own; None: no such guide. The networks are shared.

        Args:
            classifier: a noisy classifier, whose gradient guides sampling (Dhariwal & Nichol 2021).
            autoguidance_model: a weaker model of the same data, to extrapolate away from (Karras et al. 2024).

        Raises:
            UserError: a guide's noise schedule, latent shape, autoencoder or kind of condition is not this model's.
        """
        if classifier is not None:
            of_classifier = LatentSpace(classifier.schedule_config, classifier.latent_shape, classifier.first_stage)
            compatibility.check_compatible("the classifier", of_classifier, self.space)
        if autoguidance_model is not None:
            compatibility.check_compatible("the guide model", autoguidance_model.space, self.space)
            compatibility.check_same_condition(autoguidance_model.conditioner, self.conditioner)
            compatibility.check_same_picture(autoguidance_model.picture, self.picture)
            check_same_sizes(autoguidance_model, self)
            check_same_range("the model", self.value_range, autoguidance_model)
        return replace(self, classifier=classifier, autoguidance_model=autoguidance_model)

    def denoiser(self, options: ResolvedOptions | None = None) -> NetworkDenoiser:
        """Return the U-Net as a denoiser without clipping; a U-Net that takes the guidance scale needs `options`."""
        network = self.finite.network("the U-Net", self.network(options))
        return NetworkDenoiser(network, self.schedule, self.target, self.variance == "learned_range")

    def guided_denoiser(
        self, prompts: Sequence[str | int], options: ResolvedOptions, pictures: PictureInputs | None = None
    ) -> Denoiser:
        """Return the denoiser wrapped in classifier-free guidance, then autoguidance, then clipping, as `options` ask.

        A U-Net that takes the guidance scale as input gets it, in place of classifier-free guidance.

        Args:
            prompts: B prompts, encoded here for `autoguidance_model`; each call takes this model's own condition.
            options: sampling options, resolved for this model.
            pictures: what the B pictures that condition the model give (`picture_inputs`); None: there are none.
        """
        return guided_denoiser(self, prompts, options, pictures)

    def labels(self, prompts: Sequence[str | int], options: SamplingOptions) -> Tensor | None:
        """Return class indices [B] to guide to, of `classifier_class` or else `prompts`; None: no classifier."""
        if self.classifier is None:
            return None
        name = options.classifier_class
        names = compatibility.class_names(self.conditioner, prompts) if name is None else [name] * len(prompts)
        return compatibility.labels_of(self.classifier.classes, names).to(self.device)

    @torch.no_grad()
    def states(
        self,
        prompts: Sequence[str | int],
        seeds: Sequence[int],
        options: ResolvedOptions,
        noise: Tensor | None = None,
        *,
        pictures: Pictures | None = None,
    ) -> Iterator[State]:
        """Sample one batch of latents, and yield the state after each step.

        A classifier's gradient is applied after guidance and clipping: it shifts the mean of ddpm's step (Algorithm 1
        of Dhariwal & Nichol 2021) or eps (Algorithm 2). Algorithm 2 thereby moves x_0 by s^2 / a times the gradient
        (x_t = a x_0 + s eps), very far where a is almost 0. So x_0 is clipped again; the published code does not.

        Args:
            prompts: B prompts, or classes by name or number; "" for an unconditional model.
            seeds: B seeds; a latent depends on its own prompt and seed alone.
            options: sampling options that `SamplingOptions.resolve(pipeline)` returned.
            noise: x_T [B, Z, h, w]; None: drawn from the seeds.
            pictures: what conditions the samples, for a model conditioned on pictures (see `generate`).

        Yields:
            The state after each step; x of the last state is the clean latent.

        Raises:
            NonFiniteError: a network, the guidance or a step gives NaN or infinity.
        """
        size = options.size(self)
        if not pictures:
            prompts, pictures = with_prior(self, prompts, seeds, options, pictures)
        given = with_level(self.picture, check_pictures(self, pictures, len(prompts), size), options.noise_level)
        inputs, gradient = picture_inputs(self, given, seeds, size), classifier_gradient(self, prompts, options)
        inputs = replace(inputs, maps=with_size_condition(self, options, inputs.maps, len(prompts)))
        denoiser = self.guided_denoiser(prompts, options, inputs)
        if gradient is not None and options.algorithm == 2:
            denoiser, gradient = ClassifierGuided(denoiser, gradient), None
            denoiser = denoiser if options.clip == "published" else clipped(denoiser, options)
        shape = latent_shape_at(self, size)
        start = (rng.initial_noise(seeds, shape) if noise is None else noise).to(self.device)
        cond, times = self.condition(prompts, inputs), list(options.timesteps)
        steps = {"eta": options.eta, "gradient": gradient, "variance": step_variance(self.variance)}
        yield from self.finite.states(sample(options.solver, denoiser, start, times, cond, seeds=seeds, **steps))

    def generate(
        self,
        prompts: Sequence[str | int],
        seeds: Sequence[int],
        options: SamplingOptions | None = None,
        batch_size: Batch = 32,
        *,
        pictures: Pictures | None = None,
    ) -> Iterator[Tensor]:
        """Generate pictures, a batch at a time; a picture depends on its own prompt and seed alone.

        Args:
            prompts: N prompts, or classes by name or number; "" for an unconditional model.
            seeds: N seeds.
            options: an option left out has the value saved with the model, or else its default; None: all left out.
            batch_size: most pictures at once; halved when memory runs out.
            pictures: what conditions the samples, for a model conditioned on pictures: `image`, uint8 [N, C, h, w] or,
                one for all samples, [1, C, h, w]; for inpainting also `mask`, bool [N, h, w], True where the picture is
                made anew; for variations of an image `embedding` [N, D], which `embed` returns, may stand for it.

        Yields:
            The next b pictures, uint8 [b, C, H, W] on the CPU, with b at most `batch_size`; uint16 if the model has a
            `value_range`, whose `values` returns them in the units of the data.

        Raises:
            UserError: an option does not fit this model, a class is unknown, or there is not one seed for each prompt.
        """
        check_lists(prompts=prompts, seeds=seeds)
        resolved, size = (options or SamplingOptions()).resolve(self), BatchSize.of(batch_size)
        prompts, pictures = with_prior(self, prompts, seeds, resolved, pictures)
        given = check_pictures(self, pictures, len(prompts), resolved.size(self))

        def latents(indices: range) -> tuple[Tensor, Pictures]:
            batch = slice(indices.start, indices.stop)
            own = {name: value[batch] for name, value in given.items()}
            states = self.states(prompts[batch], seeds[batch], resolved, pictures=own)
            finished = -(-indices.start // size.size)  # batches
            total = finished + -(-(len(prompts) - indices.start) // size.size)
            states = report_steps(states, "sampling", total * resolved.steps, finished * resolved.steps)
            return deque(states, maxlen=1)[0].x, own  # holds one state at a time

        for x, own in size.batches(len(prompts), latents):  # decoded by themselves, as that may take the most memory
            yield finished(self.picture, torch.cat([*size.map(x, self.pictures)]), own)

    def save(self, folder: Path) -> None:
        """Write this model without its guides to `folder`: a sub-folder for each component, and model_index.json.

        Raises:
            UserError: the U-Net's weights were cast to a lower precision when the model was loaded.
        """
        check_uncast(self.unet, folder)
        noise = Noise(self.schedule_config, self.target, self.variance)
        components = Components(self.vae, self.unet, self.conditioner, noise, self.picture)
        save_components(folder, components, self.saved.sampling)
        self.saved.write(folder)
        write_range(folder, self.value_range)
        if self.prior is not None:
            self.prior.save(folder)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        device: torch.device | str = "cpu",
        precision: torch.dtype | None = None,
        lora: Sequence[str | Path | LoraPath] = (),
    ) -> "Pipeline":
        """Load a diffusion model that ldm_kit or diffusers saved. No pickled or remote code is run.

        Args:
            folder: a model's folder, as ldm_kit or diffusers wrote it, or a run's folder with a finished model.
            device: where the networks are put.
            precision: dtype in which the U-Net samples, to which its weights are cast; None: no cast.
            lora: LoRA files, PATH or PATH:SCALE each, which are merged into the weights in this order (`merge_lora`).

        Raises:
            UserError: the folder or a component is missing, is broken, does not fit or is not supported.
        """
        opened = ModelFolder.open(folder)
        (vae, unet, conditioner, noise, picture), saved = (
            open_components(opened, device),
            SavedSampling.read(opened.path),
        )
        merge_lora(unet, conditioner, lora)
        if precision is not None:
            cast_weights(unet, precision)
        parts: Any = {"saved": saved, "picture": picture, "prior": ImagePrior.load(opened, conditioner, device)}
        parts["value_range"] = read_range(opened.path)
        return cls(vae, unet, conditioner, *noise[:2], precision, noise.variance, **parts)
