"""The commands about models: list, export, where they come from, how they differ, which one is to be used."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bnncore.errors import BitfleetError, ConfigurationError
from server.cli.asking import ask, ask_all, connect, print_table, show
from server.cli.remote import percent
from server.client import FleetClient
from server.client.connection import path_of

_SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "packed": ".bfpk"}


def list_models(arguments: argparse.Namespace) -> int:
    """List all models with their newest version."""
    models = ask_all(arguments, "/models")
    rows = (
        [
            m["id"],
            m["latest"]["version"],
            percent(m["latest"]),
            m["promoted_version"],
            m["latest"]["weights_digest"][:16],
        ]
        for m in models
    )
    columns = ["model", "version", "accuracy", "promoted", "weights"]
    return show(arguments, models, lambda: print_table(columns, rows))


def export_model(arguments: argparse.Namespace) -> int:
    """Write a model version to a file, which appears complete or not at all."""
    version = _chosen(arguments)
    path = Path(arguments.output or f"{arguments.model}-v{version}{_SUFFIXES[arguments.format]}")
    try:
        with connect(arguments) as connection:
            FleetClient.over(connection).models.download(arguments.model, version, path, format=arguments.format)
        num_bytes = path.stat().st_size
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error}; choose another --output") from error
    result = {"model": arguments.model, "version": version, "path": str(path), "bytes": num_bytes}
    result |= {"format": arguments.format}
    return show(arguments, result, lambda: print(f"wrote {path} ({num_bytes} bytes)"))


def show_lineage(arguments: argparse.Namespace) -> int:
    """Show where a version comes from."""
    lineage = ask(arguments, "GET", _model(arguments, "versions", _chosen(arguments), "lineage"))
    version, parent = lineage["version"], lineage["parent"]
    origin = (
        f"seed {lineage['seed']} of the job" if parent is None else f"version {parent['version']} of {parent['id']}"
    )
    facts = {
        "version": f"{version['version']} of {version['id']} ({lineage['job_name']})",
        "made by": lineage["made_by"],
        "made of": lineage["start_checkpoint"] or origin,
        "weights": version["weights_digest"],
        "network": lineage["spec_digest"],
        "accuracy": percent(version),
    }
    if lineage["round"] is not None:
        secure = ", of which the coordinator saw the sum alone" if lineage["is_secure"] else ""
        told = "" if not lineage["examples"] else f", trained on {lineage['examples']} samples"
        facts["updates"] = f"{lineage['accepted']} of {lineage['cohort']} devices{told}{secure}"
        facts["strategy"] = lineage["strategy"]
    if lineage["epsilon"] is not None:
        facts["privacy"] = (
            f"epsilon {lineage['epsilon']:.3f} at delta {lineage['delta']:g}, with all versions before it"
        )
    for promotion in lineage["promotions"]:
        until = f", until {promotion['withdrawn_at']}" if promotion["withdrawn_at"] else ""
        facts[f"promoted {promotion['promoted_at']}"] = f"by {promotion['promoted_by']}{until}"

    def print_facts() -> None:
        for name, value in facts.items():
            print(f"{name:<12} {value}")

    return show(arguments, lineage, print_facts)


def compare_versions(arguments: argparse.Namespace) -> int:
    """Show how two versions differ."""
    found = ask(arguments, "GET", _model(arguments, "compare"), params={"a": arguments.a, "b": arguments.b})

    def print_comparison() -> None:
        loss = ["-" if found[side]["loss"] is None else f"{found[side]['loss']:.4f}" for side in ("a", "b")]
        print(f"accuracy {percent(found['a'])} -> {percent(found['b'])}, loss {loss[0]} -> {loss[1]}")
        print(f"{found['changed_signs']} of {found['binary_weights']} binary weights have another sign")
        rows = (
            [t["name"], t["values"], t["changed_signs"], _share(t), f"{t['distance']:.4g}"] for t in found["tensors"]
        )
        print_table(["tensor", "values", "changed signs", "of all", "distance"], rows)

    return show(arguments, found, print_comparison)


def promote_version(arguments: argparse.Namespace) -> int:
    """Declare a version to be the one to use."""
    promoted = ask(arguments, "POST", _model(arguments, "promote"), json={"version": _chosen(arguments)})
    return _show_promoted(arguments, promoted)


def roll_back(arguments: argparse.Namespace) -> int:
    """Go back to the version that was promoted before."""
    return _show_promoted(arguments, ask(arguments, "POST", _model(arguments, "rollback")))


def _show_promoted(arguments: argparse.Namespace, promoted: dict[str, Any]) -> int:
    return show(
        arguments, promoted, lambda: print(f"{promoted['id']}: version {promoted['promoted_version']} is promoted")
    )


def _chosen(arguments: argparse.Namespace) -> int:
    """Find out which version is meant: the newest, where nothing was said."""
    if arguments.best:
        best = ask(arguments, "GET", path_of("jobs", arguments.model))["best_version"]
        if best is None:
            raise BitfleetError(f"no version of model {arguments.model!r} was evaluated; leave --best out")
        return int(best)
    if getattr(arguments, "promoted", False):
        promoted = ask(arguments, "GET", _model(arguments, "promotions"))["promoted_version"]
        if promoted is None:
            raise BitfleetError(f"no version of model {arguments.model!r} was promoted; leave --promoted out")
        return int(promoted)
    if arguments.model_version is not None:
        return int(arguments.model_version)
    versions = ask_all(arguments, _model(arguments, "versions"))
    if not versions:
        raise BitfleetError(f"model {arguments.model!r} has no version yet")
    return int(versions[-1]["version"])


def _model(arguments: argparse.Namespace, *parts: str | int) -> str:
    return path_of("models", arguments.model, *parts)


def _share(tensor: dict[str, Any]) -> str | None:
    changed = tensor["changed_signs"]
    return None if changed is None else f"{100 * changed / tensor['values']:.1f} %"
