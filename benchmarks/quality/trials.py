"""What others report to be worth a try and the kit does not have: changed denoising tasks, for `choices` alone."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from conditioning.base import Inputs
from ldm_kit.diffusion import rng
from ldm_kit.diffusion.loss import Errors
from ldm_kit.methods.inputs import noise_batch
from ldm_kit.methods.latent import Latent
from ldm_kit.training.task import LossTerm


class _Chosen(Latent):
    """Noise is not what comes, but what `chosen` makes of it."""

    def chosen(self, x_0: Tensor, eps: Tensor, position: Tensor) -> Tensor:
        raise NotImplementedError

    def errors(
        self, batch: Mapping[str, Any], t: Tensor, seed: int, inputs: Inputs, network: Callable[..., Tensor]
    ) -> Errors:
        x_0, eps, _, _ = noise_batch(batch, t, seed, self.schedule)
        eps = self.chosen(x_0, eps, batch["position"])
        return self.objective.errors(
            network(self.schedule.add_noise(x_0, eps, t), t, inputs), x_0, eps, t, self.schedule
        )


class Assigned(_Chosen):
    """The batch's noises go to its latents so that all have least to move (Li et al. 2024, "Immiscible Diffusion")."""

    def chosen(self, x_0: Tensor, eps: Tensor, position: Tensor) -> Tensor:
        _, to = linear_sum_assignment(torch.cdist(x_0.flatten(1), eps.flatten(1)).numpy())
        return eps[torch.from_numpy(to)]


class Nearest(_Chosen):
    """Each latent has the nearest of four noises of its own, so that no batch mate matters."""

    def chosen(self, x_0: Tensor, eps: Tensor, position: Tensor) -> Tensor:
        more = [rng.normal(self.config.seed, f"noise {k}", position, x_0.shape[1:]) for k in range(3)]
        all_ = torch.stack([eps, *more], 1)
        nearest = (all_ - x_0[:, None]).flatten(2).norm(dim=2).argmin(1)
        return all_[torch.arange(len(x_0)), nearest]


class Dispersive(Latent):
    """Features between the halves of the U-Net keep away from each other (Wang & He 2025), weight 0.25, tau 1."""

    weight = 0.25

    def losses(self, batch: Mapping[str, Any], step: int) -> Iterator[LossTerm]:
        with _seen(self.module.unet.mid_block) as features:
            for player, value, logs in super().losses(batch, step):
                yield player, value + self.weight * dispersion(features.pop()), logs


def dispersion(h: Tensor, tau: float = 1.0) -> Tensor:
    """log mean over pairs exp(-|h_i - h_j|^2 / (D tau)) of features h [B, ...] of D numbers each."""
    flat = h.float().flatten(1)
    squares = flat.square().sum(1)
    distances = (squares[:, None] + squares - 2 * flat @ flat.T).clamp_min(0) / flat.shape[1]
    return torch.logsumexp(-distances.flatten() / tau, 0) - 2 * torch.tensor(len(flat)).log()


@contextmanager
def _seen(module: Any) -> Iterator[list[Tensor]]:
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, __, out: outputs.append(out))
    try:
        yield outputs
    finally:
        handle.remove()


TRIALS: Mapping[str, type[Latent]] = {"assigned": Assigned, "nearest": Nearest, "dispersive": Dispersive}
