"""diffusers' `UNet2DModel` with the same number of attention heads at every level.

The arguments of `UNet2DModel` fix the channels of a head, not the number of heads. ADM's network for ImageNet at 128 px
has four heads at each of 512, 768 and 1024 channels.
"""

from collections.abc import Sequence

from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d import UNet2DModel


class AdmUNet(UNet2DModel):
    """`UNet2DModel` with `heads` attention heads in every attention layer, at every level.

    The other arguments are those of `UNet2DModel`.
    """

    @register_to_config
    def __init__(
        self,
        *,
        sample_size: int,
        in_channels: int,
        out_channels: int,
        block_out_channels: Sequence[int],
        down_block_types: Sequence[str],
        up_block_types: Sequence[str],
        heads: int,
        layers_per_block: int = 2,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = 32,
        resnet_time_scale_shift: str = "scale_shift",
        downsample_type: str = "resnet",
        upsample_type: str = "resnet",
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        num_train_timesteps: int | None = None,
        class_embed_type: str | None = None,
    ) -> None:
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            block_out_channels=tuple(block_out_channels),
            down_block_types=tuple(down_block_types),
            up_block_types=tuple(up_block_types),
            layers_per_block=layers_per_block,
            dropout=dropout,
            norm_num_groups=norm_num_groups,
            attn_norm_num_groups=attn_norm_num_groups,
            resnet_time_scale_shift=resnet_time_scale_shift,
            downsample_type=downsample_type,
            upsample_type=upsample_type,
            time_embedding_type=time_embedding_type,
            time_embedding_dim=time_embedding_dim,
            num_train_timesteps=num_train_timesteps,
            class_embed_type=class_embed_type,
            attention_head_dim=None,  # one head; cut below
        )
        for module in self.modules():
            if isinstance(module, Attention):
                module.heads = heads
                module.scale = (module.inner_dim // heads) ** -0.5
