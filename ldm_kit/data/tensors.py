"""Training data from a tensor of images in memory: `ldm_kit.train(config, data=from_tensor(images))`."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.captions import Captions
from ldm_kit.data.images import InMemory, Record, Split, digest, split_off, subset
from ldm_kit.data.lists import check_lists
from ldm_kit.data.value_range import MOST_CHANNELS, ValueRange, range_pairs

CHANNELS = (1, 3, 4)


def from_tensor(
    images: Tensor,
    *,
    captions: Sequence[str | Sequence[str]] | None = None,
    labels: Sequence[int] | Tensor | None = None,
    classes: Sequence[str] = (),
    heldout: float = 0.0,
    value_range: Sequence[float] | Sequence[Sequence[float]] | None = None,
) -> Split:
    """Return training data made from a tensor of images; the images stay in memory.

    Args:
        images: uint8 [N, C, R, R] with values 0..255, or float [N, C, R, R] in [-1, 1], which is rounded to 256 levels;
            C is 1 (grey), 3 (RGB) or 4 (RGBA), and images are square.
        captions: N texts, for a text condition, or for some images a list of texts, of which training draws one; None:
            empty captions.
        labels: N class indices, 0 <= label < K, for a class condition; None: unlabelled.
        classes: K class names; empty: "0", "1", ... up to the largest label.
        heldout: approximate share of the images, 0 <= heldout < 1, that is never trained on and serves to measure
            losses. A hash of an image's index decides whether it is held out.
        value_range: (low, high), or such a pair for each channel: images are then whole numbers or floats of any kind,
            [N, C, R, R] with C up to 16, of which low becomes -1 and high 1, in 65536 levels; values outside are
            clipped. None: images of 8 bits.

    Returns:
        A `Split` of training and held-out images; `compositional` is None.

    Raises:
        UserError: the shape, dtype or range of an argument is not as above, there is no image, or the number of
            captions or labels is not N.
    """
    for name, value in (("captions", captions), ("labels", labels), ("classes", classes)):
        if value is not None:
            check_lists(**{name: value})
    values = None if value_range is None else _range(value_range)
    pixels = _pixels(images) if values is None else _levels(images, values)
    if not 0 <= heldout < 1:
        raise UserError(f"heldout is {heldout}; expected a share of the images, 0 <= heldout < 1")
    numbers = _labels(labels, len(pixels), classes)
    names = list(classes) or [str(k) for k in range(max(numbers, default=-1) + 1)]
    if captions is not None and len(captions) != len(pixels):
        raise UserError(f"got {len(captions)} captions for {len(pixels)} images; expected one for each")
    records = [_record(i, captions, numbers) for i in range(len(pixels))]
    contents = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
    described = ["\0".join([*record.captions, str(record.label)]) for record in records]
    shape = [str(tuple(pixels.shape)), *([] if values is None else [str(values.pairs)])]
    whole = InMemory(records, names, pixels, digest(["tensor", *shape, contents, *names, *described]), values)
    train, held = split_off(records, heldout)
    return Split(subset(whole, train), subset(whole, held), None)


def _record(index: int, captions: Sequence[str | Sequence[str]] | None, labels: Sequence[int]) -> Record:
    caption = captions[index] if captions else ""
    try:
        text, others = Captions.of([*caption] if isinstance(caption, list | tuple) else caption)
    except ValueError as error:
        raise UserError(f"caption {index} is {error}") from None
    return Record(f"{index:07d}", text, labels[index] if labels else None, {}, others)


def _range(value: Sequence[float] | Sequence[Sequence[float]]) -> ValueRange:
    try:
        return ValueRange.of(range_pairs(value))
    except ValueError as error:
        raise UserError(f"value_range: {error}") from None


def _levels(images: Tensor, values: ValueRange) -> Tensor:
    """Return images [N, C, R, R] of any values as levels between those of a range, uint16 on the CPU."""
    channels = images.shape[1] if images.ndim == 4 else 0
    if not 1 <= channels <= MOST_CHANNELS or images.shape[2] != images.shape[3] or not len(images):
        raise UserError(
            f"images have the shape {tuple(images.shape)}; expected [N, C, R, R] with N > 0 and C at most "
            f"{MOST_CHANNELS}"
        )
    if len(values.low) not in (1, channels):
        raise UserError(f"value_range has {len(values.low)} pairs, but images have {channels} channels")
    if not images.double().isfinite().all():
        raise UserError("images hold NaN or infinity; expected finite values")
    return torch.stack([torch.from_numpy(values.levels(image.detach().cpu().double().numpy())) for image in images])


def _pixels(images: Tensor) -> Tensor:
    """Check images and return them as uint8 [N, C, R, R] on the CPU; floats in [-1, 1] are rounded to 256 levels."""
    if images.ndim != 4 or images.shape[1] not in CHANNELS or images.shape[2] != images.shape[3] or not len(images):
        raise UserError(
            f"images have the shape {tuple(images.shape)}; expected [N, C, R, R] with N > 0 and C one of 1, 3, 4"
        )
    images = images.detach().cpu()
    if images.dtype == torch.uint8:
        return images.contiguous()
    if not images.is_floating_point():
        raise UserError(f"images are {images.dtype}; expected torch.uint8 in 0..255, or floats in [-1, 1]")
    if not (images.min() >= -1 and images.max() <= 1):
        low, high = float(images.min()), float(images.max())
        raise UserError(f"images of floats range from {low:g} to {high:g}; expected values in [-1, 1]")
    return ((images.float() + 1) * 127.5).round().to(torch.uint8).contiguous()


def _labels(labels: Sequence[int] | Tensor | None, count: int, classes: Sequence[str]) -> list[int]:
    """Check the labels of `count` images, indices into `classes` if given; return ints, or [] if `labels` is None."""
    if labels is None:
        return []
    numbers = [int(label) for label in labels]
    if len(numbers) != count:
        raise UserError(f"got {len(numbers)} labels for {count} images; expected one for each")
    if min(numbers) < 0 or (classes and max(numbers) >= len(classes)):
        above = f" and below {len(classes)}, the number of classes" if classes else ""
        raise UserError(
            f"labels range from {min(numbers)} to {max(numbers)}; expected class indices of 0 or more{above}"
        )
    return numbers
