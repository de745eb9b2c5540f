"""A payload that is read at a URL past the coordinator: over TLS, from who is known, and from the coordinator else."""

from __future__ import annotations

import hashlib
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from bitfleet.v1 import fleet_pb2 as pb
from edge_client.courier import Courier
from edge_client.daily_use import DailyUse
from edge_client.errors import LinkError
from edge_client.link import Link
from edge_client.policy import Policy
from edge_client.state_dir import StateDir
from edge_client.transport import Transport
from edge_client.url_download import url_pieces
from server.identity.authority import Authority
from tests.edge_client.wire import Coordinator

MODEL = os.urandom(300_000)
DIGEST = hashlib.sha256(MODEL).hexdigest()


class Store(BaseHTTPRequestHandler):
    """Serves what its paths say, from the byte that is asked for."""

    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        first = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        path = self.path.partition("?")[0]
        self.asked.append((path, self.headers["Range"]))
        if path == "/moved":
            self.send_response(307)
            self.send_header("Location", "/model")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = bytes(len(MODEL)) if path == "/other" else MODEL
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        self.wfile.write(data[first : first + 100_000] if path == "/torn" else data[first:])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """An object store over TLS; ``trusted`` is the file with who signed its certificate."""
    authority = Authority.open(tmp_path / "authority")
    pair = authority.issue_server(("127.0.0.1",), timedelta(days=1))
    files = tmp_path / "server.pem"
    files.write_bytes(pair.key_pem + pair.chain_pem)
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files)
    asked: list[tuple[str, str]] = []
    handler = type("Handler", (Store,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a handshake that a device ends
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        url = f"https://127.0.0.1:{server.server_address[1]}"
        yield SimpleNamespace(url=url, asked=asked, trusted=trusted)
        server.shutdown()
        thread.join()


@pytest.fixture
async def courier(coordinator: Coordinator, tmp_path: Path) -> SimpleNamespace:
    """A device's courier with a stream to a coordinator that has the model."""
    coordinator.models[DIGEST] = MODEL
    state = StateDir(tmp_path / "device")
    transport, link = Transport(f"127.0.0.1:{coordinator.port}"), Link(state.outbox)
    use = DailyUse(state.daily_use_file, Policy())
    courier = Courier(transport, link, state.outbox, "bird-1", use)
    return SimpleNamespace(courier=courier, transport=transport, link=link, cache=state.models.of("job"), use=use)


async def test_a_model_is_read_there_and_goes_on_where_it_stopped(
    coordinator: Coordinator, courier: SimpleNamespace, store: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(store.trusted))
    with courier.cache.open_partial(DIGEST) as file:
        file.write(MODEL[:1000])

    path, received = await courier.courier.fetch(courier.cache, DIGEST, len(MODEL), f"{store.url}/model?signed=yes")

    assert path.read_bytes() == MODEL
    assert (received, courier.use.today.down) == (len(MODEL) - 1000, len(MODEL) - 1000)
    assert store.asked == [("/model", "bytes=1000-")]
    assert coordinator.downloads == []
    assert courier.transport.talk.bytes > 0  # the request left the device, and is counted
    await courier.transport.close()


async def test_whatever_is_wrong_there_the_coordinator_sends_it(
    coordinator: Coordinator, courier: SimpleNamespace, store: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    hello = pb.Hello(device_id="bird-1", protocol_min=1, protocol_max=1)
    async with courier.transport.connect(hello) as stream:
        courier.link.up(stream)

        async def fetch(url: str) -> list[int]:
            """Fetch the model, and give the bytes from which the coordinator was asked for it."""
            coordinator.downloads.clear()
            courier.cache.discard(DIGEST)
            path, _ = await courier.courier.fetch(courier.cache, DIGEST, len(MODEL), url)
            assert path.read_bytes() == MODEL
            return [request.offset for request in coordinator.downloads]

        assert await fetch(f"{store.url}/model") == [0]  # nobody known has signed its certificate
        assert store.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(store.trusted))
        assert await fetch(f"{store.url}/model") == []
        assert await fetch(f"{store.url}/torn") == [100_000]
        assert await fetch(f"{store.url}/other") == [0]
        assert await fetch(f"{store.url}/moved") == [0]
        assert await fetch("https://127.0.0.1:1/model") == [0]
        assert await fetch("nonsense") == [0]
    await courier.transport.close()


@pytest.mark.parametrize(
    ("url", "in_clear"),
    [
        ("http://127.0.0.1:1/model", False),
        ("http://192.0.2.1/model", True),
        ("file:///etc/passwd", True),
        ("https://a b/model", True),
        ("https://host:port/model", True),
        ("https:///model", True),
        ("https://host/" + 8192 * "a", True),
    ],
)
async def test_other_doors_are_not_knocked_at(url: str, in_clear: bool) -> None:
    asked: list[int] = []
    count: Callable[[int], None] = asked.append

    with pytest.raises(LinkError, match="URL of the payload"):
        async for _ in url_pieces(url, 0, in_clear=in_clear, count=count):
            pass

    assert asked == []
