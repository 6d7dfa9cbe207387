"""A trained semantic model (DiffAE, or PDAE on its frozen base): pictures to (z, x_T) and back, and new codes.

A folder has the diffusers layout with safetensors: `encoder/`, `statistics.safetensors` (mean and deviation of the
training set's codes), optionally `prior/`, `model_index.json`; and DiffAE's `unet/`, `scheduler/` and, in latents,
`vae/`, or PDAE's `shift/`, whose base is referred to by its path from there, or its commit on
the Hub, and a sha256.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoencoder import base as first_stage
from ldm_kit.config import UserError
from ldm_kit.data.images import to_bytes, to_unit
from ldm_kit.diffusion import rng
from ldm_kit.diffusion.samplers import State
from ldm_kit.models import codes, decoders
from ldm_kit.models import folder as parts
from ldm_kit.models import prior as code_prior
from ldm_kit.models.codes import Encoder
from ldm_kit.models.decoders import Decoder, TrajectoryTarget
from ldm_kit.models.prior import Clip, CodePrior

Progress = Callable[[int, int], object]  # (steps done, steps in all), over all batches


@dataclass(eq=False)
class SemanticModel:
    """Encoder and decoder in evaluation mode. Codes, noise and pictures come and go on the CPU, whatever the device."""

    encoder: Encoder
    decoder: Decoder
    mean: Tensor  # [D] float32, of the training set's codes
    std: Tensor  # [D]
    prior: CodePrior | None = None

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.encoder.parameters()).device

    @property
    def resolution(self) -> int:
        """R, pixels along each side."""
        vae = self.decoder.vae
        return self.latent_shape[1] * (1 if vae is None else first_stage.reduction(vae))

    @property
    def channels(self) -> int:
        """C of pictures."""
        return self.encoder.config["channels"]

    @property
    def z_width(self) -> int:
        """D, numbers in a code."""
        return self.encoder.config["z_width"]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(Z, h, w) of the noise x_T."""
        return self.decoder.shape

    def encode(self, pictures: Tensor, batch: int = 64) -> Tensor:
        """Codes z [N, D] float32, not normalised, of pictures uint8 [N, C, R, R]; raises UserError for others."""
        self._refuse_pictures(pictures)
        return codes.encode(self.encoder, pictures, batch)

    @torch.no_grad()
    def invert(
        self, pictures: Tensor, z: Tensor, steps: int = 250, batch: int = 32, *, progress: Progress | None = None
    ) -> Tensor:
        """The noise x_T [N, Z, h, w] float32 that decodes to pictures uint8 [N, C, R, R] under codes z [N, D].

        It is found by DDIM upwards; decoding it errs (in the root of the mean square) as 1 / steps.

        Raises:
            UserError: pictures or codes that do not fit the model, or more steps than it has training times.
        """
        self._refuse_pictures(pictures)
        self._refuse_codes(z, len(pictures))

        def walk(part: slice) -> Iterator[State]:
            return self.decoder.up(self._latents(pictures[part]), z[part].to(self.device), steps)

        found = self._walked(len(pictures), batch, steps, walk, progress)
        return torch.cat([torch.zeros(0, *self.latent_shape), *found])

    @torch.no_grad()
    def decode(
        self,
        z: Tensor,
        x_T: Tensor | None = None,
        steps: int = 100,
        batch: int = 32,
        stop: float = 0.0,
        *,
        seeds: Sequence[int] | None = None,
        towards: TrajectoryTarget | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Pictures uint8 [N, C, R, R] of codes z [N, D].

        Args:
            z: as `encode` gives them.
            x_T: noise [N, Z, h, w], inferred or random; None: random, from `seeds`.
            steps: of DDIM.
            batch: pictures at a time.
            stop: of PDAE, the share of the last steps that is left to the frozen model.
            seeds: one for each picture; None: 0, 1, ...
            towards: of PDAE, other codes and weights, one each, between which and z every step's gradient lies.
            progress: called with (done, all) steps.

        Raises:
            UserError: codes, noise or seeds that do not fit, more steps than training times, or a stop or trajectories
                of DiffAE.
        """
        self._refuse_codes(z, len(z))
        if towards is not None:
            self._refuse_codes(towards.z, len(z))
        if not 0 <= stop <= 1 or (stop > 0 and not self.decoder.stops):
            raise UserError(f"stop is {stop}; expected a share of the steps, 0 to 1, and 0 without a frozen model")
        noise = self.noise(range(len(z)) if seeds is None else seeds) if x_T is None else x_T
        if tuple(noise.shape) != (len(z), *self.latent_shape):
            raise UserError(f"got noise {[*noise.shape]}; expected {[len(z), *self.latent_shape]}, one for each code")

        def walk(part: slice) -> Iterator[State]:
            other = None if towards is None else TrajectoryTarget(*(value[part].to(self.device) for value in towards))
            return self.decoder.down(noise[part].to(self.device), z[part].to(self.device), steps, stop, towards=other)

        found = self._walked(len(z), batch, steps, walk, progress)
        none = torch.zeros(0, self.channels, self.resolution, self.resolution, dtype=torch.uint8)
        return torch.cat([none, *(self._pictures(x) for x in found)])

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Random x_T [N, Z, h, w], each from its own seed."""
        drawn = [rng.initial_noise([seed], self.latent_shape) for seed in seeds]
        return torch.cat([torch.zeros(0, *self.latent_shape), *drawn])

    def sample_z(
        self,
        seeds: Sequence[int],
        steps: int = 100,
        told: Sequence[str | int] | None = None,
        *,
        guidance_scale: float = 1.0,
        clip: Clip = "none",
    ) -> Tensor:
        """New codes z [N, D] out of the prior, not normalised, each from its own seed and class or prompt.

        The arguments are those of `CodePrior.draw`.

        Raises:
            UserError: there is no prior, or it does not know the classes.
        """
        if self.prior is None:
            raise UserError("this model has no prior to draw codes from; train one with `method: prior`")
        z = self.prior.draw(seeds, steps, told, guidance_scale=guidance_scale, clip=clip)
        return z * self.std + self.mean

    def _walked(
        self,
        count: int,
        batch: int,
        steps: int,
        walk: Callable[[slice], Iterator[State]],
        progress: Progress | None,
    ) -> list[Tensor]:
        """Where the walk of each batch ends, on the CPU."""
        found: list[Tensor] = []
        starts = range(0, count, batch)
        for number, start in enumerate(starts):
            x = torch.empty(0)
            for step, state in enumerate(walk(slice(start, start + batch)), 1):
                x = state.x
                if progress is not None:
                    progress(number * steps + step, len(starts) * steps)
            found.append(x.float().cpu())
        return found

    def _latents(self, pictures: Tensor) -> Tensor:
        x, vae = to_unit(pictures.to(self.device)), self.decoder.vae
        return x if vae is None else first_stage.encode(vae, x).mean.float()

    def _pictures(self, x: Tensor) -> Tensor:
        vae = self.decoder.vae
        return to_bytes(x if vae is None else first_stage.decode(vae, x.to(self.device)).float().cpu())

    def _refuse_pictures(self, pictures: Tensor) -> None:
        wanted = (self.channels, self.resolution, self.resolution)
        if pictures.dtype != torch.uint8 or tuple(pictures.shape[1:]) != wanted:
            kind = str(pictures.dtype).removeprefix("torch.")
            sizes = ", ".join(map(str, wanted))
            raise UserError(f"expected pictures, uint8 [N, {sizes}], got {kind} {[*pictures.shape]}")

    def _refuse_codes(self, z: Tensor, count: int) -> None:
        if tuple(z.shape) != (count, self.z_width):
            raise UserError(f"expected {count} codes of {self.z_width} numbers each, got {[*z.shape]}")

    def to(self, device: torch.device | str) -> "SemanticModel":
        """Move all networks."""
        self.encoder.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]  (diffusers decorates it)
        self.decoder.to(device)
        if self.prior is not None:
            self.prior.to(device)
        return self

    def save(self, folder: Path | str) -> None:
        """Write the layout above; of a PDAE's base, the reference alone."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.encoder.save_pretrained(folder / "encoder")
        index: dict[str, Any] = {
            "_class_name": parts.SEMANTIC,
            "encoder": (codes.LIBRARY, type(self.encoder).__name__),
            **self.decoder.save(folder),
        }
        codes.save_statistics(folder, self.mean, self.std)
        if self.prior is not None:
            self.prior.save(folder / code_prior.FOLDER)
            index[code_prior.FOLDER] = ("ldm_kit.models.prior", "CodePrior")
        (folder / parts.INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        parts.strip_paths(folder)

    @classmethod
    def load(
        cls, folder: Path | str, device: torch.device | str = "cpu", precision: torch.dtype | None = None
    ) -> "SemanticModel":
        """Open a saved folder, or the finished one in a run's folder. No pickled or remote code is run.

        Raises:
            UserError: no such folder, a model of another kind, a part that is missing, broken, or does not fit the
                others, or a frozen base that is not there or has changed.
        """
        folder = parts.model_folder(Path(folder))
        index, encoder = codes.read_index(folder), codes.open_encoder(folder, device)
        width = encoder.config["z_width"]
        decoder = decoders.load(folder, index, device)
        decoder.precision = precision
        if decoder.z_width != width:
            raise UserError(
                f"{folder}: the decoder takes codes of {decoder.z_width} numbers, the encoder's have {width}"
            )
        prior = CodePrior.load(folder / code_prior.FOLDER, width, device) if code_prior.FOLDER in index else None
        return cls(encoder, decoder, *codes.load_statistics(folder, width), prior).to(device)
