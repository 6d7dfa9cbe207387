"""PDAE's gradient estimator: a second decoder on a frozen U-Net's features, conditioned on the semantic code.

The frozen U-Net runs unchanged, and hooks record the inputs of its middle block and decoder blocks. The new decoder's
blocks take the same features and skip connections, with the semantic code beside the time embedding (Zhang et al. 2022,
section 4.1 and appendix). This works for every U-Net of diffusers' usual blocks, with class labels, tokens or neither.
The frozen U-Net's output is bit for bit what it returns without the second decoder.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from inspect import signature
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import (
    AttnUpBlock2D,
    CrossAttnUpBlock2D,
    ResnetUpsampleBlock2D,
    SimpleCrossAttnUpBlock2D,
    UpBlock2D,
)
from torch import Tensor, nn

from ldm_kit.config import UserError
from ldm_kit.nets.adagn import give_z
from ldm_kit.nets.apply import ConditionLike, apply_unet
from ldm_kit.nets.unet import UNet, zero_init_like_adm

UpBlock = UpBlock2D | AttnUpBlock2D | CrossAttnUpBlock2D | ResnetUpsampleBlock2D | SimpleCrossAttnUpBlock2D


class ShiftUNet(ModelMixin, ConfigMixin):
    """PDAE's gradient estimator: a frozen, pretrained U-Net and a second decoder, conditioned on a semantic code z.

    From x_t [B, C, h, w], timesteps t [B] and codes z [B, Z] it computes the frozen U-Net's output and G [B, C, h, w],
    the learned gradient grad_x log p(z | x_t) by which z shifts the frozen model's eps. G is 0 before training.
    Parameters, state dicts and saved folders leave out the frozen U-Net: `ShiftUNet.from_pretrained(folder, base=unet)`
    takes it as an argument. Moving or casting this module moves or casts the frozen U-Net as well.
    """

    _supports_gradient_checkpointing = True

    def __init__(
        self,
        *,
        base: UNet,
        z_width: int = 512,
        copied: bool = False,
        learned_range: bool = False,
        base_digest: str | None = None,
        base_digest_float16: str | None = None,
    ) -> None:
        """Freeze `base`, in place, and build a second decoder with blocks like the middle and up blocks of `base`.

        Args:
            base: the pretrained U-Net; its up blocks must be made of `ResnetBlock2D`.
            z_width: Z, dimensions of a semantic code.
            copied: True: the second decoder starts from the weights of `base`, but the blocks' projections of z and the
                last convolution start at zero. Blocks of `base` that only add the time embedding get new projections
                of the time, which start at random. False: the second decoder starts at random, as in the paper.
            learned_range: whether `base` learns its variance, in the second half of its output channels.
            base_digest: for a saved estimator, the hash `digest(unet)` of the U-Net that it was trained on; None for
                a new estimator.
            base_digest_float16: `digest(unet, float16)`; None for a new estimator, or one saved by release 0.1 or 0.2.

        Raises:
            UserError: `base` has up blocks of another kind, no middle block or no last norm; or the hash of the weights
                of `base` is neither of the two digests.
        """
        super().__init__()
        _check_blocks(base)
        digests = _check_digests((base_digest, base_digest_float16), (digest(base), digest(base, torch.float16)))
        self.register_to_config(z_width=z_width, copied=copied, learned_range=learned_range, **digests)
        time_width = _time_width(base)
        middle, norm, act = _ends(base)
        self.mid_block, self.up_blocks = deepcopy(middle), deepcopy(base.up_blocks)
        self.conv_norm_out, self.conv_act = deepcopy(norm), deepcopy(act)
        if not copied:
            self.apply(_reset)
        made = {"device": base.device, "dtype": base.dtype}
        self.z_embedding = nn.Linear(z_width, time_width, **made)
        self.conv_out = _head(base.conv_out, learned_range, **made)
        for block in self._decoder:
            give_z(block, time_width, time_width, z_shift=True, keep_time=copied)
            if not copied:
                zero_init_like_adm(block)
        self.requires_grad_(True)
        self._frozen = (base.requires_grad_(False),)  # in a tuple: no child, so neither saved nor trained
        self.train()

    @property
    def _decoder(self) -> list[nn.Module]:
        return [self.mid_block, *self.up_blocks]

    @property
    def base(self) -> UNet:
        """The frozen U-Net."""
        return self._frozen[0]

    def forward(
        self, x: Tensor, t: Tensor, z: Tensor, condition: ConditionLike | Mapping[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the frozen U-Net's output and PDAE's learned gradient G [B, C, h, w].

        In the backward pass only the second decoder and z get gradients.

        Args:
            x: noisy data x_t [B, C, h, w].
            t: timesteps [B].
            z: semantic codes [B, Z], or one code [1, Z] for the whole batch.
            condition: the frozen U-Net's condition: a `Condition`, or keyword arguments of the U-Net's `forward`, such
                as `class_labels`.
        """
        base = self.base
        if base.training:  # another owner of it may have called train()
            base.eval()
        with torch.no_grad(), _recorded_inputs([base.mid_block, *base.up_blocks]) as recorded:
            out = _run(base, x, t, condition)
        dtype = self.conv_out.weight.dtype
        code = self.z_embedding(z.to(dtype)).expand(len(x), -1)
        h: Tensor | None = None
        for block, inputs in zip(self._decoder, recorded, strict=True):
            inputs = inputs if dtype == base.dtype else _cast(inputs, dtype)
            h = inputs["hidden_states"] if h is None else h
            temb = torch.cat([inputs["temb"], code.to(inputs["temb"])], 1)
            h = block(**{**inputs, "hidden_states": h, "temb": temb})
        return out, self.conv_out(self.conv_act(self.conv_norm_out(h)))

    def train(self, mode: bool = True) -> "ShiftUNet":
        """Set training or evaluation mode of the second decoder; the frozen U-Net stays in evaluation mode."""
        self.base.eval()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ShiftUNet":
        """Apply `fn`, which moves or casts a tensor, to the tensors of this module and of the frozen U-Net.

        `recurse` is torch's argument: whether submodules of this module are included.
        """
        self.base._apply(fn)
        return super()._apply(fn, recurse)


