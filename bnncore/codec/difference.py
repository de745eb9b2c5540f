"""Difference codecs: what must be added to a model that both ends hold, in a layout without names or padding.

====================  =====================================================================================
bytes                 what
====================  =====================================================================================
4                     ``bfc1``
1                     the codec's number
1                     the kind's number: 1 ``update``, 2 ``step``
2                     version of this layout, 1
32                    SHA-256 of the spec; of that and the names, where tensors are local to devices
...                   the tensors of the kind, in the spec's order, without gaps
4                     CRC-32 of everything before it
====================  =====================================================================================

All numbers are little-endian. A weight tensor starts with its scales, ``uint16`` a row; what follows is the codec's.
Beta, biases and real-valued weights are ``float16`` differences. Statistics, only in an update, are no differences but
the values: ``float16`` in units of 2^-14 of a power of two that no pre-activation exceeds (fan-in, times 255 in the
first layer), ``float32`` after a real-valued layer, whose sums have no such bound.

So what decodes is not quite what was encoded: a sender that keeps a replica decodes its own payload, or rounds by
``round_difference`` first.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bnncore.codec.base import NONE_LOCAL, Codec, PayloadKind, tensors_of_kind
from bnncore.codec.signs import SignTensor
from bnncore.errors import PayloadError, ShapeError
from bnncore.spec import ModelSpec, TensorSpec

__all__ = ["Difference", "DifferenceCodec", "Reader", "round_difference", "statistic_bounds"]

Difference = dict[str, NDArray[np.float32] | SignTensor]
"""In the spec's order: a ``SignTensor`` for each tensor of binary weights, float32 for all others."""

_MAGIC = b"bfc1"
_VERSION = 1
_HEADER = struct.Struct("<4sBBH32s")
_CHECKSUM = struct.Struct("<I")
_KIND_NUMBERS: dict[PayloadKind, int] = {"update": 1, "step": 2}
_STATISTIC_BITS = 14
_HALF = np.dtype("<f2")
_SINGLE = np.dtype("<f4")


