"""The U-Nets that decode a semantic code: the code is one vector (DiffAE), or each of its numbers a token (EncDiff)."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ldm_kit.config import Config
from ldm_kit.nets.arguments import network_arguments
from ldm_kit.nets.semantic_unet import SemanticUNet, SemanticUNetConfig, build_semantic_unet, check_halves
from ldm_kit.nets.token_unet import TokenCodeConfig, TokenUNet


class VectorCodeConfig(Config):
    """A code that is one vector, which scales the norms of all residual blocks."""

    kind: Literal["vector"] = Field(
        default="vector", description="one vector, which scales the norms of all residual blocks (DiffAE)"
    )


CodeConfig = Annotated[VectorCodeConfig | TokenCodeConfig, Field(discriminator="kind")]
CodeUNet = SemanticUNet | TokenUNet


def build_code_unet(
    config: SemanticUNetConfig, code: CodeConfig, *, sample_size: int, channels: int, z_width: int
) -> CodeUNet:
    """Build the U-Net that decodes semantic codes, with random weights.

    Args:
        config: widths, attention and so on.
        code: how the network takes a code.
        sample_size: side of a training picture (or latent).
        channels: channels of input and output.
        z_width: numbers in a semantic code.

    Raises:
        UserError: `sample_size` cannot be halved once for every level after the first.
    """
    shape: dict[str, Any] = {"sample_size": sample_size, "channels": channels, "z_width": z_width}
    match code:
        case VectorCodeConfig():
            return build_semantic_unet(config, **shape)
        case TokenCodeConfig(width=width, hidden=hidden):
            check_halves(config, sample_size)
            return TokenUNet(**shape, token_width=width, token_hidden=hidden, **network_arguments(config))
