"""Training of a codebook other than by gradients: moving averages, revival of unused codes, and usage statistics."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from autoencoder.base import AutoencoderError, float64
from autoencoder.quantiser import flatten

Map = Callable[[Tensor], Tensor]
LEAST = 1e-3  # a code with a lower running count is not moved


def itself(x: Tensor) -> Tensor:
    """Return x unchanged: what a sum, mean or broadcast over ranks does if there is a single rank."""
    return x


class CodebookSettings(Protocol):
    """Protocol of the settings that a `Codebook` reads, fields of `VQConfig`: moving averages and revival of codes."""

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
    """Moving averages of a codebook: for each code e_k, the count N_k and the sum M_k of the latents assigned to it.

    N_k <- a N_k + (1 - a) n_k,  M_k <- a M_k + (1 - a) m_k,  e_k = M_k / smoothed N_k

    Here n_k is the number and m_k the sum of the latents assigned to code k in one step, and a is `settings.decay` (van
    den Oord et al. 2017, appendix A; Laplace smoothing as in Razavi et al. 2019). N starts at 1 and M at e. With
    `settings.ema` the codes e_k are written into the embedding, which gets no gradient; so build this object before DDP
    wraps the model. A code with a count near 0 is not moved, because the smoothing would pull it to the origin.

    Args:
        embedding: the codes e, [K, d]: K codes of d dimensions.
        settings: the model's `VQConfig`.
        reduce: function that sums a tensor over ranks.
        share: function that broadcasts a tensor from rank 0.
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
        """Record a micro-batch for `after_step`: its raw latents z [B, d, h, w] and their code indices [B, h, w]."""
        self.seen.append((flatten(z.float()), indices.flatten()))

    def discard_step(self) -> None:
        """Discard the latents recorded since the last `after_step`, because the optimiser step is not applied."""
        self.seen: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def after_step(self, step: int) -> Tensor:
        """Update counts, sums and codes by the latents recorded since the last call, and revive unused codes.

        Call it once after each optimiser step.

        Args:
            step: number of the optimiser step, from 0.

        Returns:
            Bool [K], True for the codes that were revived.
        """
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
        """Return the running counts and sums for a checkpoint; the codes themselves are saved with the model."""
        return {"counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            AutoencoderError: the state is of a codebook of another size.
        """
        if state["sums"].shape != self.sums.shape:
            given, expected = tuple(state["sums"].shape), tuple(self.sums.shape)
            raise AutoencoderError(f"The codebook state has shape {given}, but the model's codebook is {expected}.")
        self.counts, self.sums = state["counts"].clone(), state["sums"].clone()

    def _revive(self, vectors: Tensor, step: int) -> Tensor:
        """Replace rarely used codes by random latents, every `revive_every` steps; return bool [K], True if replaced.

        A code is rarely used if its running count is less than `revive_below` times the mean count.

        Args:
            vectors: latents of the step, one per position, [N, d].
            step: number of the optimiser step, from 0.
        """
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
    """Counts how often each code is used over a whole data set.

    One batch is too small to measure how many codes are in use.

    Args:
        codes: K, the size of the codebook.
        reduce: function that sums a tensor over ranks.
    """

    def __init__(self, codes: int, reduce: Map = itself) -> None:
        self.counts, self.reduce = torch.zeros(codes, dtype=torch.int64), reduce

    def add(self, indices: Tensor) -> None:
        """Add the code indices of a batch, a tensor of any shape, to the counts."""
        counts = torch.bincount(indices.flatten(), minlength=len(self.counts))
        self.counts = self.counts.to(counts.device) + counts

    def summary(self) -> dict[str, float]:
        """Return statistics of the counts, summed over ranks.

        `usage` is the fraction of codes that occur, `perplexity` is exp(entropy) of the code frequencies,
        `perplexity_share` is the perplexity divided by K.
        """
        counts = self.reduce(self.counts).cpu()  # float64 follows, which not every device has
        value = perplexity(counts).item()
        used = (counts > 0).double().mean().item()
        return {"usage": used, "perplexity": value, "perplexity_share": value / len(counts)}


def perplexity(counts: Tensor) -> Tensor:
    """Return exp(entropy) of the code frequencies that `counts` [K] give; K if all codes are equally frequent."""
    n = float64(counts)
    value = torch.special.entr(n / n.sum().clamp_min(1)).sum().exp()
    return value if value.device == counts.device else value.float().to(counts.device)


def smoothed(counts: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Return Laplace-smoothed `counts` [K] with the same total; none is 0, so that sums can be divided by them.

    `epsilon` is added to each count before the counts are scaled to their old total.
    """
    total = counts.sum()
    return (counts + epsilon) / (total + len(counts) * epsilon) * total


def forget(optimizer: torch.optim.Optimizer, parameter: Tensor, rows: Tensor) -> None:
    """Zero Adam's moment estimates of the codes that were just revived.

    Args:
        optimizer: the optimiser of the codes.
        parameter: the codebook [K, d].
        rows: bool [K], True for revived codes.
    """
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value[rows] = 0
