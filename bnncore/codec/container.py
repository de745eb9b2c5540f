"""The byte layout of payloads and checkpoints: safetensors, written in one way and read with suspicion.

Layout: 8 bytes little-endian length N, N bytes of JSON header padded with spaces, then the tensors without gaps. The
header maps each tensor to its dtype, shape and byte range, and holds our one metadata string under ``bitfleet``.

Why not the safetensors package: a device and its coordinator compare digests of payloads that each made for itself,
so the bytes must follow from this file alone, not from a package's version; and a payload is read here without being
copied. Files written here open in every safetensors reader, and the reverse; tests hold both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bnncore.errors import PayloadError

__all__ = ["METADATA_KEY", "pack", "unpack", "write"]

METADATA_KEY = "bitfleet"
MAX_HEADER_BYTES = 1 << 22
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "I8": np.dtype("i1")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def pack(tensors: Mapping[str, NDArray[Any]], metadata: str) -> bytes:
    """Write tensors and one metadata string as bytes that depend on the arguments alone.

    Args:
      tensors: int8, float16 or float32 arrays with at least one element each. The widest dtypes come first, so that
        every tensor lies aligned; within a dtype the order is kept.
      metadata: any text.

    Memory: the returned bytes, and once more the same while they are joined.
    """
    return b"".join(_parts(tensors, metadata))


def write(file: BinaryIO, tensors: Mapping[str, NDArray[Any]], metadata: str) -> None:
    """Write what ``pack`` gives to a file, tensor by tensor: no copy of them is made."""
    for part in _parts(tensors, metadata):
        file.write(part)


def _parts(tensors: Mapping[str, NDArray[Any]], metadata: str) -> Iterator[bytes | memoryview]:
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY: metadata}}
    bodies: list[NDArray[Any]] = []
    offset = 0
    for name, array in sorted(tensors.items(), key=lambda item: -item[1].itemsize):
        body = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        end = offset + body.nbytes
        header[name] = {"dtype": _NAMES[body.dtype], "shape": list(body.shape), "data_offsets": [offset, end]}
        bodies.append(body)
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for body in bodies:
        yield body.data


def unpack(data: bytes | memoryview) -> tuple[dict[str, NDArray[Any]], str]:
    """Read what ``pack`` wrote, or refuse it.

    Returns:
      The tensors, as read-only views of ``data`` (a copy where the file leaves one unaligned), and the metadata.

    Raises:
      PayloadError: too short, header no JSON, unknown dtype, ranges that overlap, leave gaps or miss the end.
    """
    view = memoryview(data).toreadonly()
    size = int.from_bytes(view[:8], "little")
    if len(view) < 8 or size > len(view) - 8:
        raise PayloadError(f"the payload is cut: its header needs {size + 8} bytes, got {len(view)}")
    if size > MAX_HEADER_BYTES:
        raise PayloadError(f"the payload's header may have at most {MAX_HEADER_BYTES} bytes, got {size}")
    header = _parse_header(bytes(view[8 : 8 + size]))
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(text := metadata.get(METADATA_KEY), str):
        raise PayloadError(f"the payload must carry the metadata key {METADATA_KEY!r}. Was it written by bitfleet?")
    return _read_tensors(header, view[8 + size :]), text


def _parse_header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"the payload's header must be JSON: {error}") from error
    if not isinstance(header, dict):
        raise PayloadError(f"the payload's header must be a JSON object, got {type(header).__name__}")
    return header


def _read_tensors(header: dict[str, Any], body: memoryview) -> dict[str, NDArray[Any]]:
    entries = [(*_parse_entry(name, entry), name) for name, entry in header.items()]
    tensors: dict[str, NDArray[Any]] = {}
    position = 0
    for begin, end, shape, dtype, name in sorted(entries, key=lambda entry: entry[:2]):
        if begin != position or end > len(body):
            raise PayloadError(
                f"tensor {name!r:.80} must start at byte {position} and end by {len(body)}, got [{begin}, {end}]: "
                "the payload is cut or corrupted"
            )
        flat = np.frombuffer(body[begin:end], dtype=dtype)
        tensors[name] = np.require(flat, requirements="A").reshape(shape)
        position = end
    if position != len(body):
        raise PayloadError(f"the tensors take {position} bytes, got {len(body)}: the payload is cut or corrupted")
    return tensors


def _parse_entry(name: str, entry: object) -> tuple[int, int, list[int], np.dtype[Any]]:
    """Check one tensor's header entry by itself; gives (begin, end, shape, dtype)."""
    problem = f"the header entry of tensor {name!r:.80} is not valid: {entry!r:.200}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise PayloadError(problem)
    shape, offsets = entry["shape"], entry["data_offsets"]
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None or not _is_counts(shape, 1) or not _is_counts(offsets, 0) or len(offsets) != 2 or len(shape) > 8:
        raise PayloadError(problem)
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise PayloadError(problem)
    return begin, end, shape, dtype


def _is_counts(value: object, least: int) -> bool:
    """Say whether a JSON value is a list of integers of at least ``least``."""
    return isinstance(value, list) and all(type(count) is int and least <= count < 1 << 48 for count in value)
