"""The names that ``bnncore`` promises."""

from __future__ import annotations

import pytest

import bnncore


def test_every_promised_name_is_there_and_no_other() -> None:
    assert bnncore.__all__ == sorted(bnncore.__all__)
    assert all(getattr(bnncore, name) is not None for name in bnncore.__all__)
    assert set(bnncore.__all__) <= set(dir(bnncore))
    with pytest.raises(AttributeError, match="has no attribute 'teleport'"):
        _ = bnncore.teleport


def test_the_version_is_the_installed_ones() -> None:
    assert bnncore.__version__.count(".") == 2
