"""The noisy classifier p(y | x_t, t), which guides a denoiser by its gradient.

Paper:    Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 4 and appendix G.
Idea:     classify noised pictures at every noise level of the generator, in latent or in pixel space.
Parts:    cached latents (or pixels), class labels, the downsampling half of a U-Net with attention pooling.
Run:      accelerate launch train_ldm.py configs/benchmarks/classifier.yaml
Expected: see the header of that config.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor
from torch.nn.functional import cross_entropy

from ldm_kit.config import UserError
from ldm_kit.data import records
from ldm_kit.data.batches import spread
from ldm_kit.data.images import PictureSet, Split
from ldm_kit.data.latents import LatentBatches
from ldm_kit.data.peers import divided
from ldm_kit.diffusion import rng, schedule, timesteps
from ldm_kit.methods import classifier_metrics as metrics
from ldm_kit.methods.base import Grid, Method, TrainingData
from ldm_kit.methods.classifier_config import ClassifierRun as ClassifierRun
from ldm_kit.methods.classifier_metrics import LEVELS, QUARTILES, TOP, HeldoutAccuracy, hits, plot_accuracy, scores
from ldm_kit.methods.classifier_shift import shifted
from ldm_kit.methods.inputs import FirstStage, noise_batch
from ldm_kit.methods.networks import eval_mode, millions
from ldm_kit.methods.run_summary import pictures_as
from ldm_kit.models.classifier import NoisyClassifier, first_stage_of
from ldm_kit.nets.half_unet import HalfUNet, build_half_unet
from ldm_kit.training.batches import to_device
from ldm_kit.training.task import LossTerm
from ldm_kit.viz.grid import columns_for, enlargement, grid

MAX_HELDOUT = 2048  # most held-out pictures that an evaluation measures
GUESS_TIME = 0.05  # t / T at which the pictures of the sample grid are classified


class Classifying(Method[ClassifierRun]):
    """Training method of a classifier of noised latents or, if the run has no autoencoder, of noised pixels."""

    Config = ClassifierRun
    heldout_seed: ClassVar[int] = 20210511  # seed of the timesteps and the noise of held-out samples

    vae: AutoencoderKL | VQModel | None = None  # the frozen autoencoder; None: pixels are classified
    latent_shape: tuple[int, ...]  # (channels, height, width) of one latent
    shown: LatentBatches  # held-out samples, or training samples if nothing is held out
    accuracy: HeldoutAccuracy | None = None  # last result; None: no evaluation yet, or nothing held out

    def __init__(self, config: ClassifierRun, net: HalfUNet, data: TrainingData | None = None) -> None:
        table, networks = schedule.build(config.schedule), {"classifier": net}
        super().__init__(config, data, modules={**networks}, ema_modules={**networks}, schedule=table)
        self.net, self.shares = net, metrics.quartile_shares(config.timestep_sampling, len(table))

    @classmethod
    def build(cls, config: ClassifierRun, data: Split, device: torch.device) -> "Classifying":
        """Open the autoencoder, cache latents of `data`, which it encodes on `device`, and build the network.

        Raises:
            UserError: a picture has no label, or there are fewer than two classes; the training latents have a standard
                deviation below 0.4 or above 2.5, where 1 is expected; or the folder `config.latents` holds latents of
                other pictures or another autoencoder.
            AutoencoderError: the autoencoder cannot be opened.
        """
        labels, heldout_labels = labels_of(data.train), labels_of(data.heldout)  # before latents are encoded
        first_stage = FirstStage.open(config, data.train, device)
        latents = first_stage.latents(data.train, "train")
        channels, side, _ = latents.shape
        classes = data.train.classes
        net = build_half_unet(config.net, sample_size=side, channels=channels, classes=classes)
        names: list[str | int] = [classes[int(label)] for label in labels]
        batches, heldout = LatentBatches(latents, {"label": labels}, names, config.seed), None
        if len(data.heldout):
            heldout_latents = first_stage.latents(data.heldout, "heldout")
            heldout = LatentBatches(heldout_latents, {"label": heldout_labels}, [], config.seed)
        method = cls(config, net, TrainingData(data, batches, heldout))
        method.vae, method.latent_shape, method.shown = first_stage.vae, tuple(latents.shape), heldout or batches
        method.dependencies = first_stage.dependencies
        return method

    def set_ddp_modules(self, wrapped: Mapping[str, Any]) -> None:
        """Store `wrapped`, {name: module or DDP wrapper}; move noise schedule and `shares` to the module's device.

        `shares` [4] is the fraction of training timesteps in each quarter of 0..T-1.
        """
        super().set_ddp_modules(wrapped)
        self.shares = self.shares.to(self.device)

    def losses(self, batch: Mapping[str, Any], step: int) -> Iterator[LossTerm]:
        """Yield the mean cross-entropy of a batch from `LatentBatches`, and accuracies to log; `step` is not used.

        The run's seed and a sample's position (its number among all samples of the run) determine its timestep, noise
        and random shift by whole pixels.
        """
        config, position, label = self.config, batch["position"], batch["inputs"]["label"]
        size, times = config.train.batch_size, len(self.schedule)
        t = timesteps.sample_timesteps(config.timestep_sampling, config.seed, position, size, times)
        if config.shift:
            batch = {**batch, "mean": shifted(batch["mean"], config.shift, config.seed, position)}
        logits = self.logits(batch, t, config.seed, self.ddp_modules["classifier"])
        loss = cross_entropy(logits, label, label_smoothing=config.label_smoothing)
        yield "classifier", loss, self._accuracies(logits, label, t)

    def logits(
        self, batch: Mapping[str, Any], t: Tensor, seed: int, network: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Return `network`'s float32 logits [B, K] of K classes for a batch that is noised to timesteps t [B].

        `batch` has mean and logvar [B, Z, h, w] of the latents, and position [B], which fixes the noise with `seed`.
        """
        return network(noise_batch(batch, t, seed, self.schedule).x_t, t).float()

    def _accuracies(self, logits: Tensor, label: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Return the accuracy of `logits` [B, K] for classes `label` [B], overall and by quartile of timesteps t [B].

        For a quartile, the number of correct samples is divided by the number of samples that fall into it on average,
        not in this batch. The mean over micro-batches, processes and steps is then right, even if some have no sample
        of a quartile; the value of a single step may exceed 1.
        """
        right, quartile = hits(logits, label, 1), t * QUARTILES // len(self.schedule)
        accuracies = {"accuracy": right.mean()}
        if logits.shape[1] > TOP:
            accuracies[f"accuracy{TOP}"] = hits(logits, label, TOP).mean()
        for q in range(QUARTILES):
            inside = (right * (quartile == q)).mean()
            accuracies[f"accuracy_q{q + 1}"] = inside / self.shares[q].clamp_min(1e-6)
        return accuracies

    def measure(self, samples: LatentBatches) -> HeldoutAccuracy:
        """Return loss and accuracy at each of 8 noise levels, over at most min(`log.max_heldout`, 2048) samples."""
        indices = torch.tensor(spread(len(samples), min(MAX_HELDOUT, self.config.log.max_heldout)))
        with eval_mode(self.net):
            rows = [self._measure_level(level, samples, indices) for level in range(LEVELS)]
        losses, first, top = zip(*rows, strict=True)
        return HeldoutAccuracy(losses, first, top if len(self.net.config["classes"]) > TOP else None)

    def _measure_level(self, level: int, samples: LatentBatches, indices: Tensor) -> tuple[float, float, float]:
        """Return mean loss, top-1 and top-5 accuracy of samples `indices` at random t / T in level/8 .. (level+1)/8."""
        position = indices * LEVELS + level
        u = (level + rng.uniform(self.heldout_seed, "time", position)) / LEVELS

        def own(some: Sequence[int]) -> Tensor:
            logits = self.guess(samples, indices[some], position[some], u[some])
            return scores(logits, samples.inputs_at(indices[some], indices[some])["label"]).T

        loss, first, top = divided(len(indices), own).double().mean(0).tolist()
        return loss, first, top

    @torch.no_grad()
    def guess(self, samples: LatentBatches, indices: Tensor, position: Tensor, u: Tensor) -> Tensor:
        """Return the network's logits [N, K] of K classes for N noised samples, which are never mirrored.

        Args:
            samples: the set of samples.
            indices: indices [N] of the samples in the set.
            position: a number [N] for each sample which, with `heldout_seed`, determines its noise.
            u: times t / T [N] in [0, 1) to which the samples are noised.
        """

        def logits(batch: range) -> Tensor:
            some, latents = slice(batch.start, batch.stop), samples.latents
            mean, logvar = (moment[indices[some], 0].float() for moment in (latents.mean, latents.logvar))
            moments = to_device({"mean": mean, "logvar": logvar, "position": position[some]}, self.device)
            t = (u[some] * len(self.schedule)).long().clamp_max(len(self.schedule) - 1).to(self.device)
            return self.logits(moments, t, self.heldout_seed, self.net).cpu()

        return torch.cat([*self.eval_batch.batches(len(indices), logits)])

    def heldout_metrics(self) -> dict[str, float]:
        """Return loss and accuracies of held-out pictures, by name; empty if nothing is held out."""
        self.accuracy = None if self.heldout is None else self.measure(self.shown)
        return {} if self.accuracy is None else self.accuracy.metrics()

    @classmethod
    def figures(cls, config: ClassifierRun, data: Split | None) -> list[str]:
        """Return the names of the metrics of `heldout_metrics`; if `data` is None (not loaded), all possible names."""
        if data is not None and not len(data.heldout):
            return []
        return metrics.figure_names(top=data is None or len(data.train.classes) > TOP)

    def evaluate(self, step: int, folder: Path) -> dict[str, float]:
        """Return held-out metrics after step `step`; write a plot of accuracy and the grid of samples into `folder`."""
        super().evaluate(step, folder)
        if self.accuracy is not None:
            plot_accuracy(self.accuracy, folder / "pictures" / f"accuracy-{step:08d}.png")
        return self.metrics

    def samples(self) -> Grid:
        """Return a grid of pictures with their class and, if it differs, the class predicted at low noise."""
        pictures = self.data.train if self.heldout is None else self.data.heldout
        indices = torch.tensor(spread(len(pictures), self.config.log.pictures))
        guesses = self.guess(self.shown, indices, indices, torch.full(indices.shape, GUESS_TIME)).argmax(1)
        labels = self.shown.inputs_at(indices, indices)["label"]
        captions = [self._caption(*pair) for pair in zip(labels.tolist(), guesses.tolist(), strict=True)]
        columns, scale = columns_for(len(captions), 4), enlargement(pictures.resolution)
        return Grid(grid(pictures.pictures(indices.tolist()), columns, scale, captions), "guesses")

    def _caption(self, label: int, guess: int) -> str:
        classes = self.data.train.classes
        return classes[label] if label == guess else f"{classes[label]}, taken for {classes[guess]}"

    def save(self, folder: Path) -> None:
        """Save the classifier into `folder`: a sub-folder for each component, and model_index.json, as in diffusers."""
        classes, first_stage = tuple(self.data.train.classes), first_stage_of(self.vae)
        NoisyClassifier(self.net, classes, self.config.schedule, first_stage).save(folder)

    def curve_keys(self) -> list[str]:
        """Return the keys of metrics.jsonl whose training curves are plotted."""
        heldout = ["heldout_loss", "heldout_accuracy"] if self.metrics else []
        return ["classifier_loss", "accuracy", *heldout]

    def summary(self, model: Path) -> str:
        """Return a sentence for the log: the saved model's folder and the held-out accuracies."""
        if not self.metrics:
            return f"noisy classifier in {model}: nothing held out"
        quartiles = ", ".join(f"{self.metrics[f'heldout_accuracy_q{q}']:.3f}" for q in range(1, QUARTILES + 1))
        accuracy = f"held-out accuracy {self.metrics['heldout_accuracy']:.3f}"
        return f"noisy classifier in {model}: {accuracy} (by quartile of noise, from least: {quartiles})"

    def describe_data(self) -> str:
        """Return a phrase on the training set (how many pictures, of what) for `describe`, the log's opening text."""
        kind = f"{len(self.data.train)} training pictures of {len(self.data.train.classes)} classes"
        return pictures_as(kind, self.latent_shape, self.config.autoencoder)

    def describe_model(self) -> str:
        """Return a phrase on the network (class, number of parameters) for `describe`, the log's opening text."""
        return f"noisy classifier with {millions(self.net)} parameters"


def labels_of(pictures: PictureSet) -> Tensor:
    """Return the class index of each of N pictures, int64 [N].

    Raises:
        UserError: a picture has no label, or there are fewer than two classes.
    """
    labels = list(records.labels_of(pictures.records))
    if unlabelled := [pictures.records[i].name for i, label in enumerate(labels) if label is None]:
        raise UserError(
            f"a classifier needs a label for every picture, but {len(unlabelled)} of {len(labels)} have none, the "
            f"first being {unlabelled[0]}; expected one sub-folder per class, or labels in metadata.jsonl"
        )
    if len(pictures.classes) < 2:
        raise UserError(
            f"a classifier needs at least two classes, but all {len(labels)} pictures are of {pictures.classes[0]!r}"
        )
    return torch.tensor(labels)