class Reader:
    """Takes tensors off the front of a payload, one after the other."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def take(self, name: str, size: int) -> memoryview:
        """Give the next ``size`` bytes.

        Raises:
          PayloadError: there are fewer.
        """
        taken = self._data[self._position : self._position + size]
        if len(taken) != size:
            raise PayloadError(f"the payload is cut: {name} needs {size} more bytes, got {len(taken)}")
        self._position += size
        return taken

    def take_array(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Give the next array as a read-only view, or a copy where it lies unaligned.

        Raises:
          PayloadError: the payload is too short for it.
        """
        flat = np.frombuffer(self.take(name, math.prod(shape) * dtype.itemsize), dtype)
        return np.require(flat, requirements="A").reshape(shape)

    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
          PayloadError: something is.
        """
        if self._position != len(self._data):
            raise PayloadError(f"the tensors take {self._position} bytes, the payload has {len(self._data)} for them")


class DifferenceCodec(Codec[Difference]):
    """One way of writing a difference as bytes. Subclasses say how the signs of a weight tensor are written.

    Attributes:
      number: what stands for the codec in a payload.
      density: the part of a weight tensor that it is made to tell (``encode_signs``); None: all of it.
    """

    is_difference: ClassVar[bool] = True
    kinds: ClassVar[tuple[PayloadKind, ...]] = ("update", "step")
    number: ClassVar[int]
    density: ClassVar[float | None]

    @abstractmethod
    def write_signs(self, name: str, signs: SignTensor) -> list[bytes]:
        """Give the parts of a weight tensor's bytes, its scales excepted.

        Raises:
          PayloadError: the codec cannot tell these signs.
        """

    @abstractmethod
    def read_signs(
        self, name: str, packed: tuple[int, int], reader: Reader
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Read bits and mask, ``uint8`` of shape ``packed`` each, of a weight tensor.

        Raises:
          PayloadError: the bytes are cut or are none that ``write_signs`` gives.
        """

    def encode(
        self,
        spec: ModelSpec,
        tensors: Mapping[str, NDArray[np.float32] | SignTensor],
        *,
        kind: PayloadKind,
        local: AbstractSet[str] = NONE_LOCAL,
    ) -> bytes:
        """Write a difference as a payload; see ``Codec.encode``."""
        self.check_kind(kind)
        bounds = statistic_bounds(spec)
        unknown = sorted(set(tensors) - {tensor.name for tensor in spec.tensors})
        wanted = tensors_of_kind(spec, kind, local)
        missing = [tensor.name for tensor in wanted if tensor.name not in tensors]
        if unknown or missing:
            raise ShapeError(
                f"this difference of model {spec.name!r} has {len(wanted)} tensors; missing {missing}, "
                f"not wanted {unknown}. Was it made by another model?"
            )
        parts: list[bytes] = [self._header(_network_digest(spec, local), kind)]
        for tensor in wanted:
            found = tensors[tensor.name]
            if isinstance(found, SignTensor) != (tensor.role == "weight") or found.shape != tensor.shape:
                wish = "signs" if tensor.role == "weight" else "numbers"
                raise ShapeError(f"{tensor.name} must be {wish} of shape {list(tensor.shape)}, got {found!r:.200}")
            if isinstance(found, SignTensor):
                parts.append(np.ascontiguousarray(found.scales, "<u2").tobytes())
                parts += self.write_signs(tensor.name, found)
            else:
                parts.append(_to_stored(tensor, found, bounds.get(tensor.name)).tobytes())
        checksum = 0
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        return b"".join([*parts, _CHECKSUM.pack(checksum)])

    def decode(
        self, spec: ModelSpec, data: bytes | memoryview, *, kind: PayloadKind, local: AbstractSet[str] = NONE_LOCAL
    ) -> Difference:
        """Read a payload; see ``Codec.decode``."""
        self.check_kind(kind)
        view = memoryview(data).toreadonly()
        self._check_frame(_network_digest(spec, local), view, kind)
        bounds = statistic_bounds(spec)
        reader = Reader(view[_HEADER.size : -_CHECKSUM.size])
        difference: Difference = {}
        for tensor in tensors_of_kind(spec, kind, local):
            if tensor.role == "weight":
                difference[tensor.name] = self._read_weight(tensor, reader)
            else:
                bound = bounds.get(tensor.name)
                stored = reader.take_array(tensor.name, _stored_dtype(tensor, bound), tensor.shape)
                difference[tensor.name] = _from_stored(tensor, stored, bound)
        reader.finish()
        return difference

    def _read_weight(self, tensor: TensorSpec, reader: Reader) -> SignTensor:
        rows, row_size = tensor.shape[0], math.prod(tensor.shape[1:])
        scales = reader.take_array(tensor.name, np.dtype("<u2"), (rows,))
        bits, mask = self.read_signs(tensor.name, (rows, (row_size + 7) // 8), reader)
        try:
            return SignTensor(tensor.shape, scales, bits, mask)
        except PayloadError as error:
            raise PayloadError(f"{tensor.name}: {error}") from error

    def _header(self, network: bytes, kind: PayloadKind) -> bytes:
        return _HEADER.pack(_MAGIC, self.number, _KIND_NUMBERS[kind], _VERSION, network)

    def _check_frame(self, network: bytes, view: memoryview, kind: PayloadKind) -> None:
        if len(view) < _HEADER.size + _CHECKSUM.size or view[:4] != _MAGIC:
            raise PayloadError(
                f"a payload of codec {self.name!r} starts with {_MAGIC!r} and has at least "
                f"{_HEADER.size + _CHECKSUM.size} bytes, got {len(view)} bytes, {bytes(view[:8])!r}"
            )
        (checksum,) = _CHECKSUM.unpack(view[-_CHECKSUM.size :])
        if zlib.crc32(view[: -_CHECKSUM.size]) != checksum:
            raise PayloadError("the payload is cut or corrupted: its checksum does not fit its bytes")
        if view[: _HEADER.size] != self._header(network, kind):
            _, number, kind_number, version, digest = _HEADER.unpack(view[: _HEADER.size])
            raise PayloadError(
                f"the payload must be made for codec {self.number} ({self.name}), kind {_KIND_NUMBERS[kind]} ({kind}), "
                f"version {_VERSION}, spec {network.hex()}, got codec {number}, kind {kind_number}, version {version}, "
                f"spec {digest.hex()}"
            )


def _network_digest(spec: ModelSpec, local: AbstractSet[str]) -> bytes:
    text = "\n".join([spec.digest, *sorted(local)])
    return hashlib.sha256(text.encode()).digest() if local else bytes.fromhex(spec.digest)


def statistic_bounds(spec: ModelSpec) -> dict[str, int]:
    """Give, by name of a running statistic, the power of two that it cannot exceed; none after a real-valued layer.

    A pre-activation is a sum of fan-in products of +-1 with +-1, or with x = 2u - 255 in the first layer.
    """
    bounds: dict[str, int] = {}
    bound: int | None = None
    is_first = True
    for tensor in spec.tensors:
        if tensor.role in ("weight", "real_weight"):
            largest = math.prod(tensor.shape[1:]) * (255 if is_first else 1)
            bound = 1 << (largest - 1).bit_length() if tensor.role == "weight" else None
            is_first = False
        elif tensor.is_statistic and bound is not None:
            bounds[tensor.name] = bound
    return bounds


def round_difference(spec: ModelSpec, difference: Difference) -> Difference:
    """Give a difference as it decodes at the other end: real numbers rounded as the payload stores them.

    Raises:
      ShapeError, PayloadError: a tensor is unknown or cannot be stored.
    """
    bounds = statistic_bounds(spec)
    known = {tensor.name: tensor for tensor in spec.tensors}
    if unknown := sorted(set(difference) - set(known)):
        raise ShapeError(f"model {spec.name!r} has no tensors named {unknown}")

    def rounded() -> Iterator[tuple[str, NDArray[np.float32] | SignTensor]]:
        for name, found in difference.items():
            if isinstance(found, SignTensor):
                yield name, found
            else:
                bound = bounds.get(name)
                yield name, _from_stored(known[name], _to_stored(known[name], found, bound), bound)

    return dict(rounded())


def _stored_dtype(tensor: TensorSpec, bound: int | None) -> np.dtype[Any]:
    return _SINGLE if tensor.is_statistic and bound is None else _HALF


def _unit(tensor: TensorSpec, bound: int | None) -> np.float32:
    """What a stored number is to be multiplied by: a power of two."""
    return np.float32(2.0**-_STATISTIC_BITS * bound) if tensor.is_statistic and bound is not None else np.float32(1)


def _to_stored(tensor: TensorSpec, values: NDArray[np.float32], bound: int | None) -> NDArray[Any]:
    if values.dtype != np.float32:
        raise PayloadError(f"{tensor.name} must be float32, got {values.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        stored = (values / _unit(tensor, bound)).astype(_stored_dtype(tensor, bound))
    _check_values(tensor, stored)
    return stored


def _from_stored(tensor: TensorSpec, stored: NDArray[Any], bound: int | None) -> NDArray[np.float32]:
    _check_values(tensor, stored)
    return stored.astype(np.float32) * _unit(tensor, bound)


def _check_values(tensor: TensorSpec, stored: NDArray[Any]) -> None:
    if not np.isfinite(stored).all():
        raise PayloadError(f"{tensor.name} must be finite and within what {stored.dtype} can hold. Did it diverge?")
    if tensor.role == "mean_abs_dev" and stored.min() < 0:
        raise PayloadError(f"{tensor.name} must not be negative, got {float(stored.min()):g}")
