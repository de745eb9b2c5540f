"""The packed file: a trained network in a bit a weight, for a small runtime that is not Python.

::

    "bfpk" | version, u16 = 1 | 0, u16 | length of the header, u32 | header, JSON in UTF-8
    int32 rows | int32 plan [rows, 24]: the sizes, so that a runtime needs no JSON (``bnncore.export.plan``)
    then for each block of a chain
      signs        u64 words, bit 1 = minus: for each output channel and kernel element one bit an input channel,
                   from the lowest bit up, padded with zeros to whole words
      sign_from    int32 [N]                       of all blocks but the last
      mean, inverse, beta   float64 [N] each       of the last
    or for a residual network
      stem         int32 weights [N, kernel height, kernel width, C], norm, and a second norm if it has one
      each unit    signs, norm; and if it has a shortcut: int32 weights, norm
      head         float32 unit, float32 weights [classes, C], float32 bias [classes]
    with
      norm         float32 gain [N], float32 offset [N], int32 low, int32 limit
      int32 weights, followed by int32 shift
    CRC-32 of all bytes before it, u32

Numbers are little-endian, and each array is padded with zeros to a multiple of 8 bytes; the header too, with spaces.
Its keys are ``spec`` (the network: all sizes follow from it), ``classes`` (names, perhaps none), ``weights_digest`` and
``properties``. What is computed with these numbers: ``bnncore.export.folded``.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.errors import CheckpointError, SpecError
from bnncore.export.folded import (
    FoldedBlock,
    FoldedChain,
    FoldedLogits,
    FoldedNorm,
    FoldedResidual,
    FoldedShortcut,
    FoldedStem,
    FoldedUnit,
    RealWeights,
    fold,
)
from bnncore.export.plan import plan_of
from bnncore.layers import Conv2d
from bnncore.residual import ResidualNetwork
from bnncore.spec import ModelSpec
from bnncore.state import State, weights_digest

__all__ = ["PackedModel", "load_packed", "pack", "unpack"]

_MAGIC = b"bfpk"
_VERSION = 1
_HEAD = struct.Struct("<4sHHI")
_ALIGN = 8
_WORD_BITS = 64
_MAX_HEADER = 1 << 24
_ADVICE = "Was the copy complete? Export it again"


@dataclass(frozen=True)
class PackedModel:
    """A packed file, read.

    Attributes:
      folded: the network with its numbers.
      classes: their names; empty where nobody gave them.
      weights_digest: of the state that it was made of.
      properties: what its writer added.
    """

    folded: FoldedChain | FoldedResidual
    classes: tuple[str, ...]
    weights_digest: str
    properties: dict[str, str]


def load_packed(path: str | Path) -> PackedModel:
    """Read a packed file.

    Raises:
      CheckpointError: it is missing, cut, damaged, or of another program or version.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"the packed file cannot be read: {error}. Check the path") from error
    try:
        return unpack(data)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is no valid packed file: {error}") from error


def pack(
    spec: ModelSpec, state: State, *, classes: Sequence[str] = (), properties: Mapping[str, str] | None = None
) -> bytes:
    """Give the bytes of a packed file.

    Args:
      spec: the network.
      state: its tensors, running statistics included.
      classes: their names.
      properties: texts to keep.

    Raises:
      ShapeError, PayloadError: the state is not one of this network, or has no statistics.
    """
    folded = fold(spec, state)
    header = {
        "spec": spec.to_dict(),
        "classes": list(classes),
        "weights_digest": weights_digest(spec, state),
        "properties": dict(properties or {}),
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(_HEAD.size + len(text)) % _ALIGN)
    plan = plan_of(spec)
    arrays = _chain_arrays(folded) if isinstance(folded, FoldedChain) else _residual_arrays(folded)
    arrays = chain([np.array([len(plan)], "<i4"), plan], arrays)
    parts = [_HEAD.pack(_MAGIC, _VERSION, 0, len(text)), text, *(_padded(array.tobytes()) for array in arrays)]
    body = b"".join(parts)
    return body + zlib.crc32(body).to_bytes(4, "little")


