"""State codecs: the parameters of a network, as a tensor container.

A payload is a container (``container.py``) whose metadata say which codec made it, for which network and of which kind,
so a payload that reaches the wrong job is recognised before any tensor is looked at.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bnncore.codec.base import NONE_LOCAL, Codec, PayloadKind, tensors_of_kind
from bnncore.codec.container import pack, unpack
from bnncore.errors import PayloadError, ShapeError
from bnncore.spec import ModelSpec, TensorSpec
from bnncore.state import State, validate_tensors

__all__ = ["StateCodec"]


class StateCodec(Codec[State]):
    """One way of writing a state as bytes. Subclasses say how a tensor is written.

    Attributes:
      weight_dtype: dtype of a weight tensor in the payload.
    """

    is_difference: ClassVar[bool] = False
    kinds: ClassVar[tuple[PayloadKind, ...]] = ("model", "update", "statistics")
    weight_dtype: ClassVar[type[np.generic]]

    @abstractmethod
    def encode_weight(self, weights: NDArray[Any]) -> NDArray[Any]:
        """Turn latent weights (int8 or float32, any shape) into ``weight_dtype`` of the same shape."""

    def stored_dtype(self, tensor: TensorSpec) -> np.dtype[Any]:
        """Give the dtype of a tensor in a payload."""
        return np.dtype(self.weight_dtype if tensor.role == "weight" else np.float32)

    def encode_tensor(self, tensor: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
        """Turn a valid tensor into ``stored_dtype``.

        Raises:
          PayloadError: it holds a number that the codec cannot write.
        """
        return self.encode_weight(array) if tensor.role == "weight" else array

    def decode_tensor(self, tensor: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
        """Turn what a payload holds into a tensor of a state: int8 weights, or float32."""
        return array

    def encode(
        self, spec: ModelSpec, tensors: State, *, kind: PayloadKind, local: AbstractSet[str] = NONE_LOCAL
    ) -> bytes:
        """Write a state as a payload; see ``Codec.encode``."""
        self.check_kind(kind)
        wanted = tensors_of_kind(spec, kind, local)
        left_out = {tensor.name for tensor in spec.tensors} - {tensor.name for tensor in wanted}
        chosen = {name: array for name, array in tensors.items() if name not in left_out}
        validate_tensors(spec, chosen, wanted)
        written = {tensor.name: self.encode_tensor(tensor, chosen[tensor.name]) for tensor in wanted}
        return pack(written, self._metadata(spec, kind, local))

    def decode(
        self, spec: ModelSpec, data: bytes | memoryview, *, kind: PayloadKind, local: AbstractSet[str] = NONE_LOCAL
    ) -> State:
        """Read a payload; see ``Codec.decode``.

        Memory: nothing beyond ``data``, except where ``decode_tensor`` says otherwise.
        """
        self.check_kind(kind)
        tensors, metadata = unpack(data)
        expected = self._metadata(spec, kind, local)
        if metadata != expected:
            raise PayloadError(f"the payload must be made for {expected:.400}, got {metadata!r:.400}")
        wanted = tensors_of_kind(spec, kind, local)
        state = {
            tensor.name: self._read(tensor, tensors.pop(tensor.name)) for tensor in wanted if tensor.name in tensors
        }
        try:
            validate_tensors(spec, {**state, **tensors}, wanted)
        except ShapeError as error:
            raise PayloadError(str(error)) from error
        return state

    def _read(self, tensor: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
        if array.dtype != self.stored_dtype(tensor):
            raise PayloadError(
                f"{tensor.name} must be {self.stored_dtype(tensor)} in a payload of codec {self.name!r}, "
                f"got {array.dtype}"
            )
        return self.decode_tensor(tensor, array)

    def _metadata(self, spec: ModelSpec, kind: PayloadKind, local: AbstractSet[str]) -> str:
        metadata: dict[str, Any] = {"codec": self.name, "kind": kind, "spec": spec.digest}
        if local and kind != "model":
            metadata["local"] = sorted(local)
        return json.dumps(metadata, sort_keys=True, separators=(",", ":"))
