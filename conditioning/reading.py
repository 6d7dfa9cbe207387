"""What a conditioner offers whose values are pictures, rather than captions or classes."""

from typing import Any, ClassVar

from torch import Tensor

from conditioning.condition import ConditioningError


class PictureReading:
    """Base of `Conditioner`: defaults of a conditioner that reads no pictures.

    One that does makes its prepared inputs of pictures (`encode_pictures`), not of prompts: `prepare` returns those of
    the null condition, which the others replace.
    """

    reads_pictures: ClassVar[bool] = False
    """Whether the condition is the embedding of a picture by a frozen image encoder."""

    @property
    def image_conditioner(self) -> Any:
        """The conditioner that reads pictures, this one or one of several; None: there is none."""
        return self if self.reads_pictures else None

    def encode_pictures(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return the prepared inputs [N, ...], on the CPU, of pictures uint8 [N, C, r, r] of any side.

        Raises:
            ConditioningError: the conditioner reads no pictures.
        """
        return self.embedded(self._reader().embed(pictures))

    def embedded(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Return the prepared inputs of N embeddings, [N, D] or [N, L, D].

        Raises:
            ConditioningError: they have another shape, or the conditioner reads no pictures.
        """
        return self._reader().embedded(embeddings)

    def _reader(self) -> Any:
        if (reader := self.image_conditioner) is None:
            raise ConditioningError("this model is conditioned on no image")
        return reader
