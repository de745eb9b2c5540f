"""Augmentation: images of a batch shifted and mirrored, in uint8, after they are read and before they are trained on.

What happens to an image is a function of (seed, epoch, its index in the data set) alone: neither batch size nor order
nor thread count changes it. The words come from the engine's counter-based generator (native/include/bnncore/random.h).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.errors import DataError
from bnncore.seeds import derive_seed

__all__ = ["PAD_VALUE", "Augmentation", "Augmenter"]

PAD_VALUE = 0
"""What enters at an edge: black, which the engine reads as -255."""

_WORDS = 3  # of each image: shift in y, shift in x, mirrored or not


@dataclass(frozen=True)
class Augmentation:
    """What is done to each image.

    Attributes:
      shift: moves by up to so many pixels up, down, left and right, each distance as likely as any other.
      flip: every second one, on average, is mirrored left to right.
    """

    shift: int = 0
    flip: bool = False

    @staticmethod
    def parse(text: str) -> Augmentation:
        """Read ``shift=4,flip``, in any order, each at most once.

        Raises:
          DataError: the text is something else.
        """
        values: dict[str, Any] = {}
        for part in text.split(","):
            match = re.fullmatch(r"(flip)|(shift)=([1-9][0-9]{0,3})", part.strip())
            name = match and (match[1] or match[2])
            if match is None or name is None or name in values:
                raise DataError(f"an augmentation must be made of shift=N and flip, such as shift=4,flip, got {text!r}")
            values[name] = True if match[3] is None else int(match[3])
        return Augmentation(**values)

    def __str__(self) -> str:
        return ",".join([f"shift={self.shift}"] * bool(self.shift) + ["flip"] * self.flip)


class Augmenter:
    """Changes batches in place.

    Args:
      augmentation: what to do.
      input_shape: of one image: [height, width] or [height, width, channels].
      batch_size: images of the largest batch.
      seed: decides what happens, with the epoch and an image's index.

    Raises:
      DataError: the samples have another number of dimensions, or the shift leaves nothing of them.

    Memory: one image with its margins, and 24 bytes an image of a batch; a batch allocates a list of small integers.
    """

    def __init__(self, augmentation: Augmentation, input_shape: Sequence[int], *, batch_size: int, seed: int) -> None:
        shift = augmentation.shift
        if len(input_shape) not in (2, 3):
            raise DataError(
                f"augmentation is for images, of 2 or 3 dimensions, got samples of {list(input_shape)}. "
                "Leave --augment out"
            )
        if shift >= min(input_shape[:2]):
            raise DataError(
                f"a shift must be smaller than the image, {' x '.join(map(str, input_shape[:2]))}, got {shift}"
            )
        self._augmentation = augmentation
        self._shape = tuple(input_shape)
        self._seed = seed
        height, width, *channels = input_shape
        self._padded = np.full((height + 2 * shift, width + 2 * shift, *channels), PAD_VALUE, np.uint8)
        self._words = np.empty((batch_size, _WORDS), np.uint32)
        self._scratch = np.empty((batch_size, _WORDS), np.uint32)

    def apply(self, batch: NDArray[np.uint8], indices: NDArray[np.uint32], epoch: int) -> None:
        """Change the images of a batch.

        Args:
          batch: uint8 [n, features], C-contiguous, changed in place.
          indices: uint32 [n], the images' indices in the data set, each below 2**30.
          epoch: counted from 0.
        """
        shift, flip = self._augmentation.shift, self._augmentation.flip
        height, width = self._shape[:2]
        places = 2 * shift + 1
        inner = self._padded[shift : shift + height, shift : shift + width]
        images = batch.reshape(-1, *self._shape)
        for image, (y, x, mirror) in zip(images, self._draw(indices, epoch).tolist(), strict=True):
            top, left = y * places >> 32, x * places >> 32
            inner[...] = image  # the margins around it keep the pad value
            window = self._padded[top : top + height, left : left + width]
            image[...] = window[:, ::-1] if flip and mirror >> 31 else window

    def _draw(self, indices: NDArray[np.uint32], epoch: int) -> NDArray[np.uint32]:
        """Give words 4 i, 4 i + 1 and 4 i + 2 of the epoch's stream for each index i: uint32 [n, 3]."""
        key = derive_seed(self._seed, "augment", epoch)
        words, scratch = self._words[: len(indices)], self._scratch[: len(indices)]
        for word in range(_WORDS):
            np.multiply(indices, np.uint32(4), out=words[:, word])
            words[:, word] += np.uint32(word)
        words ^= np.uint32(key & 0xFFFFFFFF)
        _fold(words, scratch, 16)
        words *= np.uint32(0x21F0AAAD)
        words += np.uint32(key >> 32)
        _fold(words, scratch, 15)
        words *= np.uint32(0xD35A2D97)
        _fold(words, scratch, 15)
        return words


def _fold(words: NDArray[np.uint32], scratch: NDArray[np.uint32], bits: int) -> None:
    np.right_shift(words, np.uint32(bits), out=scratch)
    words ^= scratch
