"""Codec ``float32``: four bytes for every parameter."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bnncore.codec.state import StateCodec
from bnncore.state import to_float32

__all__ = ["Float32Codec"]


class Float32Codec(StateCodec):
    """Exact for float32 latent weights; int8 ones are written as w / 127."""

    name: ClassVar[str] = "float32"
    weight_dtype: ClassVar[type[np.generic]] = np.float32

    def encode_weight(self, weights: NDArray[Any]) -> NDArray[np.float32]:
        """Spread int8 to [-1, 1] (``bnncore.state.to_float32``)."""
        return to_float32(weights)