def unpack(data: bytes) -> PackedModel:
    """Read the bytes of a packed file.

    Raises:
      CheckpointError: they are no packed file, or a damaged one, or one of another version.
    """
    if len(data) < _HEAD.size + 4 or data[:4] != _MAGIC:
        raise CheckpointError("it does not begin as one")
    _, version, _, length = _HEAD.unpack_from(data)
    if version != _VERSION:
        raise CheckpointError(
            f"it has version {version}, this bitfleet reads {_VERSION}; upgrade it with: pip install --upgrade bitfleet"
        )
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise CheckpointError(f"its checksum is wrong. {_ADVICE}")
    if length > min(_MAX_HEADER, len(data) - _HEAD.size - 4):
        raise CheckpointError(f"its header ends beyond the file. {_ADVICE}")
    spec, header = _read_header(data[_HEAD.size : _HEAD.size + length])
    reader = _Reader(memoryview(data)[_HEAD.size + length : -4])
    plan = plan_of(spec)
    if reader.number() != len(plan) or not np.array_equal(reader.array("<i4", *plan.shape), plan):
        raise CheckpointError(f"its sizes are not those of its network. {_ADVICE}")
    folded = _read_chain(reader, spec) if spec.residual is None else _read_residual(reader, spec, spec.residual)
    reader.end()
    return PackedModel(folded, tuple(header["classes"]), header["weights_digest"], header["properties"])


def _read_header(text: bytes) -> tuple[ModelSpec, dict[str, Any]]:
    try:
        header = json.loads(text)
        spec = ModelSpec.from_dict(header["spec"])
        classes, digest, properties = header["classes"], header["weights_digest"], header["properties"]
        texts = [digest, *classes, *properties, *properties.values()]
        if not isinstance(classes, list) or not all(isinstance(part, str) for part in texts):
            raise TypeError("names and properties must be texts")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SpecError) as error:
        raise CheckpointError(f"its header is not valid: {error}. {_ADVICE}") from error
    return spec, header


