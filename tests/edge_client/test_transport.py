"""The channel itself, in the test's own process."""

import contextlib

import pytest

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.errors import ProtocolError
from edge_client.errors import LinkError
from edge_client.transport import Transport
from tests.edge_client.wire import Coordinator, Wire

HELLO = pb.Hello(device_id="bird-1", protocol_min=1, protocol_max=1)


async def test_a_link_that_died_without_a_word_is_noticed(coordinator: Coordinator, wire: Wire) -> None:
    transport = Transport(f"127.0.0.1:{wire.port}", keepalive_s=0.5)
    is_noticed = False
    while not is_noticed:
        with contextlib.suppress(LinkError):  # of a machine that stands still while it connects
            async with transport.connect(HELLO) as stream:
                wire.stall()
                with pytest.raises(LinkError):
                    await stream.receive()
                is_noticed = True
    await transport.close()


async def test_what_is_said_last_is_heard(coordinator: Coordinator) -> None:
    transport = Transport(f"127.0.0.1:{coordinator.port}")
    async with transport.connect(HELLO) as stream:
        for number in range(100):
            await stream.send(pb.ConnectRequest(report=pb.TaskReport(task_id=str(number))))
        await stream.leave()
    await transport.close()

    assert [report.task_id for report in coordinator.reports] == [str(number) for number in range(100)]


async def test_a_welcome_to_a_protocol_that_is_not_spoken_is_refused(coordinator: Coordinator) -> None:
    coordinator.welcome.protocol = 2
    transport = Transport(f"127.0.0.1:{coordinator.port}")

    with pytest.raises(ProtocolError, match=r"from 1 to 1.*protocol 2"):
        async with transport.connect(HELLO):
            pass
    await transport.close()


async def test_an_empty_address_is_a_link_that_is_not_there() -> None:
    transport = Transport("127.0.0.1:1")

    with pytest.raises(LinkError, match="refused"):
        async with transport.connect(HELLO):
            pass
    await transport.close()
