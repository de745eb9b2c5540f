"""``bitfleet-server``: one parser, one place where errors become exit codes.

Exit codes: 0 done, 1 a job failed, 2 usage, 3 configuration, 4 no answer from the coordinator, 5 incompatible, 130
interrupted. What only one command needs is imported by that command.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable

from bnncore.errors import BitfleetError
from server.cli.simulate import add_simulate

DEFAULT_SERVER = "http://127.0.0.1:8080"

_Command = Callable[[argparse.Namespace], int]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the process's exit code."""
    arguments = build_parser().parse_args(argv)
    command: _Command = arguments.command
    try:
        return command(arguments)
    except BitfleetError as error:
        print(f"bitfleet: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    import bnncore

    parser = argparse.ArgumentParser(prog="bitfleet-server", description="Coordinate a fleet that learns together.")
    parser.add_argument("--version", action="version", version=f"bitfleet {bnncore.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_jobs(commands)
    _add_devices(commands)
    _add_models(commands)
    _add_demo(commands)
    add_simulate(commands)
    return parser


_Commands = argparse._SubParsersAction  # the type that add_subparsers returns has no public name


def _add_serve(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("serve", help="run the coordinator", description="Run the coordinator.")
    parser.set_defaults(command=_serve)
    parser.add_argument("--grpc", metavar="HOST:PORT", help="where devices connect (127.0.0.1:7070)")
    parser.add_argument("--http", metavar="HOST:PORT", help="where people and tools connect (127.0.0.1:8080)")
    parser.add_argument("--state", metavar="DIR", help="folder of payloads and database (bitfleet-state)")
    parser.add_argument("--database", metavar="URL", help="SQLAlchemy URL (an SQLite file in the state folder)")
    parser.add_argument("--insecure", action="store_true", default=None, help="serve without TLS, on loopback only")
    parser.add_argument(
        "--job", metavar="FILE", action="append", help="create this job unless it exists; may be given again"
    )
    parser.add_argument("--exit-when-done", action="store_true", default=None, help="end when no job is left to run")
    parser.add_argument("--heartbeat-interval", metavar="SECONDS", help="between a device's heartbeats (5)")
    parser.add_argument("--settle", metavar="SECONDS", help="wait for more devices before a round opens (0.5)")
    parser.add_argument("--upload-idle", metavar="SECONDS", help="give up an upload after this silence (30)")
    parser.add_argument("--max-chunk-bytes", metavar="N", help="most bytes of payload in one message (262144)")
    parser.add_argument("--max-update-bytes", metavar="N", help="most bytes of one update (268435456)")
    parser.add_argument("--log-level", metavar="LEVEL", help="DEBUG, INFO, WARNING or ERROR (INFO)")
    parser.add_argument("--print-config", action="store_true", help="print the effective settings and end")


def _serve(arguments: argparse.Namespace) -> int:
    from server.cli.serve import run

    return run(arguments)


def _add_jobs(commands: _Commands[argparse.ArgumentParser]) -> None:
    group = commands.add_parser("jobs", help="create, list, show, pause, resume and cancel jobs")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    create = _add_action(actions, "create", "create a job from a file", "create_job")
    create.add_argument("file", help="job file, JSON or TOML")
    create.add_argument(
        "--start-checkpoint",
        metavar="FILE",
        help="start from this checkpoint, which the coordinator must find here too",
    )
    _add_action(actions, "list", "list all jobs", "list_jobs")
    for name, text in (
        ("show", "show a job and its rounds"),
        ("pause", "stop a pending or running job where it stands"),
        ("resume", "let a paused job go on"),
        ("cancel", "cancel a pending or running job"),
    ):
        _add_action(actions, name, text, f"{name}_job").add_argument("job", help="id of the job")


def _add_devices(commands: _Commands[argparse.ArgumentParser]) -> None:
    group = commands.add_parser("devices", help="list devices")
    _add_action(group.add_subparsers(metavar="ACTION", required=True), "list", "list all devices", "list_devices")


def _add_models(commands: _Commands[argparse.ArgumentParser]) -> None:
    group = commands.add_parser("models", help="list and export models")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    _add_action(actions, "list", "list all models", "list_models")
    export = _add_action(actions, "export", "write a model version to a checkpoint file", "export_model")
    export.add_argument("model", help="id of the model (its job's)")
    which = export.add_mutually_exclusive_group()
    which.add_argument("--model-version", type=int, metavar="N", help="the newest when not given")
    which.add_argument("--best", action="store_true", help="the version of the highest accuracy")
    export.add_argument("--output", metavar="FILE", help="MODEL-vN.safetensors when not given")


def _add_action(
    actions: _Commands[argparse.ArgumentParser], name: str, text: str, function: str
) -> argparse.ArgumentParser:
    """Add an action that asks a running coordinator over HTTP."""

    def command(arguments: argparse.Namespace) -> int:
        run: _Command = getattr(importlib.import_module("server.cli.remote"), function)
        return run(arguments)

    parser = actions.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.set_defaults(command=command)
    parser.add_argument("--server", metavar="URL", default=DEFAULT_SERVER, help=f"coordinator ({DEFAULT_SERVER})")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    return parser


def _add_demo(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("demo", help="a coordinator and a few devices on this machine")
    parser.set_defaults(command=_demo)
    parser.add_argument("--dataset", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--devices", type=int, default=4, metavar="N")
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--json", metavar="PATH", help="leave the results here; - = standard output")


def _demo(arguments: argparse.Namespace) -> int:
    run: _Command = importlib.import_module("server.demo.cli").run
    return run(arguments)
