"""The optimiser Muon for the matrices and convolutions of a network, with updates orthogonalised in blocks of rows.

Muon updates a matrix by the orthogonal matrix nearest to its momentum (Jordan et al. 2024), so that all directions of
the gradient have equal weight. A convolution [O, I, k, k] is treated as the matrix [O, I k k]. Orthogonalising whole
matrices takes up to a third of a training step; orthogonalising each block of rows by itself (Khaled et al. 2025,
MuonBP) takes less than half of that time. AdamW updates embeddings, norms, biases and matrices with a small side.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ldm_kit.config import Config
from ldm_kit.training.precision import matrix_dtype

MIN_SIDE = 64  # a matrix with a smaller side is left to AdamW: first and last layers, narrow networks
LINEAR, CUBIC, QUINTIC = 3.4445, -4.7750, 2.0315  # coefficients of the Newton-Schulz iteration, from Jordan et al.
UPDATE_RMS = 0.2  # root mean square of an update at learning rate 1, as AdamW's (Liu et al. 2025, eq. 4)
MAX_NUMEL = 2**22, 2**26  # most numbers in a batch of blocks: on a CPU (so that it fits the cache), on other devices


class MuonConfig(Config):
    """Settings of Muon, which updates matrices; AdamW updates the other weights."""

    lr: float = Field(
        default=3e-3, gt=0, description="peak learning rate; updates are scaled to the root mean square of AdamW's"
    )
    momentum: float = Field(default=0.95, ge=0, lt=1, description="gradient momentum, with Nesterov's look-ahead")
    iterations: int = Field(default=5, ge=1, description="Newton-Schulz iterations; fewer are cheaper and less exact")
    block: int | None = Field(
        default=128,
        ge=1,
        description="most rows of a weight that are made orthogonal together, where blocks of that size or half of it "
        "divide the rows; else, and with null, all of them",
    )


def as_matrix(weight: Tensor, like: Tensor) -> Tensor:
    """Return a weight [O, ...] as a matrix [O, N], where N is the product of the other dimensions.

    Columns are in the order in which a row of `like` lies in memory. The result is a view if `weight` has the memory
    layout of `like`, else a copy.

    Args:
        weight: a weight or its gradient.
        like: a tensor of the same shape, contiguous or channels-last.
    """
    if like.is_contiguous():
        return weight.reshape(len(weight), -1)
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the weights of a module that Muon can update.

    They are trainable matrices and convolutions, no embeddings, with both sides of the matrix at least 64, whose memory
    can be viewed as that matrix without a copy.
    """
    embeddings = {id(inner.weight) for inner in module.modules() if isinstance(inner, nn.Embedding)}
    for weight in module.parameters():
        if not weight.requires_grad or weight.dim() not in (2, 4) or id(weight) in embeddings:
            continue
        is_large = min(len(weight), weight[0].numel()) >= MIN_SIDE
        if is_large and as_matrix(weight.detach(), weight).data_ptr() == weight.data_ptr():
            yield weight


def blocks(rows: int, most: int | None) -> int:
    """Return the number of equal blocks into which a matrix of `rows` rows is split, with at most `most` rows each.

    This is the smallest number from f to 2 f - 1 that divides `rows`, where f = ceil(rows / most). If none does, as
    with a prime number of rows, or `most` is None, it is 1: all rows are one block, which may have more than `most`.
    """
    fewest = 1 if most is None else math.ceil(rows / most)
    return next((count for count in range(fewest, 2 * fewest) if rows % count == 0), 1)


def orthogonal(x: Tensor, iterations: int = 5) -> Tensor:
    """Return matrices with the singular vectors of x and singular values near 1, by Newton-Schulz iterations.

    An iteration is x <- F x with F = a I + b G + c G^2, G = x x^T and a, b, c = LINEAR, CUBIC, QUINTIC. F commutes with
    G, so the F of a few iterations are multiplied, as m x m matrices, before their product is applied to x. But
    rounding gives G eigenvalues slightly below 0, which iterations amplify. So G is computed anew from x after the
    first two iterations, then after every three. bfloat16 is used where it is fast.

    Args:
        x: matrices [K, m, n].
        iterations: number of iterations, at least 1.

    Returns:
        Matrices [K, m, n], bfloat16, or float32 on a processor without bfloat16.
    """
    if x.shape[-2] > x.shape[-1]:
        return orthogonal(x.mT, iterations).mT
    x = x.to(matrix_dtype(x.device))
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(1e-30)
    for count in _iterations_per_gram(iterations):
        gram = x @ x.mT
        factor = _factor(gram)
        product = factor
        for _ in range(count - 1):
            gram = factor @ (gram @ factor)
            factor = _factor(gram)
            product = factor @ product
        x = product @ x
    return x


