"""Memory that stage 1 keeps for the backward pass, by the precision of norms; counted on a CPU, for any GPU.

`python -m benchmarks.gpu.kept` counts the tensors that one pass of kl-f8 over one picture of 128 px keeps under
autocast to bf16, and those of a network whose weights are bf16, as diffusers' are in benchmarks/gpu/peers.py. A CPU's
autocast with `train.norms=float32` computes norms as CUDA's autocast does by itself.
"""

from contextlib import nullcontext

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from autoencoder.config import build
from autoencoder.kl import KLConfig
from benchmarks.tables import format_rows
from ldm_kit.nets.norms import NormPrecision, set_norms

SIDE = 128
MEBIBYTE = 2**20


def kept_bytes(vae: AutoencoderKL, x: Tensor, norms: NormPrecision | None) -> int:
    """Return the bytes of all tensors that encoding and decoding pictures keeps for the backward pass.

    Weights, and autocast's copies of them, are not counted.

    Args:
        vae: the autoencoder, on a CPU.
        x: pictures [B, C, R, R].
        norms: precision of the norms under autocast to bf16; None: no autocast.
    """
    storages: dict[int, torch.UntypedStorage] = {}
    shapes = {weight.shape for weight in vae.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape not in shapes:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    set_norms(vae, "cpu", norms or "auto")
    context = nullcontext() if norms is None else torch.autocast("cpu", torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), context:
        _ = vae.decode(vae.encode(x).latent_dist.mode()).sample  # pyright: ignore[reportAttributeAccessIssue]
    return sum(storage.nbytes() for storage in storages.values())


def main() -> None:
    """Print the table."""
    vae = build(KLConfig.model_validate({"preset": "kl-f8", "resolution": SIDE}))
    assert isinstance(vae, AutoencoderKL)
    x = torch.zeros(1, 3, SIDE, SIDE)
    counted = {
        "norms in 16 bits (train.norms auto)": kept_bytes(vae, x, "auto"),
        "norms in float32 (CUDA's autocast)": kept_bytes(vae, x, "float32"),
    }
    nn.Module.to(vae, torch.bfloat16)  # diffusers' own `to` warns
    counted["weights in bf16, no autocast"] = kept_bytes(vae, x.bfloat16(), None)
    least = min(counted.values())
    rows = [{"name": name, "kept": size / MEBIBYTE, "times": size / least} for name, size in counted.items()]
    columns = {"name": ("", ""), "kept": ("MiB kept", ".0f"), "times": ("times the least", ".2f")}
    print(format_rows(columns, rows))


if __name__ == "__main__":
    main()
