"""``FleetClient``: the API's objects and what can be done with them, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel

from bnncore.durable import replace_file
from bnncore.errors import ConfigurationError
from server.api.model_views import ComparisonView, LineageView, PromotedView
from server.api.status_views import StatusView
from server.api.trust_views import AuditView, IdentityView, KeyView, TokenView
from server.api.views import DeviceView, JobView, ModelView, RoundView, VersionView
from server.client.connection import Connection, path_of
from server.client.events import FleetEvent, follow
from server.coordinator import JobState

_View = TypeVar("_View", bound=BaseModel)


class FleetClient:
    """One coordinator. A context manager.

    Lists are fetched page after page while they are read. A problem is a RequestError with the coordinator's own
    words; no answer is an UnreachableError.

    Args:
      url: such as ``https://fleet.example:8080``.
      key: to the API (``bfk_...``); None where the coordinator asks for none.
      ca_file: the certificate by which it is known, such as ``identity/ca.pem`` of its state folder; None: one of those
        that this machine trusts.

    Raises:
      ConfigurationError: the key would be sent in the clear, or the certificate cannot be read.
    """

    def __init__(self, url: str, *, key: str | None = None, ca_file: str | Path | None = None) -> None:
        try:
            ca_pem = None if ca_file is None else Path(ca_file).read_text()
        except OSError as error:
            raise ConfigurationError(f"cannot read {ca_file}: {error.strerror}") from error
        self._use(Connection(url, key=key, ca_pem=ca_pem))

    @classmethod
    def over(cls, connection: Connection) -> Self:
        """Use a connection that there is already."""
        fleet = cls.__new__(cls)
        fleet._use(connection)
        return fleet

    def _use(self, connection: Connection) -> None:
        self._connection = connection
        self.jobs = Jobs(self._connection)
        self.devices = Devices(self._connection)
        self.models = Models(self._connection)
        self.identities = Identities(self._connection)
        self.tokens = Tokens(self._connection)
        self.keys = Keys(self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def status(self) -> StatusView:
        """Return the coordinator at a glance."""
        return StatusView.model_validate(self._connection.json("GET", "/status"))

    def events(self, *, job: str | None = None, patience_s: float = 60.0) -> Iterator[FleetEvent]:
        """Yield what changes, as it happens and without end; begins with ``reset``.

        Args:
          job: only what concerns this job.
          patience_s: how long the coordinator may be away; what happened meanwhile is told, or ``reset``.
        """
        return follow(self._connection, job, patience_s)

    def audit(self, *, actor: str | None = None, action: str | None = None) -> Iterator[AuditView]:
        """Yield the audit log, the newest entry first, of one actor or of actions that begin so."""
        return _entries(self._connection, AuditView, "/audit", {"actor": actor, "action": action})


class _Part:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection


class Jobs(_Part):
    """Jobs and their rounds."""

    def create(self, job: Mapping[str, Any] | BaseModel) -> JobView:
        """Create a job from what a job file holds, or from a ``JobConfig``."""
        body = job.model_dump(mode="json") if isinstance(job, BaseModel) else dict(job)
        return JobView.model_validate(self._connection.make("/jobs", body))

    def get(self, job_id: str) -> JobView:
        """Return one job."""
        return JobView.model_validate(self._connection.json("GET", path_of("jobs", job_id)))

    def list(self, *, state: str | None = None, name: str | None = None) -> Iterator[JobView]:
        """Yield jobs, in the order in which they were created."""
        return _entries(self._connection, JobView, "/jobs", {"state": state, "name": name})

    def cancel(self, job_id: str) -> JobView:
        """Cancel a pending or running job; what it committed stays."""
        return self._change(job_id, "cancel")

    def pause(self, job_id: str) -> JobView:
        """Stop a pending or running job where it stands."""
        return self._change(job_id, "pause")

    def resume(self, job_id: str) -> JobView:
        """Let a paused job go on."""
        return self._change(job_id, "resume")

    def clone(self, job_id: str, changes: Mapping[str, Any] | None = None) -> JobView:
        """Create a job like another one; ``changes`` by key, dotted where it is within a part."""
        made = self._connection.make(path_of("jobs", job_id, "clone"), {"set": dict(changes or {})})
        return JobView.model_validate(made)

    def file(self, job_id: str) -> dict[str, Any]:
        """Return a job as one would write it: without what is a default or follows from the rest."""
        written: dict[str, Any] = self._connection.json("GET", path_of("jobs", job_id, "file"))
        return written

    def rounds(self, job_id: str, *, state: str | None = None, updates: bool = True) -> Iterator[RoundView]:
        """Yield a job's rounds by number; without ``updates``, without the rows of their devices."""
        params = {"state": state, "updates": None if updates else "false"}
        return _entries(self._connection, RoundView, path_of("jobs", job_id, "rounds"), params)

    def round(self, job_id: str, number: int) -> RoundView:
        """Return one round."""
        return RoundView.model_validate(self._connection.json("GET", path_of("jobs", job_id, "rounds", number)))

    def wait(self, job_id: str, *, patience_s: float = 60.0) -> JobView:
        """Wait until a job has ended, however long that takes; returns it."""
        for event in follow(self._connection, job_id, patience_s):
            if event.kind in ("reset", "job"):
                job = self.get(job_id)
                if JobState(job.state).is_over:
                    return job
        raise AssertionError("the stream of events has no end")

    def _change(self, job_id: str, change: str) -> JobView:
        return JobView.model_validate(self._connection.change_job(job_id, change))


