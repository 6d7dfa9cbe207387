"""Digests of what a run depends on beside its pictures; a resumed run must have the same."""

import hashlib

from torch import Tensor

from conditioning.base import Conditioner, Inputs
from ldm_kit.data.images import digest


def condition_dependencies(conditioner: Conditioner, inputs: Inputs) -> dict[str, str]:
    """Return the digest of what turns captions into inputs: of a frozen encoder, or of the ids that a tokenizer gives.

    Numbers are no part of it: they are an encoder's output, which rounding may change.
    """
    if (encoder := conditioner.encoder_digest) is not None:
        return {"condition.model": encoder}
    ids = {name: value for name, value in inputs.items() if not value.is_floating_point()}
    texts = [f"{name} {tuple(ids[name].shape)} {_sha256(ids[name])}" for name in sorted(ids)]
    return {"condition (its tokens or classes)": digest(texts)} if texts else {}


def _sha256(value: Tensor) -> str:
    return hashlib.sha256(value.cpu().contiguous().numpy().data).hexdigest()
