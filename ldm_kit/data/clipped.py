"""Warn of a range of values that most values of a data set lie outside of."""

import logging

from ldm_kit.data.batches import spread
from ldm_kit.data.images import PictureSet, value_range_of

LOOKED_AT = 32  # pictures whose levels are counted
MOST = 0.5  # share of values at the ends of the range above which a warning is logged
_log = logging.getLogger("ldm_kit.data")


def warn_clipped(pictures: PictureSet, source: object) -> None:
    """Log a warning if over half of the values of some pictures are at the ends of their range, or beyond.

    So it is if the range is that of other data, such as [0, 255] of 16 bits. `source` names the data set.
    """
    if (values := value_range_of(pictures)) is None or not len(pictures):
        return
    levels = pictures.pictures(spread(len(pictures), LOOKED_AT)).float()
    low, high = (levels == 0).float().mean().item(), (levels == 65535).float().mean().item()
    if low + high > MOST:
        _log.warning(
            "%s: of data.range %s, %.0f %% of the values are at low or below and %.0f %% at high or above, as %d "
            "pictures show; is it the range of these files?",
            *(source, values, 100 * low, 100 * high, min(LOOKED_AT, len(pictures))),
        )
