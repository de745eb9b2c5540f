"""``bitfleet-client policy``: what a coordinator may ask here, and what of it was used today."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict

from edge_client.commands.options import Commands, add_json, add_policy, add_state, state_of
from edge_client.commands.output import show
from edge_client.daily_use import DailyUse
from edge_client.policy import read_policy
from edge_client.privacy_account import epsilon_of, spent_in
from edge_client.settings import find_policy

__all__ = ["add_parsers"]


def add_parsers(commands: Commands) -> None:
    """Add the command."""
    policy = commands.add_parser("policy", help="show what a coordinator may ask here, and what was used today")
    add_policy(policy)
    add_json(policy)
    add_state(policy)
    policy.set_defaults(act=_policy)


def _policy(arguments: argparse.Namespace) -> int:
    state = state_of(arguments)
    path = find_policy(arguments.policy or os.environ.get("BITFLEET_CLIENT_POLICY"), os.environ)
    policy = read_policy(path)
    today = asdict(DailyUse(state.daily_use_file, policy).today)
    epsilon = epsilon_of(spent_in(state.outbox), policy.delta)
    rules = {**asdict(policy), "hours": None if policy.hours is None else str(policy.hours)}
    facts = {
        "file": None if path is None else str(path),
        "rules": rules,
        "today": today,
        "epsilon_spent": epsilon,
    }
    lines = [f"{'file':<26} {path or 'none: the rules below are those of a device without one'}"]
    for name, value in rules.items():
        used = today.get(name.removeprefix("max_"))
        shown = _shown(value)
        if name in ("max_epsilon", "delta") and value is not None:
            shown = f"{value:g}"
        if name == "max_epsilon":
            shown += f" over all jobs; {epsilon:.3g} is spent"
        lines.append(f"{name:<26} {shown}{'' if used is None else f' a day; {used} today'}")
    show(facts, "\n".join(lines), arguments.json)
    return 0


def _shown(value: object) -> str:
    match value:
        case None:
            return "any"
        case bool():
            return str(value).lower()
        case tuple():
            return ", ".join(value)
        case int() | float():
            return f"{value:,.0f}"
        case _:
            return str(value)
