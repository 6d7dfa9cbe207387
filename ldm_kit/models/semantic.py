"""A trained semantic model (DiffAE or PDAE): encode pictures to (z, x_T), decode them, and sample new codes z.

A folder has the diffusers layout with safetensors: `encoder/`, `statistics.safetensors` (mean and deviation of the
training pictures' codes), `model_index.json`, optionally `prior/`. DiffAE adds `unet/`, `scheduler/` and, if latent,
`vae/`. PDAE adds `shift/`; model_index.json refers to the base model by a relative path or a Hub commit, and a sha256.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoencoder import base as first_stage
from ldm_kit.config import UserError
from ldm_kit.diffusion import rng
from ldm_kit.diffusion.samplers import State
from ldm_kit.memory import Batch, BatchSize
from ldm_kit.models import codes, decoding
from ldm_kit.models import prior as code_prior
from ldm_kit.models.codes import CodeStatistics, Encoder
from ldm_kit.models.decoder_loading import load_decoder
from ldm_kit.models.decoders import Decoder, TrajectoryTarget
from ldm_kit.models.decoding import Progress, last_states
from ldm_kit.models.folder import SEMANTIC
from ldm_kit.models.prior import Clip, CodePrior
from ldm_kit.models.saved_sampling import SavedSampling
from ldm_kit.models.saving import write_index


@dataclass(eq=False)
class SemanticModel:
    """A DiffAE or PDAE in evaluation mode. Methods take and return tensors on the CPU, wherever the networks are."""

    encoder: Encoder  # maps pictures [N, C, R, R] in [-1, 1] to codes z [N, D]
    decoder: Decoder  # maps latents to noise x_T and noise to latents, given z
    mean: Tensor  # mean of the training pictures' codes, float32 [D]
    std: Tensor  # standard deviation of the training pictures' codes, float32 [D]
    prior: CodePrior | None = None  # samples new codes
    saved: SavedSampling = field(default_factory=SavedSampling)  # this model's own default steps and prior options

    @property
    def device(self) -> torch.device:
        """Device on which the networks are."""
        return next(self.encoder.parameters()).device

    @property
    def statistics(self) -> CodeStatistics:
        """Mean and standard deviation of the training pictures' codes, with which codes are normalised."""
        return CodeStatistics(self.mean, self.std)

    @property
    def resolution(self) -> int:
        """R, pixels along each side of a picture."""
        vae = self.decoder.vae
        return self.latent_shape[1] * (1 if vae is None else first_stage.reduction(vae))

    @property
    def channels(self) -> int:
        """C, channels of a picture."""
        return self.encoder.config["channels"]

    @property
    def z_width(self) -> int:
        """D, dimensions of a code z."""
        return self.encoder.config["z_width"]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of the noise x_T."""
        return self.decoder.shape

    def encode(self, pictures: Tensor, batch: Batch = 64) -> Tensor:
        """Encode pictures to semantic codes; raise UserError for pictures of another type or shape.

        Args:
            pictures: uint8 [N, C, R, R].
            batch: most pictures at once; halved when memory runs out.

        Returns:
            Codes z, not normalised, float32 [N, D].
        """
        decoding.check_pictures(pictures, (self.channels, self.resolution, self.resolution))
        return codes.encode(self.encoder, pictures, batch)

    @torch.no_grad()
    def invert(
        self,
        pictures: Tensor,
        z: Tensor,
        steps: int | None = None,
        batch: Batch = 32,
        *,
        progress: Progress | None = None,
    ) -> Tensor:
        """Invert pictures to the noise x_T [N, Z, h, w] that decodes to them (DDIM; Preechakul et al. 2022, eq. 8).

        Args:
            pictures: uint8 [N, C, R, R].
            z: the pictures' codes [N, D], not normalised.
            steps: number of DDIM steps; the root mean square error of the decoded pictures falls as 1 / steps. None:
                the number saved with the model, or 250.
            batch: most pictures at once; halved when memory runs out.
            progress: called with the finished and the total number of steps; None: not called.

        Raises:
            UserError: pictures or codes do not fit the model, or `steps` is not between 1 and `decoder.most_steps`.
        """
        decoding.check_pictures(pictures, (self.channels, self.resolution, self.resolution))
        decoding.check_codes(z, len(pictures), self.z_width)
        count = self.saved.steps("encode_steps", self.decoder.most_steps) if steps is None else steps

        def encode(batch: slice) -> Iterator[State]:
            return self.decoder.up(self._latents(pictures[batch]), z[batch].to(self.device), count)

        check = self.decoder.finite
        noise = last_states(encode, len(pictures), batch, count, check, name="inverting", progress=progress)
        return torch.cat([torch.zeros(0, *self.latent_shape), *noise])

    @torch.no_grad()
    def decode(
        self,
        z: Tensor,
        x_T: Tensor | None = None,
        steps: int | None = None,
        batch: Batch = 32,
        stop: float = 0.0,
        *,
        seeds: Sequence[int] | None = None,
        trajectory: TrajectoryTarget | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Decode codes to pictures.

        Args:
            z: codes [N, D], not normalised.
            x_T: noise [N, Z, h, w], random or from `invert`; None: drawn from `seeds`.
            steps: number of DDIM steps; None: the number saved with the model, or 100.
            batch: most pictures at once; halved when memory runs out.
            stop: PDAE only: fraction of the steps, at the end, that the base model takes without z; 0: none.
            seeds: one for each picture; None: 0, 1, ... Not used if x_T is given.
            trajectory: PDAE only: second codes and weights, N each, for trajectory interpolation from z.
            progress: called with the finished and the total number of steps; None: not called.

        Returns:
            Pictures, uint8 [N, C, R, R].

        Raises:
            UserError: an input does not fit the model, `steps` is not between 1 and `decoder.most_steps`, or a DiffAE
                gets `stop` or `trajectory`.
        """
        decoding.check_codes(z, len(z), self.z_width)
        if trajectory is not None:
            decoding.check_codes(trajectory.z, len(z), self.z_width)
        if not 0 <= stop <= 1 or (stop > 0 and not self.decoder.stops):
            raise UserError(f"stop is {stop}; expected a share of the steps, 0 to 1, and 0 without a frozen model")
        count = self.saved.steps("decode_steps", self.decoder.most_steps) if steps is None else steps
        noise = self.noise(range(len(z)) if seeds is None else seeds) if x_T is None else x_T
        if tuple(noise.shape) != (len(z), *self.latent_shape):
            raise UserError(f"got noise {[*noise.shape]}; expected {[len(z), *self.latent_shape]}, one for each code")

        def decode(batch: slice) -> Iterator[State]:
            other = trajectory and TrajectoryTarget(*(value[batch].to(self.device) for value in trajectory))
            x, codes = noise[batch].to(self.device), z[batch].to(self.device)
            return self.decoder.down(x, codes, count, stop, trajectory=other)

        size, none = BatchSize.of(batch), torch.zeros(0, self.channels, self.resolution, self.resolution).byte()
        states = last_states(decode, len(z), size, count, self.decoder.finite, name="decoding", progress=progress)
        return torch.cat([none, *size.map(torch.cat([noise[:0], *states]), self._pictures)])

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Draw random noise x_T [N, Z, h, w], one sample from each of N seeds."""
        none = torch.zeros(0, *self.latent_shape)
        return torch.cat([none, *(rng.initial_noise([seed], self.latent_shape) for seed in seeds)])

    def sample_z(
        self,
        seeds: Sequence[int],
        steps: int | None = None,
        conditions: Sequence[str | int] | None = None,
        *,
        guidance_scale: float | None = None,
        clip: Clip = "none",
    ) -> Tensor:
        """Sample new codes z [N, D], not normalised, from the prior, by DDIM.

        `seeds` has N seeds. `conditions` are N classes or prompts (None: no condition). `steps` or `guidance_scale`
        None: the value saved with the model, or else 100 or 1. `clip` none: no clipping; published: clip noise and x_0
        to [-1, 1], as PDAE's released code does.

        Raises:
            UserError: the model has no prior, or an argument does not fit the prior, see `CodePrior.sample`.
        """
        if self.prior is None:
            raise UserError("this model has no prior to sample codes from; train one with `method: prior`")
        times, conditioned = self.prior.schedule_config.num_train_timesteps, conditions is not None
        steps, scale = self.saved.of_prior(steps, guidance_scale, times, conditioned)
        return self.statistics.denormalise(self.prior.sample(seeds, steps, conditions, guidance_scale=scale, clip=clip))

    def _latents(self, pictures: Tensor) -> Tensor:
        return decoding.encode_pictures(self.decoder.vae, pictures.to(self.device))

    def _pictures(self, x: Tensor) -> Tensor:
        return decoding.decode_pictures(self.decoder.vae, x.to(self.device))

    def to(self, device: torch.device | str) -> "SemanticModel":
        """Move all networks to a device, in place; return this object."""
        self.encoder.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]  (diffusers decorates it)
        self.decoder.to(device)
        if self.prior is not None:
            self.prior.to(device)
        return self

    def save(self, folder: Path | str) -> None:
        """Write the model to `folder`, a sub-folder per component; PDAE's base model is referred to, not copied."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.encoder.save_pretrained(folder / "encoder")
        index: dict[str, Any] = {
            "_class_name": SEMANTIC,
            "encoder": (codes.LIBRARY, type(self.encoder).__name__),
            **self.decoder.save(folder),
        }
        self.statistics.save(folder)
        if self.prior is not None:
            self.prior.save(folder / code_prior.FOLDER)
            index[code_prior.FOLDER] = ("ldm_kit.models.prior", "CodePrior")
        self.saved.write(folder)
        write_index(folder, index)

    @classmethod
    def load(
        cls, folder: Path | str, device: torch.device | str = "cpu", precision: torch.dtype | None = None
    ) -> "SemanticModel":
        """Load a semantic model. No pickled or remote code is run.

        Args:
            folder: a saved model's folder, or a run's folder with a finished model.
            device: where the networks are put.
            precision: dtype of the decoder's autocast; None: no autocast.

        Raises:
            UserError: the folder does not exist or holds another kind of model; a component is missing, broken or
                changed or does not fit the others; or the base model is missing or has changed.
        """
        opened = codes.open_semantic(folder)
        encoder = codes.open_encoder(opened, device)
        width = encoder.config["z_width"]
        decoder = load_decoder(opened, device)
        decoder.precision = precision
        if decoder.z_width != width:
            raise UserError(
                f"{opened}: the decoder takes codes of {decoder.z_width} numbers, the encoder's have {width}"
            )
        has_prior = code_prior.FOLDER in opened
        prior = CodePrior.load(opened.subfolder(code_prior.FOLDER), width, device) if has_prior else None
        return cls(encoder, decoder, *CodeStatistics.load(opened.path, width), prior, SavedSampling.read(opened.path))
