"""Adversarial training step: one pass of the autoencoder feeds its loss and the discriminator's (Esser et al. 2021)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import starmap
from typing import Literal

import torch
from torch import Tensor, nn

from autoencoder import loss_terms
from autoencoder.base import AutoencoderError, Reconstruction
from autoencoder.codebook import Codebook, Map, itself, perplexity
from autoencoder.loss import AdversarialConfig, AutoencoderLoss, LossTerms

Player = Literal["autoencoder", "discriminator"]
Logs = dict[str, Tensor]
GRADIENT_SCALE = 2.0**16  # a power of two, which changes no digit


def two_player(
    x: Tensor,
    made: Reconstruction,
    step: int,
    *,
    loss: AutoencoderLoss,
    last_layer: Tensor,
    discriminate: Map | None = None,
    raw_discriminator: nn.Module | None = None,
    average: Map = itself,
    codebook: Codebook | None = None,
    judged: Tensor | None = None,
    ratio: Tensor | None = None,
) -> Iterator[tuple[Player, Tensor, Logs]]:
    """Yield the autoencoder's loss, then (in steps in which it learns) the discriminator's; call backward in between.

    Consume the generator to its end: `codebook` takes in the latents when it resumes after the autoencoder's turn, and
    the caller calls `codebook.after_step` once the step is accepted.

    Args:
        x: pictures [B, C, H, W] in [-1, 1].
        made: the wrapped autoencoder's output for x; keep no reference to it, or its graph outlives the backward pass.
        step: number of the optimiser step, from 0.
        loss: the autoencoder's loss, with the adversarial settings in its config.
        last_layer: the weight on which the adaptive weight is measured (`Autoencode.last_layer`).
        discriminate: the discriminator as DDP wraps it.
        raw_discriminator: the unwrapped one, frozen until the autoencoder's backward pass is over.
        average: mean of a tensor over ranks.
        codebook: of a VQ model, where it has running statistics.
        judged: [B] bool, the pictures that the perceptual distance is computed on; None: all.
        ratio: the adaptive weight of the whole batch, `whole_batch_weight`, of which x is a part; None: x is all.

    Yields:
        Module name, scalar loss, and logs of detached tensors; lambda is 0 before the adversarial loss starts.

    Raises:
        AutoencoderError: the config has an adversarial loss, but no discriminator is given.
    """
    game = loss.config.adversarial
    if game is not None and (discriminate is None or raw_discriminator is None):
        raise AutoencoderError("The loss has an adversarial term: pass discriminate and raw_discriminator.")
    fake, latents, indices = made.picture.detach(), made.moments.mean.detach(), made.indices
    with frozen(raw_discriminator):
        yield (
            "autoencoder",
            *_autoencoder_side(
                loss(x, made, judged),
                made,
                step,
                game=game,
                discriminator=raw_discriminator,
                last_layer=last_layer,
                average=average,
                ratio=ratio,
            ),
        )
    del made
    if codebook is not None and indices is not None:
        codebook.see(latents, indices)
    if game is not None and discriminate is not None and game.discriminates(step):
        yield "discriminator", *_discriminator_side(x, fake, game, discriminate)


def adaptive_weight(nll: Tensor, g: Tensor, last_layer: Tensor, maximum: float, average: Map = itself) -> Tensor:
    """Return lambda = |d nll / d L| / (|d g / d L| + 1e-4), at most `maximum`, detached (Esser et al. 2021, eq. 7).

    Both gradients are averaged over ranks before their norms are taken, so lambda does not depend on how many ranks
    share a batch.
    """
    return whole_batch_weight([(nll, g)], last_layer, maximum, average)


def whole_batch_weight(
    losses: Iterable[tuple[Tensor, Tensor]], last_layer: Tensor, maximum: float, average: Map = itself
) -> Tensor:
    """Return the adaptive weight of a batch that comes in micro-batches of one size, of which it is not the mean.

    Args:
        losses: (nll, g) of each micro-batch, with their graphs, of which one at a time is held.
        last_layer: the weight L.
        maximum: bound of lambda.
        average: mean of a tensor over ranks.
    """
    parts = starmap(partial(_last_layer_gradients, last_layer), losses)  # which keeps no graph while the next is made
    of_nll, of_g = (average(torch.stack(gradients).mean(0)).norm() for gradients in zip(*parts, strict=True))
    return (of_nll / (of_g + 1e-4)).clamp(0, maximum).detach()


def _last_layer_gradients(last_layer: Tensor, nll: Tensor, g: Tensor) -> list[Tensor]:
    """Return both losses' gradients in float32; those of means over many pixels would be 0 in float16, unscaled."""
    gradients = [torch.autograd.grad(f * GRADIENT_SCALE, last_layer, retain_graph=True)[0] for f in (nll, g)]
    return [gradient.float() / GRADIENT_SCALE for gradient in gradients]


@contextmanager
def frozen(module: nn.Module | None) -> Iterator[None]:
    """Turn off gradients of the module's parameters, and restore each afterwards."""
    trained = [p for p in module.parameters() if p.requires_grad] if module is not None else []
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def _autoencoder_side(
    terms: LossTerms,
    made: Reconstruction,
    step: int,
    *,
    game: AdversarialConfig | None,
    discriminator: nn.Module | None,
    last_layer: Tensor,
    average: Map,
    ratio: Tensor | None,
) -> tuple[Tensor, Logs]:
    logs = {key: value.detach() for key, value in terms._asdict().items()}
    logs["loss"] = logs.pop("total")
    if made.log_scale is not None:
        logs["log_scale"] = made.log_scale.detach()
    if game is None:
        return terms.total, logs | _usage(made)
    loss, g, weight = terms.total, torch.zeros_like(terms.total), torch.zeros_like(terms.total)
    if discriminator is not None and (factor := game.factor(step)) > 0:
        g = loss_terms.generator_loss(discriminator(made.picture).float())
        if game.adaptive and ratio is None:
            ratio = adaptive_weight(terms.nll, g, last_layer, game.max_weight, average)
        weight = torch.full_like(weight, game.weight * factor) * (ratio if game.adaptive and ratio is not None else 1.0)
        loss = loss + weight * g
    return loss, logs | _usage(made) | {"g": g.detach(), "lambda": weight}


def _discriminator_side(x: Tensor, fake: Tensor, game: AdversarialConfig, discriminate: Map) -> tuple[Tensor, Logs]:
    real_logits, fake_logits = discriminate(torch.cat([x, fake.to(x.dtype)])).float().chunk(2)
    loss = (loss_terms.hinge_loss if game.loss == "hinge" else loss_terms.vanilla_loss)(real_logits, fake_logits)
    right = torch.cat([real_logits > 0, fake_logits < 0]).float().mean()
    return loss, {"d_loss": loss.detach(), "d_accuracy": right}


def _usage(made: Reconstruction) -> Logs:
    """Return the perplexity of this batch alone, biased low by its size; `CodeUsage` measures a whole set."""
    if made.indices is None:
        return {}
    return {"perplexity": perplexity(torch.bincount(made.indices.flatten()))}
