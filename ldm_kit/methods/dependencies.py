"""Digests of the text encoder, or of token and class ids, that a run depends on; a resumed run must have the same."""

import hashlib

from torch import Tensor

from conditioning.base import Conditioner, Inputs
from ldm_kit.data.images import digest


def condition_dependencies(conditioner: Conditioner, inputs: Inputs) -> dict[str, str]:
    """Return {name: digest} of the text encoder, or else of the token or class ids, that a run depends on.

    If the conditioner has a frozen text encoder, the digest is the encoder's. Otherwise it is that of the token and
    class ids in `inputs`; if there are none, the result is {}. Floating-point inputs are left out: an encoder computes
    them, and rounding may change them. The name says in error messages what was hashed.

    Args:
        conditioner: the run's conditioner.
        inputs: what the conditioner prepared from the captions or classes of the training set.
    """
    if (encoder := conditioner.encoder_digest) is not None:
        return {"condition.model": encoder}
    ids = {name: value for name, value in inputs.items() if not value.is_floating_point()}
    texts = [f"{name} {tuple(ids[name].shape)} {_sha256(ids[name])}" for name in sorted(ids)]
    return {"condition (its tokens or classes)": digest(texts)} if texts else {}


def _sha256(value: Tensor) -> str:
    return hashlib.sha256(value.cpu().contiguous().numpy().data).hexdigest()
