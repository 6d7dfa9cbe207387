"""A diffusion prior over the codes of a trained DiffAE or PDAE, or over the image embeddings of a decoder (unCLIP).

Paper:    Preechakul et al. 2022, "Diffusion Autoencoders", section 3.4 and appendix A.1; Zhang et al. 2022;
          Ramesh et al. 2022, section 2.2 (image embeddings, of which the MLP predicts x_0 by default).
Idea:     diffuse the codes of the training set, normalised per dimension; to generate, sample a code and decode it. A
          class or a caption may be pooled to a vector and added to the time embedding (this is not in the papers).
Parts:    the averaged encoder of a trained semantic model, whose codes are computed once; an MLP with skips.
Run:      accelerate launch train_ldm.py configs/benchmarks/prior.yaml
Expected: see the header of that config.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conditioning.base import Conditioner, Inputs
from conditioning.none import NoConfig
from ldm_kit.data.code_batches import CodeBatches
from ldm_kit.data.images import Split, digest
from ldm_kit.diffusion import rng, schedule
from ldm_kit.diffusion.prediction import Prediction, PredictionType, from_prediction
from ldm_kit.diffusion.timesteps import sample_timesteps
from ldm_kit.memory import BatchSize
from ldm_kit.methods.base import Grid, Method, TrainingData
from ldm_kit.methods.conditions import Conditions, has_captions
from ldm_kit.methods.inputs import drop_conditions
from ldm_kit.methods.measured import Judged
from ldm_kit.methods.networks import millions
from ldm_kit.methods.prior_config import PriorRun as PriorRun
from ldm_kit.methods.prior_source import CodeSource, PriorModel, open_source
from ldm_kit.models import codes
from ldm_kit.models.prior import TARGET, CodePrior, apply_mlp
from ldm_kit.models.saved_sampling import PRIOR, SavedSampling
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.mlp_skip import SkipMLP
from ldm_kit.training.task import LossTerm
from ldm_kit.viz.grid import columns_for, enlargement, grid

NAME = "prior"


class ConditionedMLP(nn.Module):
    """MLP and conditioner as one module, so that one DDP wrapper averages the gradients of both."""

    def __init__(self, mlp: SkipMLP, conditioner: Conditioner) -> None:
        super().__init__()
        self.mlp, self.conditioner = mlp, conditioner

    def forward(self, z: Tensor, t: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the network's prediction [B, D]: eps, x_0 or v.

        Args:
            z: normalised codes of D dimensions, noised, [B, D].
            t: timesteps [B].
            inputs: the conditioner's inputs by name, [B, ...] each.
        """
        return apply_mlp(self.mlp, z, t, self.conditioner(**inputs))


