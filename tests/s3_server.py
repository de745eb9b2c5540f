"""An S3 server of one's own that keeps its objects: OpenStack Swift with its S3 API, which can be killed and started.

Swift is four servers (proxy, account, container, object); here all run in one process, this file's own `main`, over a
folder. An object is flushed to disk before it is acknowledged, so it survives SIGKILL.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from tests.patience import LIMIT_S

_KINDS = ("account", "container", "object")
"""For Swift to start; a few seconds on an idle machine."""

_PROXY = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
log_level = ERROR

[pipeline:main]
pipeline = catch_errors gatekeeper listing_formats s3api tempauth copy slo dlo proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
node_timeout = 60
conn_timeout = 10

[filter:tempauth]
use = egg:swift#tempauth
user_fleet_models = secret .admin
user_fleet_reader = secret

[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false
allow_multipart_uploads = true
min_segment_size = 1048576
"""
_FILTERS = ("catch_errors", "gatekeeper", "listing_formats", "copy", "slo", "dlo")
_STORAGE = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
devices = {folder}/devices
swift_dir = {folder}
mount_check = false
log_level = ERROR

[pipeline:main]
pipeline = {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}
"""


def why_no_s3() -> str | None:
    """Say what keeps Swift from being started here, None where nothing does."""
    for module in ("swift", "boto3"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed; install it with: pip install 'bitfleet[dev,s3]'"
    with tempfile.NamedTemporaryFile() as file:
        try:
            os.setxattr(file.name, "user.bitfleet", b"kept")  # where Swift notes what it knows of an object
        except OSError as error:
            return (
                f"files in {tempfile.gettempdir()} have no extended attributes ({error}); set TMPDIR to another folder"
            )
    return None


class S3Server:
    """Swift in a temporary folder, with one bucket; leaving the block stops it and removes the folder.

    Attributes:
      url: of the bucket, with a prefix: what ``--blobs`` is given.
      endpoint: where the server listens, alike after every start.
      bucket: the bucket's name.
      environ: the credentials, as the environment of a process that uses it.
      other_key: another user's, with the same secret; it may do what everybody may.
    """

    bucket = "models"
    other_key = "fleet:reader"

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="bfs3-"))
        self._ports = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        port, *storage = (self._reserve_port() for _ in range(4))
        self.endpoint = f"http://127.0.0.1:{port}"
        self.environ = {"AWS_ACCESS_KEY_ID": "fleet:models", "AWS_SECRET_ACCESS_KEY": "secret"}
        self.url = self.url_of("fleet")
        self._write_files(port, dict(zip(_KINDS, storage, strict=True)))

    def url_of(self, prefix: str, **options: str) -> str:
        """Return the URL of another prefix in the bucket."""
        told = {"endpoint": self.endpoint, "region": "us-east-1", **options}
        query = "&".join(f"{name}={quote(value, safe=':/')}" for name, value in told.items())
        return f"s3://{self.bucket}/{prefix}?{query}"

    def __enter__(self) -> Self:
        try:
            self._run("--make-rings")
            self.start()
            self.client().create_bucket(Bucket=self.bucket)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._ports.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """Of the one process."""
        assert self._process is not None
        return self._process.pid

    def client(self) -> Any:
        """Return a client for it, as boto3 makes them."""
        import boto3

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.environ["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environ["AWS_SECRET_ACCESS_KEY"],
        )

    def start(self) -> None:
        """Start it, and return when it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([*self._command(), "--serve"], stdout=log, stderr=log)
        end = time.monotonic() + LIMIT_S
        while not (self._folder / f"ready.{self._process.pid}").exists():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"Swift did not start: {(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill it (SIGKILL), if it runs."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _reserve_port(self) -> int:
        """Take a port that nobody else is given, though nobody listens there while the server is down."""
        held = self._ports.enter_context(socket.socket())
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])

    def _write_files(self, port: int, storage: dict[str, int]) -> None:
        (self._folder / "devices" / "disk").mkdir(parents=True)
        (self._folder / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_prefix = bit\nswift_hash_path_suffix = fleet\n"
            "[storage-policy:0]\nname = one\ndefault = yes\n"
        )
        filters = "".join(f"\n[filter:{name}]\nuse = egg:swift#{name}\n" for name in _FILTERS)
        (self._folder / "proxy.conf").write_text(_PROXY.format(port=port, folder=self._folder) + filters)
        for kind, number in storage.items():
            (self._folder / f"{kind}.conf").write_text(_STORAGE.format(kind=kind, port=number, folder=self._folder))

    def _command(self) -> list[str]:
        return [sys.executable, "-W", "ignore", __file__, str(self._folder)]

    def _run(self, option: str) -> None:
        done = subprocess.run([*self._command(), option], capture_output=True, text=True, timeout=LIMIT_S, check=False)
        if done.returncode:
            raise RuntimeError(f"Swift's rings were not made: {done.stderr}")


def _make_rings(folder: Path) -> None:
    """Tell Swift that one disk holds the only replica of everything."""
    from configparser import ConfigParser

    from swift.common.ring import RingBuilder

    for kind in _KINDS:
        conf = ConfigParser()
        conf.read(folder / f"{kind}.conf")
        builder = RingBuilder(4, 1, 0)
        builder.add_dev(
            {
                "region": 1,
                "zone": 1,
                "ip": "127.0.0.1",
                "port": conf.getint("DEFAULT", "bind_port"),
                "device": "disk",
                "weight": 1,
            }
        )
        builder.rebalance()
        builder.get_ring().save(str(folder / f"{kind}.ring.gz"))


def _serve(folder: Path) -> None:
    """Serve until killed."""
    import eventlet
    import eventlet.wsgi

    eventlet.monkey_patch()
    from swift.common import utils, wsgi
    from swift.common.http_protocol import SwiftHttpProtocol

    utils.set_swift_dir(str(folder))
    utils.disable_fallocate()
    servers = []
    for kind in (*_KINDS, "proxy"):
        path = str(folder / f"{kind}.conf")
        conf = wsgi.load_app_config(path)
        listener = eventlet.listen(("127.0.0.1", int(conf["bind_port"])), reuse_port=True, backlog=512)
        app = wsgi.loadapp(path, global_conf={"log_name": kind})
        servers.append(
            eventlet.spawn(
                *(eventlet.wsgi.server, listener, app, utils.get_logger(conf, kind)),
                protocol=SwiftHttpProtocol,
                capitalize_response_headers=False,  # clients want "ETag", not "Etag"
                log_output=False,
            )
        )
    (folder / f"ready.{os.getpid()}").touch()
    for server in servers:
        server.wait()


if __name__ == "__main__":
    _, place, what = sys.argv
    (_make_rings if what == "--make-rings" else _serve)(Path(place))
