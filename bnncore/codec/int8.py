"""Codec ``int8``: one byte a weight, float32 for everything else."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bnncore.codec.state import StateCodec
from bnncore.state import to_int8

__all__ = ["Int8Codec"]


class Int8Codec(StateCodec):
    """Exact for int8 latent weights; float32 ones are rounded to steps of 1/127."""

    name: ClassVar[str] = "int8"
    weight_dtype: ClassVar[type[np.generic]] = np.int8

    def encode_weight(self, weights: NDArray[Any]) -> NDArray[np.int8]:
        """Round to the nearest step, halves to even (``bnncore.state.to_int8``)."""
        return to_int8(weights)
