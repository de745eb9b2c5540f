"""Updates of a round put aside on disk, to be read side by side in pieces.

One unnamed file holds the updates one after the other, each as its tensors' bytes in the spec's order. It is gone when
it is closed, as after a crash: it can be made again from the accepted payloads.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bnncore.codec import SignTensor
from bnncore.spec import ModelSpec
from server.strategies import Update


@dataclass(frozen=True)
class SpooledUpdate:
    """One update in a spool; see ``UpdateReader``."""

    name: str
    _descriptor: int
    _places: dict[str, tuple[int, np.dtype[Any]]]

    def read(self, tensor: str, block: slice) -> NDArray[Any]:
        """Read a piece of a flattened tensor."""
        offset, dtype = self._places[tensor]
        length = (block.stop - block.start) * dtype.itemsize
        data = os.pread(self._descriptor, length, offset + block.start * dtype.itemsize)
        return np.frombuffer(data, dtype)


class Spool:
    """The updates of one round. Blocking."""

    def __init__(self, spec: ModelSpec, file: BinaryIO) -> None:
        self._spec = spec
        self._file = file
        self._updates: dict[str, SpooledUpdate] = {}

    def append(self, name: str, update: Update) -> None:
        """Put an update aside; signs of weights become int32 in fine units."""
        places: dict[str, tuple[int, np.dtype[Any]]] = {}
        offset = self._file.seek(0, os.SEEK_END)
        for tensor in self._spec.tensors:
            values = update[tensor.name]
            array = np.ascontiguousarray(values.dense() if isinstance(values, SignTensor) else values)
            places[tensor.name] = (offset, array.dtype)
            self._file.write(array.data)
            offset += math.prod(tensor.shape) * array.dtype.itemsize
        self._file.flush()
        self._updates[name] = SpooledUpdate(name, self._file.fileno(), places)

    def readers(self) -> list[SpooledUpdate]:
        """Return the updates by name."""
        return [self._updates[name] for name in sorted(self._updates)]

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()
