"""Digests of what a run depends on beside its pictures; a resumed run must have the same digests."""

import hashlib

from torch import Tensor

from conditioning.base import Conditioner, Inputs
from ldm_kit.data.images import digest


def condition_dependencies(conditioner: Conditioner, inputs: Inputs) -> dict[str, str]:
    """Return a digest of how captions or classes are prepared, under the name that messages call it by.

    It is the digest of the frozen text encoder or, without one, of the prepared token and class ids. Floating-point
    inputs are left out: they are the output of an encoder, and rounding may change them.
    """
    if (encoder := conditioner.encoder_digest) is not None:
        return {"condition.model": encoder}
    ids = {name: value for name, value in inputs.items() if not value.is_floating_point()}
    texts = [f"{name} {tuple(ids[name].shape)} {_sha256(ids[name])}" for name in sorted(ids)]
    return {"condition (its tokens or classes)": digest(texts)} if texts else {}


def _sha256(value: Tensor) -> str:
    return hashlib.sha256(value.cpu().contiguous().numpy().data).hexdigest()
