"""What every codec is: a pair of functions between tensors of a network and one byte string, the payload.

There are two families. *State codecs* (``state.py``) write a state: the parameters themselves. *Difference codecs*
(``difference.py``) write what must be added to a model that both ends hold.

* kind ``model``: weights and beta. Statistics do not travel down: a device computes its own.
* kind ``update``: weights, beta and statistics after local training. A state codec writes the parameters, not their
  difference to the model (the weighted mean of parameters is the model plus the weighted mean of differences).
* kind ``step``: weights and beta that take a model to the next one.
* kind ``statistics``: running statistics alone.

Tensors that are *local* to devices travel in a model alone, for the device that has no values of its own yet; a payload
of any other kind leaves them out, and says so.

Laws, tested for every registered codec: the same tensors give the same bytes; decode(encode(s)) is s as far as the
codec can tell it, and gives the same bytes again; every truncation is refused; bytes with one byte changed are refused
or decode to something valid.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Set as AbstractSet
from typing import ClassVar, Generic, Literal, TypeVar

from bnncore.errors import ConfigurationError
from bnncore.spec import ModelSpec, TensorSpec

__all__ = ["KINDS", "NONE_LOCAL", "Codec", "PayloadKind", "payload_digest", "tensors_of_kind"]

PayloadKind = Literal["model", "update", "step", "statistics"]
KINDS: tuple[PayloadKind, ...] = ("model", "update", "step", "statistics")
NONE_LOCAL: AbstractSet[str] = frozenset()
"""All tensors are shared."""

Tensors = TypeVar("Tensors")


def payload_digest(data: bytes | memoryview) -> str:
    """Name a payload by its content: SHA-256 in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def tensors_of_kind(spec: ModelSpec, kind: PayloadKind, local: AbstractSet[str] = NONE_LOCAL) -> list[TensorSpec]:
    """Give the tensors that a payload of a kind holds, in the spec's order."""
    with_parameters, with_statistics = kind != "statistics", kind in ("update", "statistics")
    left_out = NONE_LOCAL if kind == "model" else local
    return [
        tensor
        for tensor in spec.tensors
        if (with_statistics if tensor.is_statistic else with_parameters) and tensor.name not in left_out
    ]


class Codec(ABC, Generic[Tensors]):
    """One way of writing tensors as bytes.

    Attributes:
      name: what jobs and payloads call it.
      is_difference: whether it writes a difference to a model that both ends hold, instead of a state.
      kinds: what it can write.
    """

    name: ClassVar[str]
    is_difference: ClassVar[bool]
    kinds: ClassVar[tuple[PayloadKind, ...]]

    @abstractmethod
    def encode(
        self, spec: ModelSpec, tensors: Tensors, *, kind: PayloadKind, local: AbstractSet[str] = NONE_LOCAL
    ) -> bytes:
        """Write tensors as a payload.

        Args:
          spec: the network.
          tensors: valid ones; those that the kind does not hold are left out.
          kind: one of ``kinds``.
          local: names of the tensors that stay on devices.

        Returns:
          Bytes that depend on the arguments alone.

        Raises:
          ConfigurationError: the codec writes no payloads of this kind.
          ShapeError: a tensor is missing, unknown, or of another shape.
          PayloadError: a tensor is not finite, out of range or of another dtype.
        """

    @abstractmethod
    def decode(
        self, spec: ModelSpec, data: bytes | memoryview, *, kind: PayloadKind, local: AbstractSet[str] = NONE_LOCAL
    ) -> Tensors:
        """Read a payload, trusting nothing in it.

        Args:
          spec: the network that the payload must be of.
          data: the payload.
          kind: what the payload must be.
          local: names of the tensors that stay on devices.

        Returns:
          Valid tensors in the order of the spec; arrays that lie in ``data`` as they are needed are read-only views.

        Raises:
          ConfigurationError: the codec writes no payloads of this kind.
          PayloadError: cut or corrupted bytes; another codec, network or kind; a tensor that is missing, unknown, of
            another shape or dtype, not finite or out of range.
        """

    def check_kind(self, kind: PayloadKind) -> None:
        """Refuse a kind that the codec does not write.

        Raises:
          ConfigurationError: it is one.
        """
        if kind not in self.kinds:
            raise ConfigurationError(f"codec {self.name!r} writes payloads of kind {list(self.kinds)}, not {kind!r}")
