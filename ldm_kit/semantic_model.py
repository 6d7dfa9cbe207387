"""A trained semantic model (DiffAE, or PDAE on its frozen base): pictures to (z, x_T) and back, and new codes.

A folder has the diffusers layout with safetensors: `encoder/`, `statistics.safetensors` (mean and deviation of the
training set's codes), optionally `prior/`, `model_index.json`; and DiffAE's `unet/`, `scheduler/` and, in latents, `vae/`,
or PDAE's `shift/`, whose base is referred to by its path from here and a sha256.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor

from autoencoder import base as first_stage
from conditioning.semantic import condition_of
from ldm_kit import code_prior, codes, parts
from ldm_kit.code_prior import CodePrior, strided
from ldm_kit.codes import Encoder
from ldm_kit.config import UserError
from ldm_kit.data.images import to_bytes, to_unit
from ldm_kit.diffusion import randomness
from ldm_kit.diffusion.denoiser import Clipped, Denoiser, NetworkDenoiser
from ldm_kit.diffusion.prediction import Target
from ldm_kit.diffusion.samplers import State, ddim
from ldm_kit.diffusion.schedule import Schedule, ScheduleConfig, build
from ldm_kit.diffusion.semantic import (
    NetworkEstimator,
    Shifted,
    pdae_decode,
    pdae_encode,
    pdae_grid,
    stochastic_code,
)
from ldm_kit.frozen import Frozen, reopened
from ldm_kit.nets.layout import choose_attention
from ldm_kit.nets.semantic_unet import SemanticUNet, apply_semantic
from ldm_kit.nets.shift_unet import ShiftUNet

Progress = Callable[[int, int], object]  # (steps done, steps in all), over all batches
_UNET, _SHIFT = ("ldm_kit.nets.semantic_unet", "SemanticUNet"), ("ldm_kit.nets.shift_unet", "ShiftUNet")


@dataclass(eq=False)
class SemanticModel:
    """Encoder and decoder in evaluation mode. Codes, noise and pictures come and go on the CPU, whatever the device.

    A picture is clipped to its range at every step in pixels, and never in latents.
    """

    encoder: Encoder
    decoder: SemanticUNet | ShiftUNet
    vae: AutoencoderKL | VQModel | None  # None: pixels
    schedule_config: ScheduleConfig
    target: Target
    mean: Tensor  # [D] float32, of the training set's codes
    std: Tensor  # [D]
    base: Frozen | None = None  # PDAE's
    prior: CodePrior | None = None
    precision: torch.dtype | None = None  # autocast to this dtype while inverting and decoding
    schedule: Schedule = field(init=False)

    def __post_init__(self) -> None:
        self.schedule = build(self.schedule_config).to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.encoder.parameters()).device

    @property
    def resolution(self) -> int:
        """R, pixels along each side."""
        halved = 0 if self.vae is None else len(self.vae.config["block_out_channels"]) - 1
        return self.latent_shape[1] * 2**halved

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
        if self.base is not None:
            about: Mapping[str, Any] = self.base.unet.config
            return about["in_channels"], about["sample_size"], about["sample_size"]
        about = self.decoder.config
        return about["channels"], about["sample_size"], about["sample_size"]

    def encode(self, pictures: Tensor, batch: int = 64) -> Tensor:
        """Codes z [N, D] float32, not normalised, of pictures uint8 [N, C, R, R]; raises UserError for others."""
        self._refuse_pictures(pictures)
        return codes.encode(self.encoder, pictures, batch)

    def normalised(self, z: Tensor) -> Tensor:
        """Codes [N, D] with the training set's mean 0 and deviation 1 in each dimension."""
        return (z - self.mean) / self.std

    @torch.no_grad()
    def invert(
        self, pictures: Tensor, z: Tensor, steps: int = 250, batch: int = 32, *, progress: Progress | None = None
    ) -> Tensor:
        """The stochastic code x_T [N, Z, h, w] float32 of pictures uint8 [N, C, R, R] under codes z [N, D].

        It is found by DDIM upwards (Preechakul et al. 2022, eq. 8); the error of decoding it falls as 1 / steps.

        Raises:
            UserError: pictures or codes that do not fit the model, or more steps than it has training times.
        """
        self._refuse_pictures(pictures)
        self._refuse_codes(z, len(pictures))

        def walk(part: slice) -> Iterator[State]:
            return self._up(self._latents(pictures[part]), z[part].to(self.device), steps)

        found = self._walked(len(pictures), batch, steps, walk, progress)
        return torch.cat(found) if found else torch.zeros(0, *self.latent_shape)

    @torch.no_grad()
    def decode(
        self,
        z: Tensor,
        x_T: Tensor | None = None,  # noqa: N803 (the paper's letter)
        steps: int = 100,
        batch: int = 32,
        stop: float = 0.0,
        *,
        seeds: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Pictures uint8 [N, C, R, R] of codes z [N, D].

        Args:
            z: as `encode` gives them.
            x_T: noise or stochastic codes [N, Z, h, w]; None: random, from `seeds`.
            steps: of DDIM.
            batch: pictures at a time.
            stop: of PDAE, the share of the last steps that is left to the frozen model.
            seeds: one for each picture; None: 0, 1, ...
            progress: called with (done, all) steps.

        Raises:
            UserError: codes, noise or seeds that do not fit, more steps than training times, or a stop of DiffAE.
        """
        self._refuse_codes(z, len(z))
        if not 0 <= stop <= 1 or (stop > 0 and self.base is None):
            raise UserError(f"stop is {stop}; expected a share of the steps from 0 to 1, and 0 for a DiffAE")
        x_T = self.noise(range(len(z)) if seeds is None else seeds) if x_T is None else x_T
        if tuple(x_T.shape) != (len(z), *self.latent_shape):
            raise UserError(f"x_T is {[*x_T.shape]}; expected noise {[len(z), *self.latent_shape]}, one for each code")

        def walk(part: slice) -> Iterator[State]:
            return self._down(x_T[part].to(self.device), z[part].to(self.device), steps, stop)

        found = self._walked(len(z), batch, steps, walk, progress)
        pictures = [self._pictures(x) for x in found]
        return torch.cat(pictures) if pictures else torch.zeros(0, self.channels, *[self.resolution] * 2).byte()

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Random x_T [N, Z, h, w], each from its own seed."""
        return torch.stack([randomness.picture_noise([seed], self.latent_shape)[0] for seed in seeds])

    def sample_z(
        self, seeds: Sequence[int], steps: int = 100, classes: Sequence[str | int] | None = None
    ) -> Tensor:
        """New codes z [N, D] out of the prior, not normalised, each from its own seed.

        Raises:
            UserError: there is no prior, or it does not know the classes.
        """
        if self.prior is None:
            raise UserError("this model has no prior to draw codes from; train one with `method: prior`")
        return self.prior.draw(seeds, steps, classes) * self.std + self.mean

    def denoiser(self) -> Denoiser:
        """What predicts under a `condition_of(z)`; in pixels x_0 is clipped. For walks of other kinds (`grid`)."""
        if isinstance(self.decoder, SemanticUNet):
            network = self._cast(partial(apply_semantic, self.decoder))
            return self._clipped(NetworkDenoiser(network, self.schedule, self.target))
        assert self.base is not None
        shift, base = self.decoder, self.base
        network = self._cast(lambda x, t, cond: shift(x, t, cond.vector, base.null))
        estimator = NetworkEstimator(network, self.schedule, self.target, base.learned_range)
        return self._clipped(Shifted(estimator, self.schedule))

    def grid(self, steps: int) -> list[int]:
        """Rising times of so many steps: PDAE's steps + 1, or DiffAE's; raises UserError for too many."""
        if self.base is None:
            return strided(len(self.schedule), steps)[-2::-1]
        try:
            return pdae_grid(len(self.schedule), steps)
        except ValueError as error:
            raise UserError(f"steps: {error}") from None

    def _up(self, x: Tensor, z: Tensor, steps: int) -> Iterator[State]:
        walk = stochastic_code if self.base is None else pdae_encode
        return walk(self.denoiser(), x, self.grid(steps), condition_of(z))

    def _down(self, x: Tensor, z: Tensor, steps: int, stop: float) -> Iterator[State]:
        grid, cond = self.grid(steps), condition_of(z)
        if self.base is None:
            return ddim(self.denoiser(), x, [*grid[::-1], -1], cond)
        frozen = self._clipped(self._frozen()) if stop > 0 else None
        return pdae_decode(self.denoiser(), x, grid, cond, stop=stop, frozen=frozen)

    def _frozen(self) -> Denoiser:
        assert self.base is not None
        plain = self.base.denoiser(self.schedule)
        return replace(plain, network=self._cast(plain.network))

    def _clipped(self, denoiser: Denoiser) -> Denoiser:
        return Clipped(denoiser) if self.vae is None else denoiser

    def _cast(self, network: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            kind = self.device.type
            with nullcontext() if self.precision is None else torch.autocast(kind, self.precision):
                return network(*given)

        return call

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
        x = to_unit(pictures.to(self.device))
        return x if self.vae is None else first_stage.encode(self.vae, x).mean.float()

    def _pictures(self, x: Tensor) -> Tensor:
        return to_bytes(x if self.vae is None else first_stage.decode(self.vae, x.to(self.device)).float().cpu())

    def _refuse_pictures(self, pictures: Tensor) -> None:
        wanted = (self.channels, self.resolution, self.resolution)
        if pictures.dtype != torch.uint8 or tuple(pictures.shape[1:]) != wanted:
            kind = str(pictures.dtype).removeprefix("torch.")
            raise UserError(f"expected pictures, uint8 {['N', *wanted]}, got {kind} {[*pictures.shape]}")

    def _refuse_codes(self, z: Tensor, count: int) -> None:
        if tuple(z.shape) != (count, self.z_width):
            raise UserError(f"expected {count} codes of {self.z_width} numbers, got {[*z.shape]}")

    def to(self, device: torch.device | str) -> "SemanticModel":
        """Move all networks."""
        for module in (self.encoder, self.decoder, self.vae, self.base, self.prior):
            if module is not None:
                module.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]  (diffusers decorates it)
        self.schedule = self.schedule.to(device)
        return self

    def save(self, folder: Path | str) -> None:
        """Write the layout above; of a PDAE's base, the reference alone."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        index: dict[str, Any] = {"_class_name": parts.SEMANTIC}
        index["encoder"] = ("conditioning.semantic", type(self.encoder).__name__)
        self.encoder.save_pretrained(folder / "encoder")
        if self.base is None:
            index |= self._save_parts(folder)
        else:
            self.decoder.save_pretrained(folder / "shift")
            index |= {"shift": _SHIFT, "base": self.base.reference(folder)}
        codes.save_statistics(folder, self.mean, self.std)
        if self.prior is not None:
            self.prior.save(folder / code_prior.FOLDER)
            index[code_prior.FOLDER] = ("ldm_kit.code_prior", "CodePrior")
        (folder / parts.INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        parts.tidy(folder)

    def _save_parts(self, folder: Path) -> dict[str, Any]:
        scheduler = parts.scheduler(self.schedule_config, self.target, "small", pixels=self.vae is None)
        scheduler.save_pretrained(folder / "scheduler")
        self.decoder.save_pretrained(folder / "unet")
        entries: dict[str, Any] = {"unet": _UNET, "scheduler": ("diffusers", type(scheduler).__name__)}
        if self.vae is not None:
            self.vae.save_pretrained(folder / "vae")
            entries["vae"] = ("diffusers", type(self.vae).__name__)
        return entries

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
        index, encoder = codes.read_index(folder), codes.open_encoder(folder)
        width = encoder.config["z_width"]
        found = _shifted(folder, index) if "shift" in index else _plain(folder, index)
        if found["decoder"].config["z_width"] != width:
            raise UserError(f"{folder}: the decoder takes codes of another width than the encoder's {width}")
        prior = CodePrior.load(folder / code_prior.FOLDER, width) if code_prior.FOLDER in index else None
        mean, std = codes.load_statistics(folder, width)
        model = cls(encoder, mean=mean, std=std, prior=prior, precision=precision, **found)
        for net in (model.encoder, model.decoder, model.vae):
            if net is not None:
                net.eval().requires_grad_(False)
                choose_attention(net, device, "auto")
        return model.to(device)


def _plain(folder: Path, index: dict[str, object]) -> dict[str, Any]:
    """DiffAE's parts."""
    kind = codes.entry(folder, index, "unet", {_UNET[1]: _UNET[0]})
    unet = parts.component(folder, "unet", kind, {kind: SemanticUNet})
    vae = None
    if "vae" in index:
        kind = codes.entry(folder, index, "vae", dict.fromkeys(parts.FIRST_STAGE, "diffusers"))
        vae = parts.component(folder, "vae", kind, parts.FIRST_STAGE)
    schedule, target, _ = parts.schedule(folder)
    return {"decoder": unet, "vae": vae, "schedule_config": schedule, "target": target}


def _shifted(folder: Path, index: dict[str, object]) -> dict[str, Any]:
    """PDAE's parts, on its base."""
    kind = codes.entry(folder, index, "shift", {_SHIFT[1]: _SHIFT[0]})
    base = reopened(folder, index.get("base"))
    shift = parts.component(folder, "shift", kind, {kind: _On(base)})
    about = {"schedule_config": base.schedule_config, "target": base.target}
    return {"decoder": shift, "vae": base.vae, "base": base, **about}


@dataclass(frozen=True)
class _On:
    """`ShiftUNet` with its base, as `parts.component` wants a class."""

    base: Frozen

    def from_pretrained(self, place: Path, **options: Any) -> Any:
        return ShiftUNet.from_pretrained(place, base=self.base.unet, **options)
