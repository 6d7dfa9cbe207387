"""Attribute directions for `edit.py` from a published linear classifier of semantic codes."""

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.convert.checkpoint_files import read_names
from ldm_kit.models.directions import DirectionRecord, Directions, stack_directions
from ldm_kit.models.linear_fit import Fit

STRENGTH = 0.3  # edit strength in DiffAE's and PDAE's published code, in units of sqrt(D)
# fmt: off
CELEBA = (  # in the order of the columns of CelebA's attribute list
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache",
    "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks",
    "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick",
    "Wearing_Necklace", "Wearing_Necktie", "Young",
)
# fmt: on


def classifier_directions(weight: Tensor, bias: Tensor, names: Path | None, key: str) -> Directions:
    """Return one attribute direction for each row of a linear classifier of normalised codes, for use in `edit.py`.

    A classifier's file holds neither the number of training pictures, which is recorded as 0, nor the mean code of the
    pictures with an attribute. The latter is approximated: the mean of all codes, moved along the direction by the
    published edit strength.

    Args:
        weight: the classifier's weights [K, D], one row for each of the K attributes.
        bias: its biases [K].
        names: a text file of the K attributes' names, one a line; None: the 40 attributes of CelebA.
        key: hash of the model to whose codes the directions apply (`protocol.encoder_digest`); it is saved with them.

    Raises:
        UserError: the file `names` cannot be read or does not hold K different names; `names` is None and K is not 40;
            or a row of `weight` is all zero, or `weight` or `bias` is not finite.
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
