"""Muon for the matrices of a network, convolutions included: each weight shown as a matrix, in blocks of its rows.

Muon moves a matrix along the nearest orthogonal matrix of its momentum (Jordan et al. 2024), so that no direction of
the gradient is starved. A convolution [O, I, k, k] is the matrix [O, I k k]. Finding that matrix costs as much as a
third of a training step; making blocks of rows orthogonal instead, each by itself (Khaled et al. 2025, MuonBP), costs
less than half of that.
Embeddings, norms, biases and layers with a small side stay with AdamW.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ldm_kit.config import Config

SMALLEST = 64  # a matrix with a smaller side is left to AdamW: first and last layers, narrow nets
LINEAR, CUBIC, QUINTIC = 3.4445, -4.7750, 2.0315  # of Newton and Schulz's iteration, as Jordan et al. tuned them
LIKE_ADAMW = 0.2  # root mean square of an update at learning rate 1 (Liu et al. 2025, eq. 4)
AT_ONCE = 2**22, 2**26  # numbers worked on together, on a CPU (a few megabytes, in cache) and elsewhere


class MuonConfig(Config):
    """Muon beside AdamW."""

    lr: float = Field(
        default=3e-3, gt=0, description="peak learning rate; updates are scaled to the root mean square of AdamW's"
    )
    momentum: float = Field(default=0.95, ge=0, lt=1, description="of the gradient, with Nesterov's look ahead")
    iterations: int = Field(default=5, ge=1, description="Newton-Schulz iterations; fewer are cheaper and less exact")
    block: int | None = Field(
        default=128, ge=1, description="rows of a weight that are made orthogonal together; null: all of them"
    )


def as_matrix(weight: Tensor, like: Tensor) -> Tensor:
    """[O, ...] as [O, N], without a copy where memory is laid out as that of `like`: contiguous or channels-last."""
    if like.is_contiguous():
        return weight.reshape(len(weight), -1)
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    """The trained weights that Muon can move: both sides at least 64, no embedding, memory that shows as a matrix."""
    tables = {id(inner.weight) for inner in module.modules() if isinstance(inner, nn.Embedding)}
    for weight in module.parameters():
        if not weight.requires_grad or weight.dim() not in (2, 4) or id(weight) in tables:
            continue
        wide = min(len(weight), weight[0].numel()) >= SMALLEST
        if wide and as_matrix(weight.detach(), weight).data_ptr() == weight.data_ptr():
            yield weight


def blocks(rows: int, most: int | None) -> int:
    """Into how many equal blocks of at most `most` rows a matrix is cut; 1 where its rows do not divide so evenly."""
    fewest = 1 if most is None else math.ceil(rows / most)
    return next((count for count in range(fewest, 2 * fewest) if rows % count == 0), 1)


def orthogonal(x: Tensor, iterations: int = 5) -> Tensor:
    """Matrices [K, m, n] with their singular values moved to about 1, by Newton-Schulz in bfloat16.

    An iteration is x <- (a + b G + c G^2) x with G = x x^T. Its factor commutes with G, so the factors of a few
    iterations are multiplied as m x m matrices before they touch x. Not of all: rounding leaves G with eigenvalues a
    little below 0, which the iteration would blow up, and so G is taken from x anew after two, then after three each.
    """
    if x.shape[-2] > x.shape[-1]:
        return orthogonal(x.mT, iterations).mT
    x = x.bfloat16()
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(1e-30)
    for count in _runs(iterations):
        gram = x @ x.mT
        factor = _factor(gram)
        whole = factor
        for _ in range(count - 1):
            gram = factor @ (gram @ factor)
            factor = _factor(gram)
            whole = factor @ whole
        x = whole @ x
    return x


def _runs(iterations: int) -> Iterator[int]:
    yield min(2, iterations)
    for start in range(2, iterations, 3):
        yield min(3, iterations - start)


def _factor(gram: Tensor) -> Tensor:
    factor = torch.baddbmm(gram, gram, gram, beta=CUBIC, alpha=QUINTIC)
    factor.diagonal(dim1=-2, dim2=-1).add_(LINEAR)
    return factor


class Piece(NamedTuple):
    """A weight that moves: as a matrix, with its gradient and momentum of the same shape, in so many blocks."""

    weight: Tensor
    gradient: Tensor
    momentum: Tensor
    blocks: int

    def cut(self, matrix: Tensor) -> Tensor:
        """[O, N] as blocks [K, O / K, N]."""
        return matrix.view(self.blocks, -1, matrix.shape[1])


class Muon(torch.optim.Optimizer):
    """Muon with decoupled weight decay; a step moves the weights themselves, by their own gradients.

    Blocks of one shape, of whatever weights, are worked on together.
    """

    def __init__(self, weights: list[nn.Parameter], config: MuonConfig, weight_decay: float) -> None:
        self.weights, self.config = weights, config
        views = [nn.Parameter(as_matrix(weight.detach(), weight)) for weight in weights]
        super().__init__(views, {"lr": config.lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every weight that has a gradient."""
        (group,) = self.param_groups
        for alike in _alike(self._pieces(group["params"])):
            looks = _looks(alike, self.config.momentum)
            moves = orthogonal(looks, self.config.iterations).split([piece.blocks for piece in alike])
            pace = -group["lr"] * LIKE_ADAMW * max(moves[0].shape[1:]) ** 0.5
            for piece, move in zip(alike, moves, strict=True):
                piece.weight.mul_(1 - group["lr"] * group["weight_decay"])
                piece.cut(piece.weight).add_(move, alpha=pace)

    def _pieces(self, views: Iterable[Tensor]) -> Iterator[Piece]:
        for weight, view in zip(self.weights, views, strict=True):
            if weight.grad is None:
                continue
            slots = self.state[view]
            if not slots:
                slots["momentum_buffer"] = torch.zeros_like(view)
            count = blocks(len(view), self.config.block)
            shown = as_matrix(weight.detach(), weight)  # not `view`: what wraps a module may have moved its weights
            yield Piece(shown, as_matrix(weight.grad, weight), slots["momentum_buffer"], count)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the weights' gradients."""
        for weight in self.weights:
            weight.grad = None


def _looks(pieces: list[Piece], memory: float) -> Tensor:
    """Move the momenta on; Nesterov's look ahead in bfloat16, all blocks one after the other. Gradients are used up."""
    shape = pieces[0].cut(pieces[0].gradient).shape[1:]
    looks = pieces[0].gradient.new_empty((sum(piece.blocks for piece in pieces), *shape), dtype=torch.bfloat16)
    for piece, look in zip(pieces, looks.split([piece.blocks for piece in pieces]), strict=True):
        piece.momentum.lerp_(piece.gradient, 1 - memory)
        look.copy_(piece.cut(piece.gradient.lerp_(piece.momentum, memory)))
    return looks


def _alike(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces whose blocks have one shape, as many together as AT_ONCE has room for."""
    found: dict[tuple[int, ...], list[Piece]] = defaultdict(list)
    for piece in pieces:
        alike = found[tuple(piece.cut(piece.weight).shape[1:])]
        if alike and sum(p.weight.numel() for p in (*alike, piece)) > AT_ONCE[piece.weight.device.type != "cpu"]:
            yield alike.copy()
            alike.clear()
        alike.append(piece)
    yield from found.values()
