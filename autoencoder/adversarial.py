"""The two-player step: one pass of the autoencoder feeds its own loss, then the discriminator's (Esser et al. 2021)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from autoencoder import loss_terms
from autoencoder.base import AutoencoderError, Reconstruction
from autoencoder.codebook import Codebook, Map, itself, perplexity
from autoencoder.loss import AdversarialConfig, AutoencoderLoss, LossTerms

Player = Literal["autoencoder", "discriminator"]
Logs = dict[str, Tensor]


def two_player(
    x: Tensor,
    made: Reconstruction,
    step: int,
    *,
    criterion: AutoencoderLoss,
    last_layer: Tensor,
    discriminate: Map | None = None,
    raw_discriminator: nn.Module | None = None,
    average: Map = itself,
    codebook: Codebook | None = None,
    judged: Tensor | None = None,
) -> Iterator[tuple[Player, Tensor, Logs]]:
    """Yield ("autoencoder", loss, logs), then where it learns ("discriminator", loss, logs): call backward in between.

    `made` is what the wrapped autoencoder made and is to be compared with x [B, C, H, W]; pass it on without keeping
    it, or its graph outlives the backward pass. `discriminate` is the wrapped discriminator, `raw_discriminator` the
    unwrapped one, frozen until the autoencoder's backward is over. `average` is the mean over ranks; `judged` [B] are
    the pictures that the perceptual distance sees. Consume the generator to its end: `codebook` sees the latents when
    it resumes after the autoencoder's turn, and is the caller's to settle once the step stands. Logs are detached
    tensors; lambda is 0 while the game has not begun. Raises AutoencoderError when a game is wanted but has no players.
    """
    game = criterion.config.adversarial
    if game is not None and (discriminate is None or raw_discriminator is None):
        raise AutoencoderError("The criterion asks for an adversarial game: pass discriminate and raw_discriminator.")
    fake, latents, indices = made.picture.detach(), made.moments.mean.detach(), made.indices
    with frozen(raw_discriminator):
        yield (
            "autoencoder",
            *_autoencoder_side(criterion(x, made, judged), made, step, game, raw_discriminator, last_layer, average),
        )
    del made
    if codebook is not None and indices is not None:
        codebook.see(latents, indices)
    if game is not None and discriminate is not None and game.discriminates(step):
        yield "discriminator", *_discriminator_side(x, fake, game, discriminate)


def adaptive_weight(nll: Tensor, g: Tensor, last_layer: Tensor, maximum: float, average: Map = itself) -> Tensor:
    """lambda = |d nll / d L| / (|d g / d L| + 1e-4), at most `maximum`, detached (Esser et al. 2021, eq. 7).

    Both gradients are averaged over ranks before their norms are taken, so lambda does not depend on how many ranks
    share a batch.
    """
    ours, theirs = (average(torch.autograd.grad(f, last_layer, retain_graph=True)[0].float()).norm() for f in (nll, g))
    return (ours / (theirs + 1e-4)).clamp(0, maximum).detach()


@contextmanager
def frozen(module: nn.Module | None) -> Iterator[None]:
    """The module's parameters ask for no gradient inside; each is as before outside."""
    moving = [p for p in module.parameters() if p.requires_grad] if module is not None else []
    try:
        for p in moving:
            p.requires_grad_(False)
        yield
    finally:
        for p in moving:
            p.requires_grad_(True)


def _autoencoder_side(
    terms: LossTerms,
    made: Reconstruction,
    step: int,
    game: AdversarialConfig | None,
    discriminator: nn.Module | None,
    last_layer: Tensor,
    average: Map,
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
        ratio = adaptive_weight(terms.nll, g, last_layer, game.max_weight, average) if game.adaptive else 1.0
        weight = torch.full_like(weight, game.weight * factor) * ratio
        loss = loss + weight * g
    return loss, logs | _usage(made) | {"g": g.detach(), "lambda": weight}


def _discriminator_side(x: Tensor, fake: Tensor, game: AdversarialConfig, discriminate: Map) -> tuple[Tensor, Logs]:
    real_logits, fake_logits = discriminate(torch.cat([x, fake.to(x.dtype)])).float().chunk(2)
    loss = (loss_terms.hinge_loss if game.loss == "hinge" else loss_terms.vanilla_loss)(real_logits, fake_logits)
    right = torch.cat([real_logits > 0, fake_logits < 0]).float().mean()
    return loss, {"d_loss": loss.detach(), "d_accuracy": right}


def _usage(made: Reconstruction) -> Logs:
    """Perplexity of this batch alone, biased low by its size; `CodeUsage` measures a whole set."""
    if made.indices is None:
        return {}
    return {"perplexity": perplexity(torch.bincount(made.indices.flatten()))}
