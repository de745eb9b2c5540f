import errno

import pytest

from bnncore.errors import DataError, PayloadError
from edge_client.errors import public_reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/home/ann/state/x"), "No space left on device"),
        (DataError("/home/ann/data is missing"), "the device's data cannot be read; its own log says why"),
        (PayloadError("beta is\nnot finite"), "beta is not finite"),
        (PayloadError("cannot read /home/ann/x.bin, or '~/y'"), "cannot read <path>, or '<path>'"),
        (KeyError("/home/ann"), "unexpected KeyError; the device's own log says more"),
        (PayloadError("a ratio of 1/2 and a type I/O"), "a ratio of 1/2 and a type I/O"),
    ],
)
def test_a_reason_for_strangers_names_nothing_of_the_device(error: Exception, reason: str) -> None:
    assert public_reason(error) == reason


def test_a_reason_is_short() -> None:
    assert len(public_reason(PayloadError("x" * 10_000))) == 300
