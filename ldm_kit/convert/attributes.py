"""Directions for editing from a published linear classifier of codes."""

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.convert.checkpoint_files import read_names
from ldm_kit.models.directions import DirectionRecord, Directions, stack_directions
from ldm_kit.models.linear_fit import Fit

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


def classifier_directions(weight: Tensor, bias: Tensor, names: Path | None, key: str) -> Directions:
    """Return the directions of a linear classifier of normalised codes, as `edit.py` uses them.

    The file does not hold the number of training pictures, nor the mean code with each attribute: the mean of all
    codes, moved by the published strength, stands for the latter.

    Args:
        weight: [K, D], a row for each attribute.
        bias: [K].
        names: a text file, one name a line; None: the 40 attributes of CelebA.
        key: `protocol.encoder_digest` of the model.

    Raises:
        UserError: another number of names, a row of length 0, or numbers that are not finite.
    """
    attributes = _attribute_names(names, len(weight))
    lengths = weight.norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all() and weight.isfinite().all() and bias.isfinite().all()):
        raise UserError("the classifier has a row that is no direction: all zero, or not finite")
    means = weight / lengths * STRENGTH * math.sqrt(weight.shape[1])
    unknown = {"estimator": "classifier", "typical": STRENGTH, "positives": 0, "others": 0}
    records = [DirectionRecord.model_validate({"name": name, **unknown}) for name in attributes]
    fits = [Fit(row.double(), float(offset)) for row, offset in zip(weight, bias, strict=True)]
    return stack_directions(list(zip(records, fits, means, strict=True)), key)


def _attribute_names(names: Path | None, count: int) -> Sequence[str]:
    if names is not None:
        return read_names(names, count, "attribute", "attributes")
    if count != len(CELEBA):
        raise UserError(f"the classifier knows {count} attributes, not the 40 of CelebA; give their --attributes FILE")
    return CELEBA
