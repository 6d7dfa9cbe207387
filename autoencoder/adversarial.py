"""Adversarial training step: autoencoder's and discriminator's losses from one reconstruction (Esser et al. 2021)."""

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
from autoencoder.loss_terms import laid_over

Player = Literal["autoencoder", "discriminator"]
Logs = dict[str, Tensor]
GRADIENT_SCALE = 2.0**16  # a power of two: scaling by it is exact


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
    weight: Tensor | None = None,
) -> Iterator[tuple[Player, Tensor, Logs]]:
    """Yield the autoencoder's loss, then, in steps that train the discriminator, the discriminator's loss.

    Call backward on each loss before asking for the next, and consume the generator to its end: `codebook` records the
    latents when the generator resumes after the autoencoder's loss. Once the optimiser step is applied, the caller
    calls `codebook.after_step`.

    Args:
        x: pictures [B, C, H, W] in [-1, 1].
        made: the output of the DDP-wrapped `Autoencode` for x; keep no other reference to it, or its graph outlives the
            backward pass.
        step: number of the optimiser step, from 0.
        loss: the autoencoder's loss; its config has the adversarial settings.
        last_layer: the weight at which the adaptive weight is measured (`Autoencode.last_layer`).
        discriminate: the DDP-wrapped discriminator, for its own loss.
        raw_discriminator: the discriminator without DDP, for the autoencoder's loss; frozen until the backward pass of
            that loss is over.
        average: function that averages a tensor over ranks.
        codebook: moving averages of a VQ model's codebook; None: there are none.
        judged: bool [B], the pictures on which the perceptual distance is computed; None: all.
        ratio: adaptive weight of the whole batch (`whole_batch_weight`), if x is only a part of the batch; None: x is
            the whole batch.
        weight: [B, 1, H, W] in [0, 1], by which each pixel counts; the discriminator sees reconstructions laid over the
            pictures by it. None: all count.

    Yields:
        Name of the trained module, its scalar loss, and logs of detached tensors. In the logs, "lambda" is the weight
        of the adversarial loss, which is 0 before the adversarial config's step `start`.

    Raises:
        AutoencoderError: the config has an adversarial loss, but no discriminator is given.
    """
    game = loss.config.adversarial
    if game is not None and (discriminate is None or raw_discriminator is None):
        raise AutoencoderError("The loss has an adversarial term: pass discriminate and raw_discriminator.")
    latents, indices = made.moments.mean.detach(), made.indices
    losses = loss(x, made, judged, weight)
    made = made._replace(picture=laid_over(made.picture, x, weight))
    fake = made.picture.detach()
    with frozen(raw_discriminator):
        terms = partial(_autoencoder_side, discriminator=raw_discriminator, last_layer=last_layer, average=average)
        yield "autoencoder", *terms(losses, made, step, game=game, ratio=ratio)
    del losses
    del made
    if codebook is not None and indices is not None:
        codebook.see(latents, indices)
    if game is not None and discriminate is not None and game.discriminates(step):
        yield "discriminator", *_discriminator_side(x, fake, game, discriminate)


def adaptive_weight(nll: Tensor, g: Tensor, last_layer: Tensor, maximum: float, average: Map = itself) -> Tensor:
    """Return the adversarial weight lambda = |d nll / d L| / (|d g / d L| + 1e-4) (Esser et al. 2021, eq. 7).

    L is `last_layer`, the weight of the decoder's last layer. Lambda gives the autoencoder's adversarial loss g as
    large a gradient at L as the negative log-likelihood nll has. The gradients are averaged over ranks (by `average`)
    before their norms are taken, so that lambda does not depend on the number of ranks that divide a batch among them.
    Lambda is a detached scalar of at most `maximum`.
    """
    return whole_batch_weight([(nll, g)], last_layer, maximum, average)


def whole_batch_weight(
    losses: Iterable[tuple[Tensor, Tensor]], last_layer: Tensor, maximum: float, average: Map = itself
) -> Tensor:
    """Return the adversarial weight lambda (`adaptive_weight`) of a batch that comes in micro-batches of equal size.

    Gradients are averaged over micro-batches first, because lambda of a batch is not the mean of its micro-batches'
    lambdas.

    Args:
        losses: negative log-likelihood nll and adversarial loss g of each micro-batch, with their autograd graphs. If
            `losses` is a generator, each graph is freed before the next one is built.
        last_layer: weight of the decoder's last layer, at which gradients are compared.
        maximum: upper bound of lambda.
        average: function that averages a tensor over ranks.
    """
    parts = starmap(partial(_last_layer_gradients, last_layer), losses)  # frees each graph before the next is built
    of_nll, of_g = (average(torch.stack(gradients).mean(0)).norm() for gradients in zip(*parts, strict=True))
    return (of_nll / (of_g + 1e-4)).clamp(0, maximum).detach()


def _last_layer_gradients(last_layer: Tensor, nll: Tensor, g: Tensor) -> list[Tensor]:
    """Return the gradients of the losses `nll` and `g` with respect to the weight `last_layer`, in float32.

    The losses are multiplied by `GRADIENT_SCALE` for the backward pass, and the gradients divided by it: otherwise
    gradients of means over many pixels would underflow to 0 in float16.
    """
    gradients = [torch.autograd.grad(f * GRADIENT_SCALE, last_layer, retain_graph=True)[0] for f in (nll, g)]
    return [gradient.float() / GRADIENT_SCALE for gradient in gradients]


@contextmanager
def frozen(module: nn.Module | None) -> Iterator[None]:
    """Turn off gradients of a module's parameters within the context; do nothing if the module is None."""
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
    """Return {"perplexity": perplexity of a VQ model's code usage in one batch}; {} for a KL model.

    The perplexity in one batch is too low on average; `CodeUsage` measures that over a data set.
    """
    if made.indices is None:
        return {}
    return {"perplexity": perplexity(torch.bincount(made.indices.flatten()))}
