"""A prior over the image embeddings of a decoder, which then samples pictures from prompts alone (unCLIP).

Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents", section 2.2. The network is the
MLP of DiffAE's prior (Preechakul et al. 2022), where the paper has a causal transformer; both predict the embedding. It
is saved in `prior/` of the decoder's folder, with the embeddings' statistics and the digest of their encoder.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from conditioning.base import Conditioner, ConditioningError
from ldm_kit.config import UserError
from ldm_kit.models.codes import CodeStatistics
from ldm_kit.models.folder import INDEX, ModelFolder, read_json
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.picture_condition import EMBEDDING, Pictures
from ldm_kit.models.prior import FOLDER, CodePrior
from ldm_kit.models.saved_sampling import SavedSampling

if TYPE_CHECKING:
    import torch

    from ldm_kit.models.pipeline import Pipeline

FILE = "embedding.json"
ENTRY = ("ldm_kit.models.prior", "CodePrior")  # entry of model_index.json


@dataclass(eq=False)
class ImagePrior:
    """A prior over normalised image embeddings, conditioned on text, on classes, or on nothing."""

    prior: CodePrior
    statistics: CodeStatistics  # mean and standard deviation of the training pictures' embeddings
    encoder: str  # `frozen_encoder` of the conditioner whose embeddings are sampled

    def sample(
        self,
        prompts: Sequence[str | int],
        seeds: Sequence[int],
        saved: SavedSampling,
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """Sample the embeddings of N pictures that no one has seen.

        Args:
            prompts: N prompts or classes, whichever the prior was trained with; "": no condition.
            seeds: N seeds.
            saved: options saved with the model, for those left out.
            steps: number of DDIM steps; None: the saved number, or 100.
            guidance_scale: scale of classifier-free guidance of the embedding; None: the saved one, or 1.

        Returns:
            Embeddings float32 [N, D], scaled to a root mean square of 1, as those of pictures are.

        Raises:
            UserError: the prior does not know a prompt, or steps or scale do not fit it.
        """
        conditioned = any(prompt != "" for prompt in prompts)
        most = self.prior.schedule_config.num_train_timesteps
        steps, scale = saved.of_prior(steps, guidance_scale, most, conditioned, flag="--prior_guidance_scale")
        given = prompts if conditioned or self.prior.conditioner.null is not None else None
        z = self.statistics.denormalise(self.prior.sample(seeds, steps, given, guidance_scale=scale))
        return F.normalize(z, dim=1) * z.shape[1] ** 0.5

    def check_prompts(self, prompts: Sequence[str | int]) -> None:
        """Check that the prior can encode prompts or classes; raises UserError if not."""
        unconditional = self.prior.conditioner.null is None
        if unconditional and any(prompts):
            raise UserError(f"this prior was trained without prompts and takes none, got {prompts[0]!r:.80}")
        try:
            self.prior.conditioner.prepare([] if unconditional else prompts)
        except ConditioningError as error:
            raise UserError(str(error)) from None

    def to(self, device: "torch.device | str") -> "ImagePrior":
        """Move the networks to a device, in place; return this object."""
        self.prior.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write `prior/` into a decoder's folder that is complete otherwise, and add it to model_index.json."""
        self.prior.save(folder / FOLDER)
        self.statistics.save(folder / FOLDER)
        (folder / FOLDER / FILE).write_text(json.dumps({"encoder": self.encoder}, indent=2) + "\n", encoding="utf-8")
        index = read_json(folder / INDEX, str(folder / INDEX)) | {FOLDER: ENTRY}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: ModelFolder, conditioner: Conditioner, device: "torch.device | str") -> "ImagePrior | None":
        """Load the prior of a decoder's folder; None: it has none.

        Raises:
            UserError: a file is missing or broken, or the prior is for embeddings of another image encoder than the
                decoder's, `conditioner`.
        """
        if FOLDER not in folder:
            return None
        path, reader = folder.path / FOLDER, conditioner.image_conditioner
        encoder = read_json(path / FILE, str(path / FILE)).get("encoder")
        if reader is None or encoder != reader.frozen_encoder:
            raise UserError(
                f"{path} samples embeddings of another image encoder than that of the decoder in {folder}; expected "
                "the prior of this decoder"
            )
        (width,) = reader.shape
        prior = CodePrior.load(folder.subfolder(FOLDER), width, device)
        return cls(prior, CodeStatistics.load(path, width), str(encoder))


def with_prior(
    pipeline: "Pipeline",
    prompts: Sequence[str | int],
    seeds: Sequence[int],
    options: SamplingOptions,
    pictures: Pictures | None,
) -> tuple[Sequence[str | int], Pictures | None]:
    """Return the prompts and the pictures that a decoder gets: of its prior's embeddings where no picture is given.

    Args:
        pipeline: the decoder, with its prior or without.
        prompts: N prompts or classes, for the prior and, if it takes any, for the decoder.
        seeds: N seeds.
        options: steps and guidance scale of the prior are read.
        pictures: what the user gave; None or empty: nothing.

    Raises:
        UserError: options of a prior are set that is not used, or the prior does not know a prompt.
    """
    given = {name: getattr(options, name) for name in ("prior_steps", "prior_guidance_scale")}
    if pictures or pipeline.prior is None:
        if idle := [name for name, value in given.items() if value is not None]:
            raise UserError(f"--{idle[0]} is for a model with a prior, where no --image is given; leave it out")
        return prompts, pictures
    steps, scale = given.values()
    embedding = pipeline.prior.sample(prompts, seeds, pipeline.saved, steps=steps, guidance_scale=scale)
    return decoder_prompts(pipeline, prompts), {EMBEDDING: embedding}


def decoder_prompts(pipeline: "Pipeline", prompts: Sequence[str | int]) -> list[str | int]:
    """Return those prompts that a decoder under a prior gets: empty ones if it is conditioned on the image alone."""
    alone = pipeline.conditioner.image_conditioner is pipeline.conditioner
    return [""] * len(prompts) if alone else [*prompts]
