"""Devices that hold streams across replicas: what each costs in memory, and how soon all have a new round's task."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.replicas.fleet import Devices
from benchmarks.replicas.processes import processor_s
from benchmarks.replicas.site import HEARTBEAT_S, Site, small_job
from edge_client.pss import pss_bytes


def measure(root: Path, replicas: int, count: int, watch_s: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Let devices connect, watch them being there, then begin a round."""
    with Site(root, replicas) as site, Devices(site, count, say, sends=False, downloads=False) as devices:
        devices.hear("enrolled", 1200)
        say(f"{count} devices are enrolled")
        pids = [replica.pid for replica in site.replicas]
        before = [pss_bytes(pid) for pid in pids]
        began = time.monotonic()
        devices.tell()
        devices.hear("connected", 1200)
        connected_s = time.monotonic() - began
        say(f"{count} devices are connected after {connected_s:.1f} s")
        time.sleep(2 * HEARTBEAT_S)
        used, began = processor_s(pids), time.monotonic()
        time.sleep(watch_s)
        share = (processor_s(pids) - used) / (time.monotonic() - began)
        after = [pss_bytes(pid) for pid in pids]
        status = site.ask("GET", "/api/v1/status")
        created = time.time()
        job_id = site.create_job(small_job("streams", 1, count))
        devices.tell(1)
        arrivals = devices.hear("arrivals", 600)["arrivals"]
        ((opened,),) = site.postgres.query("SELECT opened_at FROM rounds WHERE job_id = %s", job_id)
        return {
            "replicas": replicas,
            "devices": count,
            "devices_connected": status["devices_connected"],
            "connect_s": connected_s,
            "heartbeat_interval_s": HEARTBEAT_S,
            "pss_bytes_without": before,
            "pss_bytes_with": after,
            "pss_bytes_per_device": (sum(after) - sum(before)) / count,
            "processor_share_idle": share,
            "task_after_opening_s": _spread(arrivals, opened),
            "task_after_creating_s": _spread(arrivals, created),
            "problems": devices.problems,
        }


def _spread(times: list[float], since: float) -> dict[str, float]:
    return {
        "first": times[0] - since,
        "median": statistics.median(times) - since,
        "last": times[-1] - since,
    }
