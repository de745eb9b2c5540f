"""What the benchmark beside Flower counts and how it reckons; Flower itself is not needed."""

import math
import socket
import threading

import pytest

from benchmarks.flower.account import Round, Run, compare, fleet_rounds, flower_rounds, follow_line
from benchmarks.flower.servers import trainable_shapes
from benchmarks.flower.wire import CountingProxy, free_port
from bnncore.zoo import build


def make_run(side: str, begun: list[float], *, training_s: float = 1.0, size: int = 100, peak: int = 10) -> Run:
    rounds = tuple(Round(began, training_s) for began in begun)
    return Run(
        side, rounds, down_bytes=(size, size), up_bytes=(size, size), device_pss_peak_bytes=(peak, peak), accuracy=90.0
    )


def answer_once(listener: socket.socket, question_bytes: int, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        rest = question_bytes
        while rest:
            rest -= len(connection.recv(rest))
        connection.sendall(answer)


def test_proxy_counts_every_byte_of_both_directions_and_changes_none() -> None:
    answer = bytes(range(256)) * 4000  # more than one buffer
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=answer_once, args=(listener, 12, answer))
        server.start()
        with CountingProxy("127.0.0.1", listener.getsockname()[1]) as proxy:
            host, port = proxy.address.split(":")
            with socket.create_connection((host, int(port))) as device, device.makefile("rb") as received:
                device.sendall(b"how are you?")
                assert received.read() == answer
            server.join()
            assert (proxy.up_bytes, proxy.down_bytes) == (12, len(answer))


def test_proxy_ends_a_connection_that_its_coordinator_refuses() -> None:
    with CountingProxy("127.0.0.1", free_port()) as proxy:
        host, port = proxy.address.split(":")
        with socket.create_connection((host, int(port))) as device:
            assert device.recv(1) == b""
        assert (proxy.up_bytes, proxy.down_bytes) == (0, 0)


def test_overhead_is_the_time_to_the_next_round_less_the_slowest_training() -> None:
    rounds = flower_rounds(
        {"rounds": [{"began": 10.0, "training_seconds": [1, 3]}, {"began": 17.0, "training_seconds": [2]}]}
    )
    assert rounds == (Round(10.0, 3), Round(17.0, 2))
    assert Run("flower", rounds, (1,), (1,), (1,), 0.0).overheads_s == [4.0]


def test_rounds_of_the_rest_api_leave_out_the_one_that_trains_nothing() -> None:
    rows = [
        {"round": 3, "opened_at": "2026-01-01T00:00:09.000Z", "training_seconds_max": None},
        {"round": 1, "opened_at": "2026-01-01T00:00:00.000Z", "training_seconds_max": 0.5},
        {"round": 2, "opened_at": "2026-01-01T00:00:02.250Z", "training_seconds_max": 0.75},
    ]
    first, second = fleet_rounds(rows, 2)
    assert second.began - first.began == 2.25
    assert (first.training_s, second.training_s) == (0.5, 0.75)


def test_ratios_say_how_many_times_more_flower_takes() -> None:
    runs = [
        make_run("flower", [0, 21, 42], size=3000, peak=600),
        make_run("bitfleet", [0, 2, 6], size=100, peak=60),
    ]
    ratios = compare(runs)
    assert ratios["bytes_ratio"] == pytest.approx(30)
    assert ratios["overhead_ratio"] == pytest.approx(20 / 2)  # the median of 1 and 3
    assert ratios["device_pss_ratio"] == pytest.approx(10)
    assert runs[0].bytes_per_device_round == 2 * 3000 / 3


def test_line_goes_through_its_points_and_on() -> None:
    assert follow_line({10: 130.0, 20: 230.0}, 50) == pytest.approx(530)
    assert follow_line({1: 1.0, 2: 3.0, 3: 2.0}, 2) == pytest.approx(2)
    with pytest.raises(ValueError, match="two points, got 1"):
        follow_line({10: 130.0}, 50)


def test_flower_s_arrays_are_those_of_a_float32_network() -> None:
    shapes = trainable_shapes("binarynet")
    weights = sum(math.prod(shape) for shape in shapes if len(shape) > 1)
    assert weights == build("binarynet").num_binary_weights
    vectors = [shape for shape in shapes if len(shape) == 1]
    assert len(vectors) == 4 * sum(len(shape) > 1 for shape in shapes)
