"""A codebook's life beside the gradients: moving averages, revival of dead codes, and how many are in use."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from autoencoder.base import AutoencoderError
from autoencoder.quantiser import flatten

Map = Callable[[Tensor], Tensor]
LEAST = 1e-3  # running count below which a code rests


def itself(x: Tensor) -> Tensor:
    """What any collective operation does on one rank."""
    return x


class CodebookSettings(Protocol):
    """The part of `VQConfig` that matters here."""

    @property
    def ema(self) -> bool: ...
    @property
    def decay(self) -> float: ...
    @property
    def revive_every(self) -> int: ...
    @property
    def revive_below(self) -> float: ...
    @property
    def revive_until(self) -> int | None: ...


class Codebook:
    """Keeps the running counts N_k and sums M_k of a codebook's codes, and writes e_k into a plain nn.Embedding.

    N_k <- d N_k + (1 - d) n_k,  M_k <- d M_k + (1 - d) sum of the z assigned to k,  e_k = M_k / smoothed N_k
    (van den Oord et al. 2017, appendix A; Laplace smoothing as in Razavi et al. 2019). N starts at 1 and M at e, and a
    code whose count has all but gone is left where it is: the smoothing would draw it to the origin.

    The embedding leaves the optimiser's hands when `settings.ema` holds, so build this before DDP wraps the model.
    `reduce` sums over ranks, `share` gives every rank what rank 0 has.
    """

    def __init__(
        self, embedding: nn.Embedding, settings: CodebookSettings, reduce: Map = itself, share: Map = itself
    ) -> None:
        self.embedding, self.settings, self.reduce, self.share = embedding, settings, reduce, share
        self.counts = torch.ones(len(embedding.weight), device=embedding.weight.device)
        self.sums = embedding.weight.detach().float().clone()
        self.discard_step()
        embedding.weight.requires_grad_(not settings.ema)

    @torch.no_grad()
    def see(self, z: Tensor, indices: Tensor) -> None:
        """Take in raw latents z [B, d, h, w] and their codes [B, h, w] of a micro-batch; nothing moves yet."""
        self.seen.append((flatten(z.float()), indices.flatten()))

    def discard_step(self) -> None:
        """Forget what was seen since the codebook last settled."""
        self.seen: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def after_step(self, step: int) -> Tensor:
        """Move on by what the micro-batches of a step have shown, however many; the mask [K] of codes revived now."""
        vectors, chosen = (torch.cat(parts) for parts in zip(*self.seen, strict=True))
        self.discard_step()
        self._to(vectors.device)
        counts = torch.zeros_like(self.counts).index_add_(0, chosen, torch.ones_like(chosen, dtype=torch.float32))
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, vectors)
        decay = self.settings.decay
        self.counts.mul_(decay).add_(self.reduce(counts), alpha=1 - decay)
        self.sums.mul_(decay).add_(self.reduce(sums), alpha=1 - decay)
        if self.settings.ema:
            alive = (self.counts > LEAST)[:, None]
            means = self.sums / smoothed(self.counts)[:, None]
            self.embedding.weight.copy_(torch.where(alive, means, self.embedding.weight))
        return self._revive(vectors, step)

    def state_dict(self) -> dict[str, Tensor]:
        """Counts and sums, for the trainer's checkpoint; the codes themselves lie in the model."""
        return {"counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. Raises AutoencoderError when it comes from a codebook of another size."""
        if state["sums"].shape != self.sums.shape:
            ours, theirs = tuple(self.sums.shape), tuple(state["sums"].shape)
            raise AutoencoderError(f"The codebook state has shape {theirs}, but the model's codebook is {ours}.")
        self.counts, self.sums = state["counts"].clone(), state["sums"].clone()

    def _revive(self, vectors: Tensor, step: int) -> Tensor:
        """Every so often, put codes with less than `revive_below` of the mean count on random latents of this batch."""
        every, until = self.settings.revive_every, self.settings.revive_until
        dead = self.counts < self.settings.revive_below * self.counts.mean()
        if every == 0 or step == 0 or step % every or (until is not None and step > until):
            return torch.zeros_like(dead)
        if self.share is itself and self.reduce(torch.ones(1, device=vectors.device)).item() > 1:
            raise AutoencoderError(
                "Reviving codes on several ranks needs Codebook(share=...), a broadcast from rank 0."
            )
        number = int(dead.sum())
        generator = torch.Generator().manual_seed(step)
        picks = torch.randperm(len(vectors), generator=generator).repeat(-(-number // len(vectors)))[:number]
        fresh, mean = self.share(vectors[picks.to(vectors.device)].contiguous()), self.counts.mean()
        self.embedding.weight[dead] = fresh.to(self.embedding.weight.dtype)
        self.counts[dead], self.sums[dead] = mean, fresh * mean
        return dead

    def _to(self, device: torch.device) -> None:
        self.counts, self.sums = self.counts.to(device), self.sums.to(device)


class CodeUsage:
    """Counts codes over a whole set; a single batch sees too few of them to say how many are in use."""

    def __init__(self, codes: int, reduce: Map = itself) -> None:
        self.counts, self.reduce = torch.zeros(codes, dtype=torch.int64), reduce

    def add(self, indices: Tensor) -> None:
        """Count the codes [...] of a batch."""
        found = torch.bincount(indices.flatten(), minlength=len(self.counts))
        self.counts = self.counts.to(found.device) + found

    def summary(self) -> dict[str, float]:
        """Over all ranks: `usage` (share of codes hit), `perplexity`, `perplexity_share` (of the codebook's size)."""
        counts = self.reduce(self.counts)
        value = perplexity(counts).item()
        used = (counts > 0).double().mean().item()
        return {"usage": used, "perplexity": value, "perplexity_share": value / len(counts)}


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the distribution that `counts` [K] draw: K when all codes are equally frequent."""
    p = counts.double() / counts.sum().clamp_min(1)
    return torch.special.entr(p).sum().exp()


def smoothed(counts: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Laplace-smoothed counts [K] with the same total, so that no code is divided by zero."""
    total = counts.sum()
    return (counts + epsilon) / (total + len(counts) * epsilon) * total


def forget(optimizer: torch.optim.Optimizer, parameter: Tensor, rows: Tensor) -> None:
    """Zero the moments that Adam holds for `rows` [K] (a mask) of a codebook whose codes were just revived."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value[rows] = 0
