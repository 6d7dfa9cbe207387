"""The U-Net of a consistency model of Song et al. 2023 as a network of integer timesteps that predicts x_0."""

from typing import Any

from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from ldm_kit.diffusion.consistency import SIGMA_DATA, SIGMA_MIN, KarrasConsistency
from ldm_kit.diffusion.prediction import expand_like
from ldm_kit.diffusion.schedule import Schedule


class KarrasUNet(UNet2DModel):
    """`UNet2DModel` whose output is the consistency function f(x_t / a_t, sigma_t), with sigma_t = s_t / a_t.

    The network itself takes x = x_0 + sigma eps, scaled by c_in, and the time 250 ln(sigma); see `KarrasConsistency`.
    Call `set_schedule` before the first use. The arguments are those of `UNet2DModel`.
    """

    def set_schedule(self, schedule: Schedule, sigma_min: float = SIGMA_MIN, sigma_data: float = SIGMA_DATA) -> None:
        """Set the noise schedule of x_t, and the constants of the consistency function.

        Args:
            schedule: signal and noise levels by timestep.
            sigma_min: smallest noise level, at which f is the identity.
            sigma_data: standard deviation of the data.
        """
        self.schedule = schedule  # no buffers, which a cast of the network to bf16 would round
        self.sigma_min, self.sigma_data = sigma_min, sigma_data

    def take_class_table(self) -> Tensor | None:
        """Return the class embeddings [K, D], and have the U-Net take such an embedding in place of a class's number.

        None: the network is unconditional.
        """
        embedding = self.class_embedding
        if not isinstance(embedding, nn.Embedding):
            return None
        self.class_embedding = nn.Identity()
        return embedding.weight

    def forward(self, sample: Tensor, timestep: Tensor, *args: Any, **arguments: Any) -> tuple[Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return (x_0,), the consistency function at noisy pictures `sample` [B, C, h, w] and timesteps [B]."""

        def network(x: Tensor, time: Tensor, _: Any) -> Tensor:
            return super(KarrasUNet, self).forward(x.to(sample.dtype), time, *args, **arguments)[0]

        a, s = self.schedule.alpha_sigma(timestep.expand(len(sample)))
        function = KarrasConsistency(network, self.sigma_min, self.sigma_data)
        return (function(sample.float() / expand_like(a, sample.float()), (s / a).float()).to(sample.dtype),)