class _Reader:
    """Takes arrays from what follows the header."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def array(self, dtype: str, *shape: int) -> NDArray[Any]:
        """Take an array; it is read-only, real numbers are finite."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        end = self._position + size
        if end > len(self._data):
            raise CheckpointError(f"it ends before the numbers of its network. {_ADVICE}")
        array = np.frombuffer(self._data[self._position : end], dtype).reshape(shape)
        self._position = min(end + -size % _ALIGN, len(self._data))
        if np.dtype(dtype).kind == "f" and not np.isfinite(array).all():
            raise CheckpointError(f"a number in it is not finite. {_ADVICE}")
        return array

    def number(self) -> int:
        """Take an int32."""
        return int(self.array("<i4", 1)[0])

    def signs(self, channels: int, height: int, width: int, depth: int) -> NDArray[np.int8]:
        """Take +1 and -1 [channels, height, width, depth]."""
        words = -(-depth // _WORD_BITS)
        raw = self.array("<u8", channels * height * width, words)
        bits = np.unpackbits(raw.view(np.uint8), axis=1, bitorder="little")
        if bits[:, depth:].any():
            raise CheckpointError(f"bits that stand for nothing are set. {_ADVICE}")
        return np.where(bits[:, :depth], -1, 1).astype(np.int8).reshape(channels, height, width, depth)

    def norm(self, channels: int) -> FoldedNorm:
        gain, offset = self.array("<f4", channels), self.array("<f4", channels)
        return FoldedNorm(gain, offset, self.number(), self.number())

    def real(self, conv: Conv2d) -> RealWeights:
        values, shift = self.array("<i4", *conv.weight_shape), self.number()
        if not 0 <= shift < 32:
            raise CheckpointError(f"a shift of {shift} bits makes no sense. {_ADVICE}")
        return RealWeights(values, shift)

    def end(self) -> None:
        """Check that nothing is left."""
        if self._position != len(self._data):
            raise CheckpointError(f"{len(self._data) - self._position} bytes follow its network. {_ADVICE}")


def _read_chain(reader: _Reader, spec: ModelSpec) -> FoldedChain:
    blocks = []
    for block in spec.blocks:
        n = block.out_channels
        signs = reader.signs(n, block.kernel_height, block.kernel_width, block.in_channels)
        if block.is_last:
            mean, inverse, beta = (reader.array("<f8", n) for _ in range(3))
            blocks.append(FoldedBlock(block, signs, FoldedLogits(mean, inverse, beta)))
        else:
            blocks.append(FoldedBlock(block, signs, reader.array("<i4", n)))
    return FoldedChain(spec, tuple(blocks))


def _read_residual(reader: _Reader, spec: ModelSpec, network: ResidualNetwork) -> FoldedResidual:
    stem, dense = network.stem, network.head.dense
    n = stem.conv.out_channels
    weights, norm = reader.real(stem.conv), reader.norm(n)
    second = reader.norm(n) if stem.second_norm is not None else None
    units = []
    for unit in network.units:
        signs, unit_norm = reader.signs(*unit.conv.weight_shape), reader.norm(unit.conv.out_channels)
        shortcut = None
        if unit.shortcut is not None:
            real = reader.real(unit.shortcut.conv)
            shortcut = FoldedShortcut(unit.shortcut, real, reader.norm(unit.shortcut.conv.out_channels))
        units.append(FoldedUnit(unit, signs, unit_norm, shortcut))
    worth = reader.array("<f4", 1)[0]
    matrix, bias = reader.array("<f4", dense.out_features, dense.in_features), reader.array("<f4", dense.out_features)
    return FoldedResidual(spec, FoldedStem(stem, weights, norm, second), tuple(units), worth, matrix, bias)


def _chain_arrays(folded: FoldedChain) -> Iterator[NDArray[Any]]:
    for part in folded.blocks:
        yield _packed_signs(part.signs)
        if isinstance(part.end, FoldedLogits):
            yield from (array.astype("<f8") for array in (part.end.mean, part.end.inverse, part.end.beta))
        else:
            yield part.end.astype("<i4")


def _residual_arrays(folded: FoldedResidual) -> Iterator[NDArray[Any]]:
    yield from _real_arrays(folded.stem.weights)
    yield from _norm_arrays(folded.stem.norm)
    if folded.stem.second_norm is not None:
        yield from _norm_arrays(folded.stem.second_norm)
    for unit in folded.units:
        yield _packed_signs(unit.signs)
        yield from _norm_arrays(unit.norm)
        if unit.shortcut is not None:
            yield from _real_arrays(unit.shortcut.weights)
            yield from _norm_arrays(unit.shortcut.norm)
    yield np.array([folded.unit], "<f4")
    yield from (folded.weights.astype("<f4"), folded.bias.astype("<f4"))


def _real_arrays(weights: RealWeights) -> Iterator[NDArray[Any]]:
    yield weights.values.astype("<i4")
    yield np.array([weights.shift], "<i4")


def _norm_arrays(norm: FoldedNorm) -> Iterator[NDArray[Any]]:
    yield from (norm.gain.astype("<f4"), norm.offset.astype("<f4"))
    yield from (np.array([number], "<i4") for number in (norm.low, norm.limit))


def _packed_signs(signs: NDArray[np.int8]) -> NDArray[np.uint8]:
    bits = signs.reshape(-1, signs.shape[3]) < 0
    padded = np.pad(bits, ((0, 0), (0, -bits.shape[1] % _WORD_BITS)))
    return np.packbits(padded, axis=1, bitorder="little")


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGN)
