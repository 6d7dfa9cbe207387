"""Save consistency models with diffusers' scheduler for them; and the decoder of a DiffAE that became one.

A consistency model's folder has the diffusers layout, like that of any other model, but its scheduler is LCMScheduler
or, for flow models, FlowMatchLCMScheduler, by which it is recognised.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers import FlowMatchLCMScheduler, LCMScheduler
from torch import Tensor

from conditioning.semantic import condition_of
from ldm_kit.config import UserError
from ldm_kit.diffusion.consistency import ConsistencyDenoiser
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.respacing import trailing
from ldm_kit.diffusion.samplers import State, ddim
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.models.consistency_names import LATENT_SCHEDULERS
from ldm_kit.models.decoders import CodeDecoder, TrajectoryTarget
from ldm_kit.models.folder import INDEX, read_json
from ldm_kit.models.saving import scheduler_entry, write_index
from ldm_kit.solvers.scheduler_config import scheduler_config

if TYPE_CHECKING:
    from ldm_kit.models.pipeline import Pipeline


def lcm_scheduler(schedule: ScheduleConfig, prediction_type: PredictionType, *, pixels: bool) -> Any:
    """Return the diffusers scheduler of a consistency model, to sample as ldm_kit's sampler `consistency` does.

    LCMScheduler visits the same timesteps as the sampler if the number of steps divides the number of training
    timesteps, and otherwise timesteps that differ by one at most. FlowMatchLCMScheduler visits the same timesteps only
    if they are given to its `set_timesteps`.

    Args:
        schedule: noise schedule of the model.
        prediction_type: what the network predicts.
        pixels: whether it is a pixel model, whose x_0 is clipped to [-1, 1].
    """
    total = schedule.num_train_timesteps
    if schedule.kind == "flow":
        return FlowMatchLCMScheduler(num_train_timesteps=total)
    config = {**scheduler_config(schedule, prediction_type), "clip_sample": pixels, "original_inference_steps": total}
    return LCMScheduler.from_config(config)


def is_consistency_model(index: Mapping[str, Any]) -> bool:
    """Return whether `index`, the contents of a model_index.json, names the scheduler of a consistency model."""
    return index.get("scheduler") in [["diffusers", name] for name in LATENT_SCHEDULERS]


def save_consistency_model(pipeline: "Pipeline", folder: Path) -> None:
    """Write a consistency model to a folder in the diffusers layout, with the scheduler of consistency models."""
    pipeline.save(folder)
    scheduler = lcm_scheduler(pipeline.schedule_config, pipeline.target, pixels=pipeline.vae is None)
    scheduler.save_pretrained(folder / "scheduler")
    index = {**read_json(folder / INDEX, str(folder / INDEX)), "scheduler": scheduler_entry(scheduler)}
    if index["_class_name"] == "DDIMPipeline":  # which would turn the scheduler into DDIM's; DDPM's takes any
        index["_class_name"] = "DDPMPipeline"
    write_index(folder, index)


@dataclass(eq=False)
class ConsistencyDecoder(CodeDecoder):
    """The decoder of a DiffAE that was made a consistency model: it decodes in one step or a few, and cannot encode.

    A step predicts the clean latent f(x, t), then noises it to the next timestep with the noise that x and f(x, t)
    imply, not with fresh noise, so that x_T and z alone determine the picture.
    """

    def up(self, x: Tensor, z: Tensor, steps: int) -> Iterator[State]:
        """Raise UserError for any arguments: latents cannot be encoded, as a consistency function has no inverse."""
        raise UserError(
            "this consistency model decodes in a few steps, but cannot invert a picture to its noise x_T; expected the "
            "model that it was made from, or noise at random"
        )

    def down(
        self, x: Tensor, z: Tensor, steps: int, stop: float, *, trajectory: TrajectoryTarget | None = None
    ) -> Iterator[State]:
        """Decode noise x [B, ...] with codes z [B, D] to latents in `steps` evenly spaced steps.

        `stop` must be 0 and `trajectory` None, as these are for PDAE.

        Yields:
            The state after each step; x of the last state is the latents.

        Raises:
            UserError: more steps than training timesteps; `stop` is not 0, or a trajectory is given.
        """
        super().down(x, z, 1, stop, trajectory=trajectory)  # refuses what a DiffAE has not
        try:
            times = trailing(len(self.schedule), steps)
        except ValueError as error:
            raise UserError(f"steps: {error}") from None
        return ddim(ConsistencyDenoiser(self.denoiser()), x, times, condition_of(z))

    def save(self, folder: Path) -> dict[str, Any]:
        """Write `unet/`, `scheduler/` and `vae/` to a model's folder; return their entries for model_index.json."""
        entries = super().save(folder)
        scheduler = lcm_scheduler(self.schedule_config, self.target, pixels=self.vae is None)
        scheduler.save_pretrained(folder / "scheduler")
        return {**entries, "scheduler": scheduler_entry(scheduler)}
