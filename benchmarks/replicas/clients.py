"""Real devices among virtual ones: ``bitfleet-client`` of any version, which learn digits."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from benchmarks.faults.fleet import NotRecoveredError
from benchmarks.replicas.site import LIMIT_S, Site
from benchmarks.replicas.updates import device_name
from benchmarks.replicas.versions import Version
from bnncore.data import open_dataset
from server.demo.scenario import write_shards

_FINGERPRINT = re.compile(r"known by (\S+) ")


class Clients:
    """Agents that enrol and run; leaving the block ends them.

    Args:
      site: where they belong.
      versions: of each device, the first one's first.
      first: the first one's number.
    """

    def __init__(self, site: Site, versions: Sequence[Version], first: int) -> None:
        self._site = site
        self._versions = {first + i: version for i, version in enumerate(versions)}
        self._folder = site.root / "clients"
        self._stack = ExitStack()
        self._agents: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        shards = {number: self._folder / f"data-{number}" for number in self._versions}
        if shards:
            with open_dataset("digits", None, split="train") as dataset:
                write_shards(dataset, list(shards.values()))
        with self._stack:  # which undoes what had begun when the rest fails
            for number, shard in shards.items():
                self._enrol(number)
                self._start(number, shard)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def check(self) -> None:
        """See that all agents run.

        Raises:
          NotRecoveredError: one has ended.
        """
        for number, agent in self._agents.items():
            if agent.poll() is not None:
                log = self._log(number).read_text()
                raise NotRecoveredError(f"{device_name(number)} ended by itself: {log[-3000:]}")

    def finish(self) -> list[dict[str, Any]]:
        """Have the agents end; gives what their outboxes say they were told, as lines of a ledger."""
        for agent in self._agents.values():
            agent.terminate()
        for number, agent in self._agents.items():
            if code := agent.wait(LIMIT_S):
                log = self._log(number).read_text()
                raise NotRecoveredError(f"{device_name(number)} ended with {code}: {log[-3000:]}")
        return [line for number in self._agents for line in self._ledger(number)]

    def _ledger(self, number: int) -> list[dict[str, Any]]:
        payloads = json.loads(self._run(number, "outbox", "--json"))["payloads"]
        return [
            {
                "job": sent["job_id"],
                "device": device_name(number),
                **{name: sent[name] for name in ("round", "digest", "status", "reason")},
            }
            for sent in payloads
            if sent["status"] != "UNANSWERED"  # which was sent again
        ]

    def _enrol(self, number: int) -> None:
        fingerprint = _FINGERPRINT.findall(self._site.replicas[0].log.read_text())[-1]
        known = ("--server", self._site.url, "--ca-fingerprint", fingerprint, "--token", self._site.make_token(2))
        self._run(number, "enroll", *known, "--device-id", device_name(number))

    def _start(self, number: int, data: Path) -> None:
        version = self._versions[number]
        arguments = ("--server", self._site.grpc, "--data", str(data), "--state", self._state(number))
        with self._log(number).open("ab") as log:
            agent = subprocess.Popen(
                version.command("edge_client", "run", *arguments),
                cwd=version.tree,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._agents[number] = agent
        self._stack.callback(agent.wait)
        self._stack.callback(agent.kill)

    def _run(self, number: int, command: str, *arguments: str) -> str:
        version = self._versions[number]
        done = subprocess.run(
            version.command("edge_client", command, *arguments, "--state", self._state(number)),
            cwd=version.tree, capture_output=True, text=True, check=False, timeout=LIMIT_S,
        )  # fmt: skip
        if done.returncode:
            raise NotRecoveredError(f"bitfleet-client {command} of {version.name}: {done.stderr[-3000:]}")
        return done.stdout

    def _state(self, number: int) -> str:
        return str(self._folder / device_name(number))

    def _log(self, number: int) -> Path:
        return self._folder / f"{device_name(number)}.log"
