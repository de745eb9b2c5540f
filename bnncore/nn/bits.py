"""Signs in bits: eight numbers of +1 and -1 in a byte of an ordinary tensor, on any device.

Bit i of a byte is number i of its eight; 1 means -1 and 0 means +1, as everywhere in bitfleet. A sample takes whole
bytes, so that a batch can be cut between samples; unused bits of its last byte are 0. Maps lie in the order height,
width, channels, which is the native engine's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional

__all__ = ["is_signs", "pack", "pack_codes", "unpack", "unpack_codes", "unpack_mask"]

_GATHER = 0x0102040810204080
"""Times eight bytes of 0 or 1: their bits, the first lowest, in the product's highest byte."""


def pack(flags: Any) -> Any:
    """Pack flags, bool [batch, count], into bits: uint8 [batch, ceil(count / 8)]."""
    short = -flags.shape[1] % 8
    if short:
        flags = functional.pad(flags, (0, short))
    eights = flags.contiguous().view(torch.uint8).view(torch.int64)
    return ((eights * _GATHER) >> 56).to(torch.uint8)


def unpack(bits: Any, count: int, dtype: Any) -> Any:
    """Give signs, +1 and -1 of ``dtype`` [batch, count], from bits, uint8 [batch, ceil(count / 8)]."""
    return _look_up(_table(bits.device, is_sign=True), bits)[:, :count].to(dtype)


def unpack_mask(bits: Any, count: int) -> Any:
    """Give flags, bool [batch, count], from bits, uint8 [batch, ceil(count / 8)]."""
    return _look_up(_table(bits.device, is_sign=False), bits)[:, :count].view(torch.bool)


def pack_codes(codes: Any, width: int) -> list[Any]:
    """Pack numbers of ``width`` bits each, uint8 [batch, count], plane by plane."""
    return [pack((codes & (1 << bit)) != 0) for bit in range(width)]


def unpack_codes(planes: list[Any], count: int) -> Any:
    """Give the numbers, uint8 [batch, count], that ``pack_codes`` packed."""
    codes = unpack_mask(planes[0], count).view(torch.uint8)
    for bit, plane in enumerate(planes[1:], start=1):
        codes = codes + unpack_mask(plane, count).view(torch.uint8) * (1 << bit)
    return codes


def is_signs(x: Any) -> bool:
    """Say whether every number of a tensor is +1 or -1."""
    return x.is_floating_point() and bool((x.detach().abs() == 1).all())


def _look_up(table: Any, bits: Any) -> Any:
    return table.index_select(0, bits.flatten().int()).view(torch.int8).view(bits.shape[0], -1)


@lru_cache(maxsize=8)
def _table(device: Any, *, is_sign: bool) -> Any:
    """Eight numbers in the bytes of an int64, for every byte of bits."""
    flags = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    values = 1 - 2 * flags if is_sign else flags
    return values.to(torch.int8).view(torch.int64).flatten().to(device)
