"""What a conditioner prepares for a whole set, for every method that is told of its pictures."""

from collections.abc import Sequence

from tqdm import tqdm

from conditioning.base import Conditioner, Inputs
from ldm_kit.data import tensor_cache
from ldm_kit.methods.first_stage import cache_root


def prepared(conditioner: Conditioner, raw: Sequence[str | int]) -> Inputs:
    """Return prepared captions or labels, [N, ...] each; the states of a frozen encoder are cached on disk.

    Raises:
        ConditioningError: an unknown class, or an encoder that cannot be had.
    """
    if conditioner.cache_key is None:
        return conditioner.prepare(raw)
    key = tensor_cache.key_of(*conditioner.cache_key, list(raw))

    def encoded() -> Inputs:
        with tqdm(desc="captions", unit="caption", leave=False) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            return conditioner.prepare(raw, progress)

    return tensor_cache.cached(cache_root() / "states", key, encoded)
