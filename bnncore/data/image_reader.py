"""Reading one picture into one shape, with Pillow: in the preparation process only.

What cannot be read says why in a word; nothing that a file holds can stop the others.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bnncore.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["check_pillow", "read_image"]

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may hold, whatever its name says: some of Pillow's other readers start programs."""
_MAX_PIXELS = 1 << 26
"""Of one picture: 64 megapixels take 192 MiB while it is read."""


def check_pillow() -> None:
    """Raise DataError unless Pillow is there."""
    if importlib.util.find_spec("PIL") is None:
        raise DataError("pictures are read by Pillow, which is missing: pip install 'bitfleet[images]'")


def read_image(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Read a picture: upright, its middle, on white where it is transparent.

    Args:
      path: the file.
      shape: height, width, and 3 channels or 1 (grey).

    Returns:
      uint8 of that shape.

    Raises:
      DataError: it cannot be read; the message says why, without naming it.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    height, width, channels = shape
    mode = "RGB" if channels == 3 else "L"
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise DataError(f"it has {image.width} x {image.height} pixels, at most {_MAX_PIXELS} are read")
            image.draft(mode, (width, height))  # a JPEG is decoded no larger than needed
            upright: Image.Image = ImageOps.exif_transpose(image)
            fitted = ImageOps.fit(_plain(upright).convert(mode), (width, height), Image.Resampling.BILINEAR)
    except UnidentifiedImageError:
        raise DataError("it is no picture of a kind that is read here, or is cut") from None
    except (
        Exception
    ) as error:  # of a damaged file Pillow raises whatever it stumbles over: struct.error, TypeError, ...
        raise DataError(str(error) or type(error).__name__) from error
    return np.asarray(fitted, np.uint8).reshape(shape)


def _plain(image: Image.Image) -> Image.Image:
    """Give a picture of 8 bits a channel and no transparency."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits a pixel, which convert() would cut off at 255
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise DataError("its pixels are real numbers, of which nothing says what is black and what is white")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image)
    return image
