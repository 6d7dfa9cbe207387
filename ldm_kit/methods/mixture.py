"""The order of training samples of a method whose data have several parts."""

from ldm_kit.data.images import Split
from ldm_kit.data.mixed import shares_of
from ldm_kit.training.batches import Mixture


class Mixed:
    """Base of `Method` with the order of the samples, if the data set is a mix of several."""

    data: Split

    @property
    def mixture(self) -> Mixture | None:
        """The order of the samples of the parts of the training set; None: it has no parts."""
        parts = shares_of(self.data.train)
        return None if parts is None else Mixture.of(parts.sizes, parts.shares)
