"""Fetching, against a real HTTP server on the loopback interface."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnncore.data.download import download_mnist
from bnncore.errors import DataError

CONTENT = bytes(range(256)) * 1000
GOOD = {"images.gz": hashlib.sha256(CONTENT).hexdigest()}


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    """A host that has ``images.gz`` in ``/good`` and a damaged one in ``/bad``."""
    for folder, content in [("good", CONTENT), ("bad", CONTENT[:-1])]:
        (tmp_path / "host" / folder).mkdir(parents=True)
        (tmp_path / "host" / folder / "images.gz").write_bytes(content)
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "host"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_the_first_host_with_the_right_file_serves(tmp_path: Path, host: str) -> None:
    download_mnist(tmp_path / "data", urls=[host + "absent/", host + "bad/", host + "good/"], sha256=GOOD)

    assert (tmp_path / "data" / "mnist" / "images.gz").read_bytes() == CONTENT


def test_a_damaged_file_is_not_kept(tmp_path: Path, host: str) -> None:
    with pytest.raises(DataError) as caught:
        download_mnist(tmp_path / "data", urls=[host + "absent/", host + "bad/"], sha256=GOOD)

    assert "404" in str(caught.value)
    assert GOOD["images.gz"] in str(caught.value)
    assert list((tmp_path / "data" / "mnist").iterdir()) == []


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "images.gz").write_bytes(b"mine")

    download_mnist(tmp_path, urls=["http://127.0.0.1:9/"], sha256=GOOD)

    assert (tmp_path / "mnist" / "images.gz").read_bytes() == b"mine"


def test_a_host_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/images\.gz"):
        download_mnist(tmp_path, urls=["http://127.0.0.1:9/"], sha256=GOOD)
