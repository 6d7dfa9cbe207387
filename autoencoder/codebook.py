"""Codebook training beside gradients: moving averages, revival of unused codes, and usage statistics."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from autoencoder.base import AutoencoderError, float64
from autoencoder.quantiser import flatten

Map = Callable[[Tensor], Tensor]
LEAST = 1e-3  # running count below which a code is not moved


def itself(x: Tensor) -> Tensor:
    """Return x: any collective operation on a single rank."""
    return x


class CodebookSettings(Protocol):
    """The fields of `VQConfig` that a `Codebook` reads."""

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
    """Running counts N_k and sums M_k of a codebook's codes, whose means e_k are written into a plain nn.Embedding.

    N_k <- d N_k + (1 - d) n_k,  M_k <- d M_k + (1 - d) sum of the z assigned to k,  e_k = M_k / smoothed N_k
    (van den Oord et al. 2017, appendix A; Laplace smoothing as in Razavi et al. 2019). N starts at 1 and M at e. A code
    with a count near 0 is not moved: the smoothing would pull it to the origin. With `settings.ema` the embedding gets
    no gradient, so build this before DDP wraps the model.

    Args:
        embedding: the codes e [K, d].
        settings: the model's `VQConfig`.
        reduce: sum of a tensor over ranks.
        share: broadcast of a tensor from rank 0.
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
        """Collect raw latents z [B, d, h, w] and their codes [B, h, w] of a micro-batch; no code moves yet."""
        self.seen.append((flatten(z.float()), indices.flatten()))

    def discard_step(self) -> None:
        """Discard what was collected since the last accepted step."""
        self.seen: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def after_step(self, step: int) -> Tensor:
        """Update counts, sums and codes by an accepted step's micro-batches; return the mask [K] of revived codes."""
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
        """Return counts and sums for a checkpoint; the codes themselves are part of the model."""
        return {"counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; raises AutoencoderError if it is from a codebook of another size."""
        if state["sums"].shape != self.sums.shape:
            given, expected = tuple(state["sums"].shape), tuple(self.sums.shape)
            raise AutoencoderError(f"The codebook state has shape {given}, but the model's codebook is {expected}.")
        self.counts, self.sums = state["counts"].clone(), state["sums"].clone()

    def _revive(self, vectors: Tensor, step: int) -> Tensor:
        """Every `revive_every` steps, replace codes of less than `revive_below` of the mean count by random latents."""
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
    """Counts of codes over a whole data set; one batch is too small to measure how many are in use."""

    def __init__(self, codes: int, reduce: Map = itself) -> None:
        self.counts, self.reduce = torch.zeros(codes, dtype=torch.int64), reduce

    def add(self, indices: Tensor) -> None:
        """Count the codes [...] of a batch."""
        counts = torch.bincount(indices.flatten(), minlength=len(self.counts))
        self.counts = self.counts.to(counts.device) + counts

    def summary(self) -> dict[str, float]:
        """Return, over all ranks, `usage` (share of codes hit), `perplexity` and `perplexity_share` (of K)."""
        counts = self.reduce(self.counts).cpu()  # float64 follows, which not every device has
        value = perplexity(counts).item()
        used = (counts > 0).double().mean().item()
        return {"usage": used, "perplexity": value, "perplexity_share": value / len(counts)}


def perplexity(counts: Tensor) -> Tensor:
    """Return exp(entropy) of the frequencies `counts` [K]: K when all codes are equally frequent."""
    n = float64(counts)
    value = torch.special.entr(n / n.sum().clamp_min(1)).sum().exp()
    return value if value.device == counts.device else value.float().to(counts.device)


def smoothed(counts: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Return Laplace-smoothed counts [K] with the same total, so that no sum is divided by zero."""
    total = counts.sum()
    return (counts + epsilon) / (total + len(counts) * epsilon) * total


def forget(optimizer: torch.optim.Optimizer, parameter: Tensor, rows: Tensor) -> None:
    """Zero the moments that Adam holds for `rows` [K] (a mask) of a codebook whose codes were just revived."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value[rows] = 0
