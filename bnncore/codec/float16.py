"""Codec ``float16``: two bytes for every parameter; statistics keep float32."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bnncore.codec.state import StateCodec
from bnncore.errors import PayloadError
from bnncore.spec import TensorSpec
from bnncore.state import to_float32

__all__ = ["Float16Codec"]

_LEAST = np.float16(2.0**-24)
"""The smallest number above zero."""


class Float16Codec(StateCodec):
    """Exact for int8 latent weights in that ``to_int8`` gives them back; float32 numbers are rounded to 11 bits.

    A weight keeps its sign, which is the weight in use. Statistics do not fit: a mean may exceed 65504.
    """

    name: ClassVar[str] = "float16"
    weight_dtype: ClassVar[type[np.generic]] = np.float16

    def encode_weight(self, weights: NDArray[Any]) -> NDArray[np.float16]:
        """Round to the nearest, halves to even; a negative weight that would round to 0 becomes -2^-24."""
        real = to_float32(weights)
        half = real.astype(np.float16)
        half[(half == 0) & (real < 0)] = -_LEAST
        return half

    def stored_dtype(self, tensor: TensorSpec) -> np.dtype[Any]:
        """float16 but for statistics; see ``StateCodec.stored_dtype``."""
        return np.dtype(np.float32 if tensor.is_statistic else np.float16)

    def encode_tensor(self, tensor: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
        """Round what is no statistic; see ``StateCodec.encode_tensor``."""
        if tensor.role == "weight" or tensor.is_statistic:
            return super().encode_tensor(tensor, array)
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.isfinite(half).all():
            raise PayloadError(f"{tensor.name} must lie within +-65504 for codec {self.name!r}. Did it diverge?")
        return half

    def decode_tensor(self, tensor: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
        """Widen to float32, which a state is made of; see ``StateCodec.decode_tensor``."""
        return array.astype(np.float32, copy=False)
