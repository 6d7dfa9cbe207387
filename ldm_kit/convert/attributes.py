"""A published linear classifier as directions for editing."""

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.convert.checkpoint_files import names_in
from ldm_kit.editing.fitting import Fit
from ldm_kit.models.directions import About, Directions, gathered

STRENGTH = 0.3  # that both papers' code uses
# fmt: off
CELEBA = (  # in the order of the columns of CelebA's list of attributes
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache",
    "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks",
    "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick",
    "Wearing_Necklace", "Wearing_Necktie", "Young",
)
# fmt: on


def directions_of(weight: Tensor, bias: Tensor, names: Path | None, key: str) -> Directions:
    """Directions of a classifier of normalised codes, weight [K, D] and bias [K], as `edit.py` uses them.

    How many pictures it saw is not known, nor where the codes with an attribute lie: the mean of all, moved by the
    published strength, stands for those.

    Args:
        weight: a row for each attribute.
        bias: likewise.
        names: a text file, one name a line; None: the 40 of CelebA.
        key: of the model, `seam.key_of`.

    Raises:
        UserError: another number of names, or a row of length 0.
    """
    named = _names(names, len(weight))
    lengths = weight.norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all() and weight.isfinite().all() and bias.isfinite().all()):
        raise UserError("the classifier has a row that is no direction: all zero, or not finite")
    means = weight / lengths * STRENGTH * math.sqrt(weight.shape[1])
    known = {"estimator": "classifier", "typical": STRENGTH, "positives": 0, "others": 0}
    abouts = [About.model_validate({"name": name, **known}) for name in named]
    fits = [Fit(row.double(), float(offset)) for row, offset in zip(weight, bias, strict=True)]
    return gathered(list(zip(abouts, fits, means, strict=True)), key)


def _names(names: Path | None, count: int) -> Sequence[str]:
    if names is not None:
        return names_in(names, count, "attribute", "attributes")
    if count != len(CELEBA):
        raise UserError(f"the classifier knows {count} attributes, not the 40 of CelebA; give their --attributes FILE")
    return CELEBA
