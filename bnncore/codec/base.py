"""What every codec is: a pair of functions between a state and one byte string, the payload.

A payload is a tensor container (``container.py``) whose metadata say which codec made it, for which network and of
which kind, so a payload that reaches the wrong job is recognised before any tensor is looked at.

* kind ``model``: weights and beta. Statistics do not travel down: a device computes its own.
* kind ``update``: weights, beta and statistics: the parameters after local training, not their difference to the
  model (the weighted mean of parameters is the model plus the weighted mean of differences).

Laws, tested for every registered codec: the same state gives the same bytes; decode(encode(s)) is s with its weights
in the codec's dtype; every truncation is refused; bytes with one byte changed are refused or decode to a valid state.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from bnncore.codec.container import pack, unpack
from bnncore.errors import PayloadError, ShapeError
from bnncore.spec import ModelSpec
from bnncore.state import State, validate_state

__all__ = ["Codec", "PayloadKind", "payload_digest"]

PayloadKind = Literal["model", "update"]


def payload_digest(data: bytes | memoryview) -> str:
    """Name a payload by its content: SHA-256 in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


class Codec(ABC):
    """One way of writing a state as bytes. Subclasses say how a weight tensor is written.

    Attributes:
      name: what jobs and payloads call it.
      weight_dtype: dtype of a weight tensor in the payload and in the state that ``decode`` gives.
    """

    name: ClassVar[str]
    weight_dtype: ClassVar[type[np.generic]]

    @abstractmethod
    def encode_weight(self, weights: NDArray[Any]) -> NDArray[Any]:
        """Turn latent weights (int8 or float32, any shape) into ``weight_dtype`` of the same shape."""

    def encode(self, spec: ModelSpec, state: State, *, kind: PayloadKind) -> bytes:
        """Write a state as a payload.

        Args:
          spec: the network of the state.
          state: valid weights and beta; statistics too for an update, for a model they are left out.
          kind: ``model`` (down) or ``update`` (up).

        Returns:
          Bytes that depend on the arguments alone.

        Raises:
          ShapeError: a tensor is missing, unknown, or of another shape.
          PayloadError: a tensor is not finite, out of range or of another dtype.
        """
        left_out = {tensor.name for tensor in spec.tensors if tensor.is_statistic} if kind == "model" else set()
        chosen = {name: array for name, array in state.items() if name not in left_out}
        validate_state(spec, chosen, statistics=kind == "update")
        tensors = {
            tensor.name: self.encode_weight(chosen[tensor.name]) if tensor.role == "weight" else chosen[tensor.name]
            for tensor in spec.tensors
            if tensor.name in chosen
        }
        return pack(tensors, self._metadata(spec, kind))

    def decode(self, spec: ModelSpec, data: bytes | memoryview, *, kind: PayloadKind) -> State:
        """Read a payload, trusting nothing in it.

        Args:
          spec: the network that the payload must be of.
          data: the payload.
          kind: what the payload must be.

        Returns:
          A valid state in the order of the spec. Its arrays are read-only views of ``data``.

        Raises:
          PayloadError: cut or corrupted bytes; another codec, network or kind; a tensor that is missing, unknown, of
            another shape or dtype, not finite or out of range.

        Memory: nothing beyond ``data``.
        """
        tensors, metadata = unpack(data)
        wanted = self._metadata(spec, kind)
        if metadata != wanted:
            raise PayloadError(f"the payload must be made for {wanted}, got {metadata!r:.400}")
        state = {tensor.name: tensors.pop(tensor.name) for tensor in spec.tensors if tensor.name in tensors}
        try:
            validate_state(spec, {**state, **tensors}, statistics=kind == "update")
        except ShapeError as error:
            raise PayloadError(str(error)) from error
        for tensor in spec.tensors:
            if tensor.role == "weight" and state[tensor.name].dtype != self.weight_dtype:
                raise PayloadError(
                    f"{tensor.name} must be {np.dtype(self.weight_dtype)} in a payload of codec {self.name!r}, "
                    f"got {state[tensor.name].dtype}"
                )
        return state

    def _metadata(self, spec: ModelSpec, kind: PayloadKind) -> str:
        metadata = {"codec": self.name, "kind": kind, "spec": spec.digest}
        return json.dumps(metadata, sort_keys=True, separators=(",", ":"))