def digest(unet: nn.Module, dtype: torch.dtype = torch.bfloat16) -> str | None:
    """Return a hash of a U-Net's weights, by which a saved `ShiftUNet` checks the frozen U-Net that it is opened with.

    Returns None on the meta device. The hash is of the weights rounded to `dtype`: a U-Net that was stored in that
    precision has the same hash as its float32 original.

    Args:
        unet: the U-Net.
        dtype: bfloat16 or float16.
    """
    digest_of_all = hashlib.blake2b(digest_size=16)
    for name, value in sorted(unet.state_dict().items()):
        if value.is_meta:
            return None
        digest_of_all.update(name.encode())
        digest_of_all.update(value.detach().cpu().to(dtype).contiguous().view(torch.int16).numpy().tobytes())
    return digest_of_all.hexdigest()


def _check_digests(trained: Sequence[str | None], given: Sequence[str | None]) -> dict[str, str | None]:
    """Check that a frozen U-Net is the one that a gradient estimator was trained on; return both hashes to save.

    Args:
        trained: (bfloat16, float16) hashes, as `digest` returns them, of the U-Net trained on; None: not saved.
        given: (bfloat16, float16) hashes of the U-Net that is passed now, saved if `trained` has none; None: unknown.

    Raises:
        UserError: digests can be compared in at least one of the two precisions, and they differ in each of these.
    """
    pairs = [pair for pair in zip(trained, given, strict=True) if None not in pair]
    if pairs and not any(one == other for one, other in pairs):
        raise UserError(
            "the frozen U-Net is not the one that this gradient estimator was trained on: its weights differ"
        )
    in_bfloat16, in_float16 = trained if any(trained) else given
    return {"base_digest": in_bfloat16, "base_digest_float16": in_float16}


def _check_blocks(base: UNet) -> None:
    kinds = [type(block).__name__ for block in base.up_blocks if not isinstance(block, UpBlock)]
    if kinds:
        raise UserError(f"a U-Net with {kinds[0]} cannot be given a second decoder; expected blocks of ResnetBlock2D")


def _ends(base: UNet) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return the middle block, the last norm and the last activation of a U-Net.

    Raises:
        UserError: the U-Net lacks one of the three.
    """
    if base.mid_block is None or base.conv_norm_out is None or base.conv_act is None:
        raise UserError("a U-Net without a middle block or a last norm cannot be given a second decoder")
    return base.mid_block, base.conv_norm_out, base.conv_act


def _time_width(base: UNet) -> int:
    first = next(block for block in base.up_blocks.modules() if isinstance(block, ResnetBlock2D))
    assert first.time_emb_proj is not None
    return first.time_emb_proj.in_features


def _head(conv: nn.Conv2d, learned_range: bool, **made: Any) -> nn.Conv2d:
    channels = conv.out_channels // 2 if learned_range else conv.out_channels
    size = conv.kernel_size[0]
    head = nn.Conv2d(conv.in_channels, channels, size, padding=size // 2, **made)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head


def _reset(module: nn.Module) -> None:
    """Initialise `module` as torch does by default if it is a linear map, convolution or norm; else do nothing."""
    match module:
        case nn.Linear() | nn.Conv2d() | nn.GroupNorm() | nn.LayerNorm():
            module.reset_parameters()


@contextmanager
def _recorded_inputs(blocks: list[Any]) -> Iterator[list[dict[str, Any]]]:
    """Record the arguments of every call of one of the `blocks` in the `with` block, in the list that is yielded.

    The arguments of a call are a dictionary by parameter name.
    """
    recorded: list[dict[str, Any]] = []

    def record(block: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        recorded.append(dict(signature(block.forward).bind(*args, **named).arguments))

    handles = [block.register_forward_pre_hook(record, with_kwargs=True) for block in blocks]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _run(base: UNet, x: Tensor, t: Tensor, condition: ConditionLike | Mapping[str, Any] | None) -> Tensor:
    if isinstance(condition, Mapping):
        return base(x.to(base.dtype), t, **condition, return_dict=False)[0]
    return apply_unet(base, x, t, condition)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    match value:
        case Tensor() if value.is_floating_point():
            return value.to(dtype)
        case tuple():
            return tuple(_cast(item, dtype) for item in value)
        case dict():
            return {name: _cast(item, dtype) for name, item in value.items()}
        case _:
            return value
