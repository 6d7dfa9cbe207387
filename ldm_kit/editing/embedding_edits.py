"""`edit.py blend` and `textdiff`: pictures of embeddings between two pictures, or moved by a difference of texts.

Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents", sections 3.2 and 3.3. The paper
decodes with the noise that DDIM inversion gives of the picture; here the noise is drawn from a seed, one for all.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conditioning.base import ConditioningError
from ldm_kit.config import UserError
from ldm_kit.diffusion.pdae import slerp
from ldm_kit.editing.context import EditContext, EditResult
from ldm_kit.editing.embedding_options import BlendOptions, TextDiffOptions
from ldm_kit.editing.image_io import read_picture, save_result
from ldm_kit.models.clip_texts import text_encoder
from ldm_kit.models.options import ResolvedOptions
from ldm_kit.models.picture_condition import EMBEDDING
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.pretrained_images import image_tower, open_clip_model

_CLIP = "open_clip:"


def blend_pictures(context: EditContext, options: BlendOptions) -> EditResult:
    """Write pictures whose image embeddings lie on the great circle between those of two pictures.

    Args:
        context: the model and the output folder.
        options: the two pictures, and the number of pictures to sample.

    Raises:
        UserError: a file is no picture, or the model is conditioned on no vector of an image.
    """
    pipeline = _decoder(context)
    resolved = options.resolve(pipeline)
    ends = _embedded(pipeline, *options.image)
    weights = torch.linspace(0, 1, options.count)
    between = slerp(ends[:1].expand(options.count, -1), ends[1:].expand(options.count, -1), weights)
    captions = [f"{weight:.0%}" for weight in weights.tolist()]
    return _decoded(context, pipeline, between, options, captions=captions, resolved=resolved)


def move_by_text(context: EditContext, options: TextDiffOptions) -> EditResult:
    """Write pictures whose image embedding is turned from a picture's towards the difference of two texts.

    Args:
        context: the model and the output folder.
        options: the picture, the two texts, how far to turn, and where the texts' embeddings come from.

    Raises:
        UserError: the file is no picture, the model is conditioned on no vector of an image, or neither its own CLIP
            nor its prior can embed the texts.
    """
    pipeline = _decoder(context)
    resolved = options.resolve(pipeline)
    start = _embedded(pipeline, options.image)
    texts = _text_embeddings(pipeline, options)
    angles = torch.linspace(0, options.theta, options.count)
    moved = turn_towards(start, texts[1:] - texts[:1], angles)
    captions = [f"theta {angle:.2f}" for angle in angles.tolist()]
    return _decoded(context, pipeline, moved, options, captions=captions, resolved=resolved)


def turn_towards(embedding: Tensor, difference: Tensor, theta: Tensor) -> Tensor:
    """Turn an image embedding towards a difference of text embeddings, on a sphere (Ramesh et al. 2022, section 3.3).

    Args:
        embedding: [1, D], with a root mean square of 1.
        difference: embedding of the new text less that of the old one, [1, D], of any length.
        theta: N shares of the angle, 0 gives the embedding; the paper goes to 0.25 to 0.5.

    Returns:
        Embeddings [N, D], with a root mean square of 1.
    """
    direction = F.normalize(difference, dim=1) * difference.shape[1] ** 0.5
    count = len(theta)
    return slerp(embedding.expand(count, -1), direction.expand(count, -1), theta)


def _text_embeddings(pipeline: Pipeline, options: TextDiffOptions) -> Tensor:
    """Return the embeddings [2, D] of the source and of the target."""
    if options.clip_model is not None:
        return _by_clip(pipeline, options.clip_model, [options.source, options.target])
    if pipeline.prior is None:
        raise UserError(
            "a difference of texts needs their embeddings; expected --clip_model open_clip:ARCHITECTURE/WEIGHTS, the "
            "model's own CLIP, or a model with a prior (method: prior)"
        )
    prompts = [options.source, options.target]
    pipeline.prior.check_prompts(prompts)
    seeds = range(options.seed, options.seed + options.samples)  # the same noise for both
    means = [pipeline.prior.sample([text] * options.samples, seeds, pipeline.saved).mean(0) for text in prompts]
    return F.normalize(torch.stack(means), dim=1)


def _by_clip(pipeline: Pipeline, name: str, texts: list[str]) -> Tensor:
    """Return the embeddings [N, D] of texts by the CLIP model `name`, each of length 1.

    Raises:
        UserError: it is no model of open_clip, cannot be opened, or has another image encoder than the pipeline.
    """
    architecture = name.removeprefix(_CLIP)
    if not name.startswith(_CLIP):
        raise UserError(f"--clip_model is {name!r:.80}; expected open_clip:ARCHITECTURE/WEIGHTS")
    clip = open_clip_model(architecture, "--clip_model")
    reader = pipeline.conditioner.image_conditioner
    if reader is None or image_tower(architecture, clip).sha256() != reader.encoder_digest:
        raise UserError(f"--clip_model {name} has another image encoder than this model; expected that of its training")
    encode = text_encoder(clip.model, architecture.partition("/")[0], pipeline.device)
    return F.normalize(encode(texts), dim=1)


def _decoder(context: EditContext) -> Pipeline:
    pipeline = context.load_pipeline(context.precision)
    reader = pipeline.conditioner.image_conditioner
    if reader is None or len(reader.shape) != 1:
        raise UserError(
            f"the model in {context.folder} is conditioned on no vector of an image; expected condition.kind image"
        )
    return pipeline


def _embedded(pipeline: Pipeline, *paths: Path) -> Tensor:
    pictures = [read_picture(path, pipeline.resolution, pipeline.channels) for path in paths]
    return pipeline.embed(torch.stack(pictures))


def _decoded(
    context: EditContext,
    pipeline: Pipeline,
    embeddings: Tensor,
    options: BlendOptions | TextDiffOptions,
    *,
    captions: list[str],
    resolved: ResolvedOptions,
) -> EditResult:
    """Sample a picture of each embedding from the same noise, and write them."""
    prompts, seeds = [options.prompt] * len(embeddings), [options.seed] * len(embeddings)
    given = {EMBEDDING: embeddings}
    try:
        pictures = torch.cat([*pipeline.generate(prompts, seeds, resolved, options.batch_size, pictures=given)])
    except ConditioningError as error:
        raise UserError(str(error)) from None
    settings: dict[str, Any] = options.model_dump(mode="json", exclude={"image", "batch_size"})
    settings["sampling"] = resolved.settings()
    return save_result(context, pictures, captions, seeds=seeds, **settings)._replace(note=resolved.note)
