"""What `docker/` sets is what a coordinator knows; the schemas of these files themselves are checked by `make lint`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import Settings, build_settings

DOCKER = Path(__file__).resolve().parent.parent / "docker"

_VARIABLE = re.compile(r"\$\{(\w+)(?::[-?][^}]*)?\}")


def compose_environment() -> dict[str, str]:
    """Of a coordinator of the compose file, with some value for each variable."""
    service = yaml.safe_load((DOCKER / "replicas.yaml").read_text())["services"]["coordinator"]
    return {name: _VARIABLE.sub(r"\1", value) for name, value in service["environment"].items()}


def kubernetes_environment() -> dict[str, str]:
    """Of a pod: what the kustomization says, and what the page says of the secret."""
    kustomization = yaml.safe_load((DOCKER / "kubernetes" / "kustomization.yaml").read_text())
    (config,) = kustomization["configMapGenerator"]
    page = (DOCKER.parent / "docs" / "replicas.md").read_text()
    secret = re.findall(r"--from-literal=(\w+)='?([^'\s]+)", page)
    return dict(line.split("=", 1) for line in config["literals"]) | dict(secret)


@pytest.mark.parametrize("environment", [compose_environment, kubernetes_environment])
def test_what_replicas_are_given_is_what_they_need(environment: Any) -> None:
    given = environment()
    settings, _ = build_settings({}, given)

    assert settings.database_url.startswith("postgresql+psycopg://")
    assert settings.store.startswith("s3://")
    assert settings.identity == Path("/identity")
    assert settings.public_host
    assert settings.drain_s > Settings.drain_s
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= given.keys()


def test_pods_and_balancers_use_the_ports_and_the_probes_that_there_are() -> None:
    image = (DOCKER / "Dockerfile").read_text()
    listens = dict(re.findall(r"BITFLEET_SERVER_(GRPC|HTTP)=0\.0\.0\.0:(\d+)", image))
    ports = {"devices": int(listens["GRPC"]), "people": int(listens["HTTP"])}
    deployment, _ = yaml.safe_load_all((DOCKER / "kubernetes" / "coordinators.yaml").read_text())
    (pod,) = deployment["spec"]["template"]["spec"]["containers"]
    services = list(yaml.safe_load_all((DOCKER / "kubernetes" / "services.yaml").read_text()))
    balancer = (DOCKER / "haproxy.cfg").read_text()

    assert {port["name"]: port["containerPort"] for port in pod["ports"]} == ports
    for service in services:
        for port in service["spec"]["ports"]:
            assert port["port"] == ports[port["targetPort"]]
    assert [pod[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")] == [
        "/healthz", "/healthz", "/readyz",
    ]  # fmt: skip
    said = {f"bind :{port}" for port in ports.values()} | {f"coordinator:{port}\n" for port in ports.values()}
    assert {word for word in said if word not in balancer} == set()
    assert f"check port {ports['people']} " in balancer
    assert "GET uri /readyz" in balancer