def _iterations_per_gram(iterations: int) -> Iterator[int]:
    yield min(2, iterations)
    for start in range(2, iterations, 3):
        yield min(3, iterations - start)


def _factor(gram: Tensor) -> Tensor:
    factor = torch.baddbmm(gram, gram, gram, beta=CUBIC, alpha=QUINTIC)
    factor.diagonal(dim1=-2, dim2=-1).add_(LINEAR)
    return factor


class MatrixUpdate(NamedTuple):
    """A weight to update, its gradient and its momentum, each as a matrix [O, N] with a row for each output."""

    weight: Tensor
    gradient: Tensor
    momentum: Tensor
    blocks: int  # number of equal blocks of rows, each of which is orthogonalised by itself

    def in_blocks(self, matrix: Tensor) -> Tensor:
        """Return a view of a matrix [O, N] as K = `blocks` blocks of rows, [K, O / K, N]."""
        return matrix.view(self.blocks, -1, matrix.shape[1])


class Muon(torch.optim.Optimizer):
    """The optimiser Muon with decoupled weight decay.

    A weight [O, ...] is updated as a matrix with O rows. These rows are split into equal blocks of at most
    `config.block` rows (see `blocks`), and each block of the momentum is orthogonalised by itself. For speed, blocks
    that have the same shape, from whichever weights, are orthogonalised together as one batch of matrices.

    Args:
        weights: the parameters to update, as `matrices` yields them.
        config: learning rate, momentum, Newton-Schulz iterations and rows of a block.
        weight_decay: a step multiplies each weight by 1 - lr * weight_decay, where lr is the learning rate.
    """

    def __init__(self, weights: list[nn.Parameter], config: MuonConfig, weight_decay: float) -> None:
        self.weights, self.config = weights, config
        views = [nn.Parameter(as_matrix(weight.detach(), weight)) for weight in weights]
        super().__init__(views, {"lr": config.lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every weight that has a gradient; the gradients are overwritten."""
        (group,) = self.param_groups
        for same_shape in _by_block_shape(self._matrix_updates(group["params"])):
            momenta = _nesterov_momenta(same_shape, self.config.momentum)
            directions = orthogonal(momenta, self.config.iterations).split([update.blocks for update in same_shape])
            scale = -group["lr"] * UPDATE_RMS * max(directions[0].shape[1:]) ** 0.5
            for update, direction in zip(same_shape, directions, strict=True):
                update.weight.mul_(1 - group["lr"] * group["weight_decay"])
                update.in_blocks(update.weight).add_(direction, alpha=scale)

    def _matrix_updates(self, views: Iterable[Tensor]) -> Iterator[MatrixUpdate]:
        for weight, view in zip(self.weights, views, strict=True):
            if weight.grad is None:
                continue
            state = self.state[view]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(view)
            matrix = as_matrix(weight.detach(), weight)  # not `view`: a wrapper may have moved the module's weights
            count = blocks(len(view), self.config.block)
            yield MatrixUpdate(matrix, as_matrix(weight.grad, weight), state["momentum_buffer"], count)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the weights."""
        for weight in self.weights:
            weight.grad = None


def _nesterov_momenta(updates: list[MatrixUpdate], momentum: float) -> Tensor:
    """Update the momenta in place, and return their Nesterov look-ahead as K blocks of rows, [K, m, n].

    The K blocks are those of all updates, one update after another, in the dtype that `orthogonal` computes in. The
    gradients are overwritten.

    Args:
        updates: updates whose blocks have the same shape [m, n].
        momentum: share of the old momentum in the new one.
    """
    shape = updates[0].in_blocks(updates[0].gradient).shape[1:]
    counts = [update.blocks for update in updates]
    gradient = updates[0].gradient
    momenta = gradient.new_empty((sum(counts), *shape), dtype=matrix_dtype(gradient.device))
    for update, target in zip(updates, momenta.split(counts), strict=True):
        update.momentum.lerp_(update.gradient, 1 - momentum)
        target.copy_(update.in_blocks(update.gradient.lerp_(update.momentum, momentum)))
    return momenta


def _by_block_shape(updates: Iterable[MatrixUpdate]) -> Iterator[list[MatrixUpdate]]:
    """Yield groups of updates whose blocks have one shape, to be orthogonalised as one batch of matrices.

    The matrices of a group have at most 2^22 elements in all on a CPU, 2^26 on other devices (MAX_NUMEL), or the group
    is a single update.
    """
    groups: dict[tuple[int, ...], list[MatrixUpdate]] = defaultdict(list)
    for update in updates:
        group = groups[tuple(update.in_blocks(update.weight).shape[1:])]
        if group and sum(u.weight.numel() for u in (*group, update)) > MAX_NUMEL[update.weight.device.type != "cpu"]:
            yield group.copy()
            group.clear()
        group.append(update)
    yield from groups.values()