class Prior(Method[PriorRun]):
    """Training method of a prior: an MLP denoises the normalised codes of a trained semantic model."""

    Config = PriorRun
    conditions: Conditions  # captions or labels of the run's pictures
    code_source: CodeSource[Any]  # the trained model whose codes are diffused; never changed
    mean: Tensor  # [D], mean of the training set's codes, which have D dimensions
    std: Tensor  # [D], standard deviation of the training set's codes

    def __init__(
        self, config: PriorRun, mlp: SkipMLP, conditioner: Conditioner, data: TrainingData | None = None
    ) -> None:
        self.module = ConditionedMLP(mlp, conditioner)
        ema_modules: dict[str, nn.Module] = {"mlp": mlp, **conditioner.trainable}
        table = schedule.build(config.schedule)
        super().__init__(config, data, modules={NAME: self.module}, ema_modules=ema_modules, schedule=table)
        self.null = conditioner.null_inputs()
        self.prediction_type: PredictionType = config.prediction_type or TARGET

    @classmethod
    def build(cls, config: PriorRun, data: Split, device: torch.device) -> "Prior":
        """Encode the pictures `data` on `device`, normalise their codes, and build the networks.

        Raises:
            UserError: `config.model` has no codes or is for pictures of another size or number of channels; or
                it is a DiffAE and `sample.stop` is not 0.
            ConditioningError: the pictures lack the labels or captions that the condition needs, or a text encoder
                cannot be loaded.
        """
        conditions = Conditions.open(config.condition, data)
        with torch.random.fork_rng(devices=[]):  # the prior's weights are drawn as if nothing had been opened
            source = open_source(config, data.train, device)
        size = BatchSize.for_pictures(config.train.eval_batch, data.train.resolution)
        z, shown = source.codes(data.train, size)
        statistics = source.statistics(z)
        width = z.shape[1]
        conditioner = conditions.build(time_width=width)
        mlp = SkipMLP(z_width=width, condition_width=conditioner.pooled_width, **config.net.model_dump())
        inputs, heldout_inputs = conditions.prepare()
        rows = conditions.caption_rows(config.seed)
        texts = [*map(str, conditions.all_train), *(() if rows is None else rows.texts())]
        fingerprint = digest([source.weights, data.train.fingerprint, *texts])
        normalised, heldout = statistics.normalise(z), None
        if rows is None:
            batches = CodeBatches(normalised, _taken(inputs, shown), fingerprint)
        else:
            batches = CodeBatches(normalised, inputs, fingerprint, rows.take(shown))
        if heldout_inputs is not None:
            heldout_z, shown = source.codes(data.heldout, size)
            heldout_inputs = _taken(heldout_inputs, shown)
            heldout = CodeBatches(statistics.normalise(heldout_z), heldout_inputs, data.heldout.fingerprint)
        method = cls(config, mlp, conditioner, TrainingData(data, batches, heldout))
        method.conditions, method.mean, method.std = conditions, *statistics
        method.code_source = source
        method.prediction_type = config.prediction_type or source.prediction_type
        method.notes = [*filter(None, [_narrow(method.prediction_type, config.net.hidden, width)])]
        method.dependencies = {"model": source.digest, **conditions.dependencies}
        return method

    def set_ddp_modules(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Store `wrapped`, {name: module or DDP wrapper}; move schedule and null condition to the module's device."""
        super().set_ddp_modules(wrapped)
        self.null = {name: value.to(self.device) for name, value in self.null.items()}

    def losses(self, batch: Mapping[str, Any], step: int) -> Iterator[LossTerm]:
        """Yield the mean error of the prediction for a batch from `CodeBatches`, see `errors`; `step` is not used.

        A batch has codes, positions and the condition's inputs. The run's seed and a sample's position (its number
        among all samples of the run) determine its noise, timestep and condition dropout.
        """
        config, size, times = self.config, self.config.train.batch_size, len(self.schedule)
        t = sample_timesteps(config.timestep_sampling, config.seed, batch["position"], size, times)
        inputs = drop_conditions(batch, self.null, config.seed, config.condition_dropout)
        yield NAME, self.errors(batch, t, config.seed, inputs, self.ddp_modules[NAME]).mean(), {}

    def errors(self, batch: Mapping[str, Any], t: Tensor, seed: int, inputs: Inputs, module: nn.Module) -> Tensor:
        """Return the error [B] of the network's output, for each sample, at timesteps t [B].

        It is the mean over dimensions of the absolute error of eps (Preechakul et al. 2022), or of the squared error
        of x_0 (Ramesh et al. 2022, equation 2) or v.

        Args:
            batch: normalised codes z [B, D], and each sample's position [B], its number among all samples of the run.
            t: timesteps [B].
            seed: seed that, with the position, determines a sample's noise.
            inputs: the conditioner's inputs by name, [B, ...] each.
            module: a `ConditionedMLP`, or its DDP wrapper.
        """
        z = batch["z"]
        eps = rng.normal(seed, "noise", batch["position"], z.shape[1:])
        output = module(self.schedule.add_noise(z, eps, t).to(z.dtype), t, inputs)
        target = from_prediction(self.prediction_type, Prediction(z, eps), *self.schedule.alpha_sigma(t))
        error = output.float() - target
        return (error.abs() if self.prediction_type == "eps" else error.square()).mean(1)

    def heldout_losses(self, batch: Mapping[str, Any], t: Tensor, seed: int) -> Tensor:
        """Return the error [B] of the prediction for held-out codes, see `errors`; no condition is dropped.

        Args:
            batch: a batch from `CodeBatches`: codes, positions and the conditioner's inputs.
            t: timesteps [B].
            seed: seed of the noise.
        """
        return self.errors(batch, t, seed, batch["inputs"], self.module)

    @property
    def source(self) -> PriorModel:
        """The trained model whose codes are diffused."""
        return self.code_source.model

    def model(self) -> PriorModel:
        """Return the trained model with this prior and its current weights, on the training device."""
        config = self.config
        prior = CodePrior(self.module.mlp, self.module.conditioner, config.schedule, self.prediction_type)
        saved = SavedSampling.of(PRIOR, config.sample, config.condition_dropout)
        model = self.code_source.with_prior(prior, codes.CodeStatistics(self.mean, self.std), saved)
        return model.to(self.device)

    def samples(self) -> Grid:
        """Return a grid of pictures decoded from codes that the prior samples, from seeds 0, 1, 2, ..."""
        count, captions = self.config.log.pictures, None
        if not isinstance(self.config.condition, NoConfig):
            captions = [self.conditions.caption(condition) for condition in self.conditions.examples(count)]
            count = len(captions)
        pictures = self._sampled(range(count), captions)
        return Grid(grid(pictures, columns_for(count, 4), enlargement(self.source.resolution), captions))

    def _sampled(self, seeds: Sequence[int], prompts: Sequence[str] | None) -> Tensor:
        return self.code_source.sample(self.model(), seeds, prompts, self.config.sample, self.eval_batch)

    @classmethod
    def judged(cls, config: PriorRun) -> Judged:
        """Return that measures judge samples, with captions if the condition is text."""
        return Judged(captions=has_captions(config.condition))

    def measured_pictures(self, rows: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Sample and decode a code for each of N held-out pictures, `rows`, from N `seeds`: uint8 [N, C, R, R]."""
        given = None
        if not type(self.config.condition).unconditional:
            given = [self.conditions.caption(self.conditions.heldout[i]) for i in rows]
        return self._sampled(seeds, given)

    def save(self, folder: Path) -> None:
        """Save the trained model together with this prior into `folder`."""
        self.model().save(folder)

    def summary(self, model: Path) -> str:
        """Return a sentence for the log: the saved model's folder and the held-out loss."""
        loss = f"held-out loss {self.metrics['heldout_loss']:.4f}" if self.metrics else "nothing held out"
        kind = "semantic model" if isinstance(self.source, SemanticModel) else "decoder"
        return f"{kind} with prior in {model}: {loss}"

    def describe_data(self) -> str:
        """Return a phrase on the training set (codes, width, encoder) for `describe`, the log's opening text."""
        count, width = len(self.batches), len(self.mean)
        return f"codes of {count} training pictures, {width} numbers each, by the encoder of {self.config.model}"

    def describe_model(self) -> str:
        """Return a phrase on the networks (classes, parameters) for `describe`, the log's opening text."""
        return f"prior of condition '{self.config.condition.kind}' with {millions(self.module)} parameters"


def _narrow(prediction_type: PredictionType, hidden: int, width: int) -> str:
    """Return a warning if the MLP cannot pass on the noise that it has to predict; "": it can, or need not."""
    if prediction_type == "x0" or hidden >= width:
        return ""
    return (
        f"warning: net.hidden is {hidden}, but a code has {width} numbers, whose noise so few channels cannot pass on, "
        f"as prediction_type {prediction_type} asks; expected x0, or {width} or more channels"
    )


def _taken(inputs: Inputs, rows: Tensor) -> Inputs:
    return {name: value[rows] for name, value in inputs.items()}