class Devices(_Part):
    """Devices that ever connected."""

    def get(self, device_id: str) -> DeviceView:
        """Return one device."""
        return DeviceView.model_validate(self._connection.json("GET", path_of("devices", device_id)))

    def list(
        self,
        *,
        state: str | None = None,
        connected: bool | None = None,
        label: str | None = None,
        name: str | None = None,
    ) -> Iterator[DeviceView]:
        """Yield devices by id: of one state, that have a stream now or have none, with a label or a part of a name."""
        params = {"state": state, "connected": connected, "label": label, "name": name}
        return _entries(self._connection, DeviceView, "/devices", params)


class Models(_Part):
    """Models and their versions; a model has its job's id."""

    def list(self) -> Iterator[ModelView]:
        """Yield every model with its newest version."""
        return _entries(self._connection, ModelView, "/models")

    def versions(self, model_id: str) -> Iterator[VersionView]:
        """Yield a model's versions by number."""
        return _entries(self._connection, VersionView, path_of("models", model_id, "versions"))

    def version(self, model_id: str, number: int) -> VersionView:
        """Return one version."""
        path = path_of("models", model_id, "versions", number)
        return VersionView.model_validate(self._connection.json("GET", path))

    def lineage(self, model_id: str, version: int) -> LineageView:
        """Say where a version comes from."""
        path = path_of("models", model_id, "versions", version, "lineage")
        return LineageView.model_validate(self._connection.json("GET", path))

    def compare(self, model_id: str, a: int, b: int) -> ComparisonView:
        """Say how two versions differ."""
        answer = self._connection.json("GET", path_of("models", model_id, "compare"), params={"a": a, "b": b})
        return ComparisonView.model_validate(answer)

    def promotions(self, model_id: str) -> PromotedView:
        """Say which version is to be used, and which were."""
        return PromotedView.model_validate(self._connection.json("GET", path_of("models", model_id, "promotions")))

    def promote(self, model_id: str, version: int) -> PromotedView:
        """Declare a version to be the one to use."""
        answer = self._connection.json("POST", path_of("models", model_id, "promote"), json={"version": version})
        return PromotedView.model_validate(answer)

    def roll_back(self, model_id: str) -> PromotedView:
        """Go back to the version that was promoted before."""
        return PromotedView.model_validate(self._connection.json("POST", path_of("models", model_id, "rollback")))

    def download(self, model_id: str, version: int, path: str | Path, *, format: str = "safetensors") -> Path:  # noqa: A002 - as in the API
        """Write a version to a file, which appears when it is whole; returns its path.

        Args:
          model_id: the model.
          version: its number.
          path: of the file.
          format: ``safetensors``, ``onnx`` or ``packed``.

        Raises:
          OSError: the file cannot be written.
        """
        address = path_of("models", model_id, "versions", version, "download")
        with (
            self._connection.stream(address, params={"format": format}) as answer,
            replace_file(Path(path)) as file,
        ):
            for piece in answer.iter_bytes():
                file.write(piece)
        return Path(path)


class Identities(_Part):
    """Devices that ever enrolled."""

    def list(self) -> list[IdentityView]:
        """Return all of them."""
        return [IdentityView.model_validate(entry) for entry in self._connection.json("GET", "/identities")]

    def revoke(self, device_id: str) -> IdentityView:
        """Shut a device out."""
        path = path_of("identities", device_id, "revoke")
        return IdentityView.model_validate(self._connection.json("POST", path))


class Tokens(_Part):
    """Tokens that let devices enrol."""

    def create(
        self, *, uses: int = 1, expires_s: float = 86400.0, labels: Mapping[str, str] | None = None
    ) -> TokenView:
        """Make a token; its secret is in this answer alone."""
        body = {"uses": uses, "expires_s": expires_s, "labels": dict(labels or {})}
        return TokenView.model_validate(self._connection.json("POST", "/tokens", json=body))

    def list(self) -> list[TokenView]:
        """Return all tokens, without their secrets."""
        return [TokenView.model_validate(entry) for entry in self._connection.json("GET", "/tokens")]

    def delete(self, token_id: str) -> None:
        """Make a token good for nothing."""
        self._connection.request("DELETE", path_of("tokens", token_id))


class Keys(_Part):
    """Keys of people and tools."""

    def create(self, name: str, scope: str = "read") -> KeyView:
        """Make a key; its secret is in this answer alone."""
        return KeyView.model_validate(self._connection.json("POST", "/keys", json={"name": name, "scope": scope}))

    def list(self) -> list[KeyView]:
        """Return all keys, without their secrets."""
        return [KeyView.model_validate(entry) for entry in self._connection.json("GET", "/keys")]

    def revoke(self, key_id: str) -> None:
        """End a key's life."""
        self._connection.request("DELETE", path_of("keys", key_id))


def _entries(
    connection: Connection, kind: type[_View], path: str, params: Mapping[str, Any] | None = None
) -> Iterator[_View]:
    for entry in connection.entries(path, {"limit": 500, **(params or {})}):
        yield kind.model_validate(entry)
