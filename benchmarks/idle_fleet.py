"""What enrolled devices cost a coordinator while nothing happens: memory for each, and processor time of all.

    python -m benchmarks.idle_fleet --devices 500 --json build/idle-fleet.json

Starts ``bitfleet-server serve`` as an operator does, enrols devices over REST, and opens for each one connection with
mutual TLS and its stream, from this process; then all send their heartbeats. A device's memory is the growth of the
coordinator's resident memory from before they connect to after, divided by their number; they are enrolled before,
and one more is connected then, so that what the first loads is not counted. Processor time is the coordinator's, user
and system, over the time watched.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import AttributeOID, NameOID

from bitfleet.v1 import fleet_pb2 as pb
from bitfleet.v1 import fleet_pb2_grpc as pb_grpc
from bnncore.cli.output import check_destination, write_json
from server.identity.authority import private_pem

HEARTBEAT_S = 5.0
_READY = re.compile(r"devices at (\S+), people at (https://\S+?)/\s")


def rss_bytes(pid: int) -> int:
    """Resident memory of a process now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def processor_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def enrol(client: httpx.AsyncClient, token: str, device_id: str) -> tuple[bytes, bytes]:
    """Enrol a device; gives its key and certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id)]))
        .add_attribute(AttributeOID.CHALLENGE_PASSWORD, f"enrol {int(time.time())}".encode())
        .sign(key, hashes.SHA256())
    )
    body = {"csr": csr.public_bytes(serialization.Encoding.PEM).decode(), "token": token}
    answer = (await client.post("/api/v1/enrolments", json=body)).raise_for_status()
    return private_pem(key), answer.json()["certificate_pem"].encode()


class Device:
    """A device that is there, and nothing else."""

    def __init__(self, address: str, device_id: str, ca_pem: bytes, key_pem: bytes, certificate_pem: bytes) -> None:
        self._device_id = device_id
        shown = grpc.ssl_channel_credentials(ca_pem, key_pem, certificate_pem)
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.secure_channel(address, shown, options=options)

    async def connect(self) -> None:
        self._stream: Any = pb_grpc.FleetStub(self._channel).Connect()  # type: ignore[no-untyped-call]
        data = pb.DataSummary(classes=["a", "b"], input_shape=[8, 8], num_examples=100)
        hello = pb.Hello(protocol_min=1, protocol_max=1, client_version="0", device_id=self._device_id, data=data)
        await self._stream.write(pb.ConnectRequest(hello=hello))
        assert (await self._stream.read()).HasField("welcome")

    async def live(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self._stream.write(pb.ConnectRequest(heartbeat=pb.Heartbeat(state=pb.DEVICE_STATE_IDLE)))

    async def close(self) -> None:
        self._stream.cancel()
        await self._channel.close()


async def measure(pid: int, state: Path, address: str, url: str, count: int, watch_s: float) -> dict[str, Any]:
    """Let devices come, watch them being there, and give what they cost."""
    ca_pem = (state / "identity/ca.pem").read_bytes()
    key = (state / "identity/admin.key").read_text().strip()
    context = ssl.create_default_context(cadata=ca_pem.decode())
    async with httpx.AsyncClient(base_url=url, verify=context, trust_env=False, timeout=60) as client:
        headers = {"Authorization": f"Bearer {key}"}
        wanted = {"uses": count + 1}
        token = (await client.post("/api/v1/tokens", json=wanted, headers=headers)).raise_for_status().json()["token"]
        pairs = [await enrol(client, token, f"device-{number}") for number in range(count + 1)]
    devices = [
        Device(address, f"device-{number}", ca_pem, key_pem, certificate_pem)
        for number, (key_pem, certificate_pem) in enumerate(pairs)
    ]
    await devices[-1].connect()  # what the first of all loads is not one device's
    await asyncio.sleep(2)
    before = rss_bytes(pid)
    for device in devices[:-1]:
        await device.connect()
    lives = [asyncio.create_task(device.live()) for device in devices]
    await asyncio.sleep(2 * HEARTBEAT_S)
    began, began_s = processor_s(pid), time.monotonic()
    await asyncio.sleep(watch_s)
    share = (processor_s(pid) - began) / (time.monotonic() - began_s)
    after = rss_bytes(pid)
    for life in lives:
        life.cancel()
    await asyncio.gather(*(device.close() for device in devices))
    return {
        "devices": count,
        "rss_bytes_without": before,
        "rss_bytes_with": after,
        "rss_bytes_per_device": round((after - before) / count),
        "processor_share_of_a_core": share,
        "heartbeat_interval_s": HEARTBEAT_S,
        "watched_s": watch_s,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=500, help="that are connected (default: 500)")
    parser.add_argument("--watch", type=float, default=30.0, metavar="SECONDS", help="they are watched (default: 30)")
    parser.add_argument("--json", metavar="PATH", help="write the result here; - = standard output")
    args = parser.parse_args()
    check_destination(args.json, "--json")
    with tempfile.TemporaryDirectory(prefix="bitfleet-idle-") as name:
        state = Path(name) / "state"
        ports = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--enrolments-per-minute", "1000000"]
        command = [sys.executable, "-m", "server", "serve", "--state", str(state), *ports, "--log-level", "WARNING"]
        coordinator = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert coordinator.stdout is not None
            ready = _READY.search(coordinator.stdout.readline())
            if ready is None:
                raise SystemExit("the coordinator did not start; its complaint stands above")
            result = asyncio.run(measure(coordinator.pid, state, ready[1], ready[2], args.devices, args.watch))
        finally:
            coordinator.terminate()
            coordinator.wait()
    print(
        f"{args.devices} devices: {result['rss_bytes_per_device'] / 1e3:.1f} kB each, "
        f"{100 * result['processor_share_of_a_core']:.1f} % of a core",
        file=sys.stderr,
    )
    write_json(result, args.json)


if __name__ == "__main__":
    main()
