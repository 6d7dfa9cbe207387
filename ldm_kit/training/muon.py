"""Muon for the matrices of a network, convolutions included: torch's optimiser, shown each weight as a matrix.

Muon moves a matrix along the nearest orthogonal matrix of its momentum (Jordan et al. 2024), so that no direction of
the gradient is starved. torch.optim.Muon takes 2-D parameters only; a convolution [O, I, k, k] is the matrix
[O, I k k].
Embeddings, norms, biases and layers with a small side stay with AdamW.
"""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from ldm_kit.config import Config

SMALLEST = 64  # a matrix with a smaller side is left to AdamW: first and last layers, narrow nets


class MuonConfig(Config):
    """Muon beside AdamW."""

    lr: float = Field(
        default=3e-3, gt=0, description="peak learning rate; updates are scaled to the root mean square of AdamW's"
    )
    momentum: float = Field(default=0.95, ge=0, lt=1, description="of the gradient, with Nesterov's look ahead")
    iterations: int = Field(default=5, ge=1, description="Newton-Schulz iterations; fewer are cheaper and less exact")


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


class Muon(torch.optim.Muon):
    """torch's Muon over views of `weights`; a step moves the weights themselves, by their own gradients."""

    def __init__(self, weights: list[nn.Parameter], config: MuonConfig, weight_decay: float) -> None:
        self.weights = weights
        views = [nn.Parameter(as_matrix(weight.detach(), weight)) for weight in weights]
        super().__init__(
            views,
            lr=config.lr,
            weight_decay=weight_decay,
            momentum=config.momentum,
            ns_steps=config.iterations,
            adjust_lr_fn="match_rms_adamw",
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every weight that has a gradient."""
        views = [view for group in self.param_groups for view in group["params"]]
        for weight, view in zip(self.weights, views, strict=True):
            view.grad = None if weight.grad is None else as_matrix(weight.grad, weight)
        super().step(closure)
        for view in views:
            view.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the weights' gradients."""
        for weight in self.weights:
            weight.grad = None
