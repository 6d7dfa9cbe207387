"""A trained semantic model (DiffAE, or PDAE on its frozen base): pictures to (z, x_T) and back, and new codes.

A folder has the diffusers layout with safetensors: `encoder/`, `statistics.safetensors` (mean and deviation of the
training set's codes), optionally `prior/`, `model_index.json`; and DiffAE's `unet/`, `scheduler/` and, in latents,
`vae/`, or PDAE's `shift/`, whose base model is referred to by its path from there or its commit, and a sha256.
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
from ldm_kit.models import codes
from ldm_kit.models import prior as code_prior
from ldm_kit.models.codes import CodeStatistics, Encoder
from ldm_kit.models.decoder_loading import load_decoder
from ldm_kit.models.decoders import Decoder, TrajectoryTarget
from ldm_kit.models.decoding import Progress, decode_pictures, encode_pictures, last_states
from ldm_kit.models.decoding import check_codes as check_codes
from ldm_kit.models.decoding import check_pictures as check_pictures
from ldm_kit.models.folder import SEMANTIC
from ldm_kit.models.prior import Clip, CodePrior
from ldm_kit.models.saved_sampling import SavedSampling
from ldm_kit.models.saving import write_index


@dataclass(eq=False)
class SemanticModel:
    """Encoder and decoder in evaluation mode. Codes, noise and pictures are on the CPU, whatever the device."""

    encoder: Encoder  # pictures [N, C, R, R] in [-1, 1] to codes z [N, D]
    decoder: Decoder  # between noise x_T and latents, under z; of DiffAE or PDAE
    mean: Tensor  # [D] float32, of the training set's codes
    std: Tensor  # [D]
    prior: CodePrior | None = None  # samples new codes
    saved: SavedSampling = field(default_factory=SavedSampling)  # what its runs were judged with: the defaults

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.encoder.parameters()).device

    @property
    def statistics(self) -> CodeStatistics:
        """Mean and deviation of the training set's codes, by which they are normalised."""
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
        """D, numbers in a code."""
        return self.encoder.config["z_width"]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of the noise x_T."""
        return self.decoder.shape

    def encode(self, pictures: Tensor, batch: Batch = 64) -> Tensor:
        """Encode pictures to codes z, float32 [N, D], not normalised.

        Args:
            pictures: uint8 [N, C, R, R].
            batch: most pictures at a time; halved when memory runs out.

        Returns:
            z, float32 [N, D]; raises UserError for pictures of another type or shape.
        """
        check_pictures(pictures, (self.channels, self.resolution, self.resolution))
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
            z: their codes [N, D].
            steps: of DDIM; the decoded pictures err (in the root of the mean square) as 1 / steps. None: those that its
                run was judged with, or 250.
            batch: most pictures at a time; halved when memory runs out.
            progress: called with (done, all) steps.

        Raises:
            UserError: pictures or codes that do not fit the model, or more steps than it has training times.
        """
        check_pictures(pictures, (self.channels, self.resolution, self.resolution))
        check_codes(z, len(pictures), self.z_width)
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
            z: codes [N, D], as `encode` gives them.
            x_T: noise [N, Z, h, w], inferred or random; None: random, from `seeds`.
            steps: of DDIM; None: those that its run was judged with, or 100.
            batch: most pictures at a time; halved when memory runs out.
            stop: of PDAE, the share of the last steps that is left to the base model.
            seeds: one for each picture; None: 0, 1, ...
            trajectory: of PDAE, other codes and weights, one each, between which and z every step's gradient lies.
            progress: called with (done, all) steps.

        Returns:
            uint8 [N, C, R, R].

        Raises:
            UserError: inputs that do not fit, more steps than training times, or a stop or trajectories of DiffAE.
        """
        check_codes(z, len(z), self.z_width)
        if trajectory is not None:
            check_codes(trajectory.z, len(z), self.z_width)
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
        """Draw random x_T [N, Z, h, w], each from its own seed."""
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
        """Sample new codes z [N, D] from the prior, not normalised; the arguments are those of `CodePrior.sample`.

        Steps and guidance are those that the prior's run was judged with where they are None, or else 100 and 1.

        Raises:
            UserError: there is no prior, or it does not know the classes.
        """
        if self.prior is None:
            raise UserError("this model has no prior to sample codes from; train one with `method: prior`")
        times, conditioned = self.prior.schedule_config.num_train_timesteps, conditions is not None
        steps, scale = self.saved.of_prior(steps, guidance_scale, times, conditioned)
        return self.statistics.denormalise(self.prior.sample(seeds, steps, conditions, guidance_scale=scale, clip=clip))

    def _latents(self, pictures: Tensor) -> Tensor:
        return encode_pictures(self.decoder.vae, pictures.to(self.device))

    def _pictures(self, x: Tensor) -> Tensor:
        return decode_pictures(self.decoder.vae, x.to(self.device))

    def to(self, device: torch.device | str) -> "SemanticModel":
        """Move all networks."""
        self.encoder.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]  (diffusers decorates it)
        self.decoder.to(device)
        if self.prior is not None:
            self.prior.to(device)
        return self

    def save(self, folder: Path | str) -> None:
        """Write the layout above; of a PDAE's base model, the reference alone."""
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
        """Load a saved folder, or the finished one in a run's folder. No pickled or remote code is run.

        Args:
            folder: a saved model's, or a run's.
            device: where the networks are put.
            precision: the decoder runs under autocast to it; None: float32.

        Raises:
            UserError: no such folder, a model of another kind, a component that is missing, broken, has changed or does
                not fit the others, or a base model that is not there or has changed.
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
