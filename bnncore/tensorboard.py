"""Event files for TensorBoard: scalars by step. Written by bitfleet itself; only looking at them needs TensorBoard.

A file is a sequence of records (TFRecord): length, its checksum, an ``Event``, its checksum; checksums are CRC-32C,
rotated and shifted so that a checksum of a checksum is no trivial value. Of the messages these fields are written::

    Event         1 wall_time double, 2 step int64, 3 file_version string, 5 summary Summary
    Summary       1 value Value (again)
    Summary.Value 1 tag string, 2 simple_value float

Source: tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto, and
tensorflow/core/lib/io/record_writer.h of the TensorFlow project.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from bnncore.errors import ConfigurationError

__all__ = ["EventWriter"]

_CRC32C_REVERSED = 0x82F63B78
_MASK_DELTA = 0xA282EAD8
_BITS_32 = 0xFFFFFFFF


class EventWriter:
    """Appends scalars to an event file of its own; close it, or use it in a ``with`` block.

    Args:
      folder: made if it is missing; TensorBoard shows all event files in it, and below, side by side.

    Raises:
      ConfigurationError: the folder or the file cannot be written, by the methods too: the disk may be full.
    """

    def __init__(self, folder: str | Path) -> None:
        now = time.time()
        self._folder = folder
        name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}"
        with self._told():
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._file = (Path(folder) / name).open("xb")
        self._append(_double(1, now) + _text(3, "brain.Event:2"))

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write values by tag; ``group/name`` puts the tags of a group side by side.

        Args:
          step: of training, or the number of a round.
          scalars: finite or not, kept as float32.
        """
        values = b"".join(_text(1, _text(1, tag) + _float(2, value)) for tag, value in scalars.items())
        self._append(_double(1, time.time()) + _integer(2, step) + _text(5, values))

    def flush(self) -> None:
        """Make all that was added readable by others."""
        with self._told():
            self._file.flush()

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        with self._told():
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        with self._told():
            self._file.write(length + _checksum(length) + event + _checksum(event))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigurationError(
                f"event files for TensorBoard cannot be written to {self._folder}: {error}"
            ) from error


def _checksum(data: bytes) -> bytes:
    crc = _BITS_32
    table = _crc_table()
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= _BITS_32
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & _BITS_32)


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_CRC32C_REVERSED if value & 1 else 0)
        table.append(value)
    return tuple(table)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        encoded.append(0x80 | value & 0x7F)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _text(field: int, value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(data)) + data
