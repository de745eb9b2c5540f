"""``bitfleet-server``: one parser, one place where errors become exit codes.

Exit codes: 0 done, 1 a job failed or two jobs differ, 2 usage, 3 configuration, 4 no answer from the coordinator,
5 incompatible, 130 interrupted. What only one command needs is imported by that command.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
from collections.abc import Callable

from bnncore.errors import BitfleetError, ConfigurationError
from bnncore.version import add_version
from server.cli.backup import add_backup
from server.cli.connection import add_connection_options
from server.cli.limits import add_limit_options
from server.cli.simulate import add_simulate

_Command = Callable[[argparse.Namespace], int]

_OURS = ("bitfleet", "bnncore", "edge_client", "server")
"""Packages of this distribution: that one of their modules is missing is no matter of an extra."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the process's exit code."""
    arguments = build_parser().parse_args(argv)
    command: _Command = arguments.command
    try:
        return command(arguments)
    except BitfleetError as error:
        print(f"bitfleet: error: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", *_OURS):
            raise
        advice = "Install what the coordinator needs: pip install 'bitfleet[server]'"
        print(f"bitfleet: error: {package} is not installed here. {advice}", file=sys.stderr)
        return ConfigurationError.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(prog="bitfleet-server", description="Coordinate a fleet that learns together.")
    add_version(parser)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_action(commands, "status", "show the fleet, the running jobs and what rounds cost", "show_status")
    top = _add_action(commands, "top", "show the fleet live in the terminal, until q is pressed", "show_top", "top")
    top.add_argument("--once", action="store_true", help="print it once, also where there is no terminal")
    _add_jobs(commands)
    _add_devices(commands)
    _add_models(commands)
    _add_trust(commands)
    add_backup(commands)
    _add_unit(commands)
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
    parser.add_argument("--blobs", metavar="URL", help="s3://BUCKET/PREFIX for payloads (a folder in the state folder)")
    text = "let devices read models from the object store themselves"
    parser.add_argument("--presigned-downloads", action="store_true", default=None, help=text)
    parser.add_argument(
        "--insecure", action="store_true", default=None, help="without TLS and without keys, on loopback only"
    )
    text = "folder of the fleet's authority, which all its coordinators share (the state folder's identity/)"
    parser.add_argument("--identity", metavar="DIR", help=text)
    parser.add_argument(
        "--public-host",
        metavar="HOST",
        action="append",
        help="name or address of this machine for its certificate; again",
    )
    text = "where browsers reach the dashboard by a proxy, such as https://fleet.example; its forms are taken then"
    parser.add_argument("--public-url", metavar="URL", help=text)
    parser.add_argument("--tls-cert", metavar="FILE", help="your own certificate chain (made when not given)")
    parser.add_argument("--tls-key", metavar="FILE", help="its key")
    parser.add_argument("--tls-ca", metavar="FILE", help="the certificate of who signed it")
    parser.add_argument("--device-certificate-days", metavar="DAYS", help="life of a device's certificate (7)")
    parser.add_argument("--device-grace-days", metavar="DAYS", help="in which a device that was away renews it (90)")
    parser.add_argument(
        "--enrolments-per-minute", metavar="N", help="most requests to enrol or renew, and most wrong keys (600)"
    )
    parser.add_argument(
        "--new-admin-key", action="store_true", default=None, help="make another admin key, when all others are lost"
    )
    parser.add_argument(
        "--job", metavar="FILE", action="append", help="create this job unless it exists; may be given again"
    )
    parser.add_argument("--exit-when-done", action="store_true", default=None, help="end when no job is left to run")
    parser.add_argument("--heartbeat-interval", metavar="SECONDS", help="between a device's heartbeats (5)")
    parser.add_argument("--settle", metavar="SECONDS", help="wait for more devices before a round opens (0.5)")
    parser.add_argument("--drain", metavar="SECONDS", help="for uploads and merges under way when told to stop (5)")
    parser.add_argument("--upload-idle", metavar="SECONDS", help="give up an upload after this silence (30)")
    parser.add_argument("--max-chunk-bytes", metavar="N", help="most bytes of payload in one message (262144)")
    parser.add_argument("--max-update-bytes", metavar="N", help="most bytes of one update (268435456)")
    parser.add_argument("--max-jobs", metavar="N", help="most jobs that run at the same time (4)")
    add_limit_options(parser)
    parser.add_argument("--log-level", metavar="LEVEL", help="DEBUG, INFO, WARNING or ERROR (INFO)")
    parser.add_argument("--log-format", metavar="FORMAT", help="text, or json: one object a line (text)")
    parser.add_argument("--print-config", action="store_true", help="print the effective settings and end")


def _serve(arguments: argparse.Namespace) -> int:
    # What a coordinator is made of lives as long as it does: to look for garbage among that, while it is imported and
    # ever after, takes a quarter of the processor time of a start.
    gc.disable()
    try:
        from server.cli.serve import run
    finally:
        gc.freeze()
        gc.enable()
    return run(arguments)


def _add_jobs(commands: _Commands[argparse.ArgumentParser]) -> None:
    group = commands.add_parser("jobs", help="create, list, show, compare, pause, resume and cancel jobs")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    create = _add_action(actions, "create", "create a job from a file or a template", "create_job", "job_files")
    create.add_argument("job_file", nargs="?", metavar="FILE", help="job file: .json, .toml, .yaml or .yml")
    create.add_argument("-f", "--file", metavar="FILE", help="the same")
    create.add_argument("--template", metavar="NAME", help="a job that comes with bitfleet; see jobs templates")
    _add_set(create)
    create.add_argument(
        "--start-checkpoint",
        metavar="FILE",
        help="start from this checkpoint, which the coordinator must find here too",
    )
    templates = _add_action(actions, "templates", "list the templates, or print one", "show_templates", "job_files")
    templates.add_argument("name", nargs="?", metavar="NAME", help="the one to print")
    clone = _add_action(actions, "clone", "create a job like another one", "clone_job", "job_files")
    clone.add_argument("job", help="id of the other one")
    _add_set(clone)
    text = "show in what two jobs differ; exit code 1 when they do"
    diff = _add_action(actions, "diff", text, "diff_jobs", "job_files")
    for name in ("first", "second"):
        diff.add_argument(name, metavar="JOB", help="id of a job, a job file, or the name of a template")
    text = "print a job as a file that creates the same again"
    _add_action(actions, "file", text, "print_job_file", "job_files").add_argument("job", help="id of the job")
    _add_action(actions, "list", "list all jobs", "list_jobs")
    for name, text in (
        ("show", "show a job and its rounds"),
        ("pause", "stop a pending or running job where it stands"),
        ("resume", "let a paused job go on"),
        ("cancel", "cancel a pending or running job"),
    ):
        _add_action(actions, name, text, f"{name}_job").add_argument("job", help="id of the job")


def _add_set(parser: argparse.ArgumentParser) -> None:
    text = "change a key, such as rounds=5 or model.params.widths=[64,64]; nothing after = takes it out; again"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)


def _add_devices(commands: _Commands[argparse.ArgumentParser]) -> None:
    group = commands.add_parser("devices", help="list devices, see who is enrolled, shut one out")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    _add_action(actions, "list", "list all devices", "list_devices")
    _add_action(actions, "enrolled", "list all devices that ever enrolled", "list_identities", "trust")
    revoke = _add_action(actions, "revoke", "shut a device out, at its next message", "revoke_device", "trust")
    revoke.add_argument("device", help="id of the device")


def _add_trust(commands: _Commands[argparse.ArgumentParser]) -> None:
    actions = commands.add_parser("token", help="let devices enrol").add_subparsers(metavar="ACTION", required=True)
    create = _add_action(actions, "create", "make a token, which is shown once", "create_token", "trust")
    create.add_argument("--uses", type=int, default=1, metavar="N", help="devices that may enrol with it (1)")
    create.add_argument("--expires", default="24h", metavar="TIME", help="from now on, such as 30m, 24h or 7d (24h)")
    create.add_argument("--label", action="append", metavar="KEY=VALUE", help="label its devices, for jobs; again")
    _add_action(actions, "list", "list all tokens", "list_tokens", "trust")
    delete = _add_action(actions, "delete", "make a token good for nothing", "delete_token", "trust")
    delete.add_argument("token", help="id of the token")
    actions = commands.add_parser("key", help="let people and tools in").add_subparsers(metavar="ACTION", required=True)
    create = _add_action(actions, "create", "make an API key, which is shown once", "create_key", "trust")
    create.add_argument("name", help="whose it is, for the audit log")
    create.add_argument("--scope", default="read", choices=("read", "operate", "admin"), help="what it may do (read)")
    _add_action(actions, "list", "list all API keys", "list_keys", "trust")
    revoke = _add_action(actions, "revoke", "end an API key's life", "revoke_key", "trust")
    revoke.add_argument("key", help="id of the key")
    audit = _add_action(commands, "audit", "show who changed what", "list_audit", "trust")
    audit.add_argument("--limit", type=int, default=100, metavar="N", help="newest entries to show (100)")


def _add_models(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "list, export, compare, promote and roll back models"
    actions = commands.add_parser("models", help=text).add_subparsers(metavar="ACTION", required=True)
    _add_model_action(actions, "list", "list all models", "list_models")
    export = _add_model_action(actions, "export", "write a model version to a file", "export_model")
    export.add_argument("model", help="id of the model (its job's)")
    _add_version_choice(export).add_argument("--promoted", action="store_true", help="the promoted version")
    formats = ("safetensors", "onnx", "packed")
    text = "a checkpoint (the default), for other programs, or a bit a weight"
    export.add_argument("--format", choices=formats, default=formats[0], help=text)
    export.add_argument("--output", metavar="FILE", help="MODEL-vN.safetensors, .onnx or .bfpk when not given")
    lineage = _add_model_action(actions, "lineage", "show where a model version comes from", "show_lineage")
    lineage.add_argument("model", help="id of the model")
    _add_version_choice(lineage).add_argument("--promoted", action="store_true", help="the promoted version")
    compare = _add_model_action(actions, "compare", "show how two versions of a model differ", "compare_versions")
    compare.add_argument("model", help="id of the model")
    for name in ("a", "b"):
        compare.add_argument(name, type=int, metavar="VERSION", help="number of a version")
    promote = _add_model_action(actions, "promote", "declare a version to be the one to use", "promote_version")
    promote.add_argument("model", help="id of the model")
    _add_version_choice(promote)
    text = "go back to the version that was promoted before"
    _add_model_action(actions, "rollback", text, "roll_back").add_argument("model", help="id of the model")


def _add_version_choice(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model-version", type=int, metavar="N", help="the newest when not given")
    which.add_argument("--best", action="store_true", help="the version of the highest accuracy")
    return which


def _add_model_action(
    actions: _Commands[argparse.ArgumentParser], name: str, text: str, function: str
) -> argparse.ArgumentParser:
    return _add_action(actions, name, text, function, "models")


def _add_action(
    actions: _Commands[argparse.ArgumentParser], name: str, text: str, function: str, module: str = "remote"
) -> argparse.ArgumentParser:
    """Add an action that asks a running coordinator over HTTP."""

    def command(arguments: argparse.Namespace) -> int:
        run: _Command = getattr(importlib.import_module(f"server.cli.{module}"), function)
        return run(arguments)

    parser = actions.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.set_defaults(command=command)
    add_connection_options(parser)
    return parser


def _add_unit(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "print a systemd unit that keeps the coordinator running, and how to install it"
    commands.add_parser("unit", help=text, description=text.capitalize() + ".").set_defaults(command=_print_unit)


def _print_unit(arguments: argparse.Namespace) -> int:
    from bnncore.unit import render_unit

    del arguments
    print(render_unit("server", "bitfleet-server"), end="")
    return 0


def _add_demo(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("demo", help="a coordinator and a few devices on this machine")
    parser.set_defaults(command=_demo)
    parser.add_argument("--dataset", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--devices", type=int, default=4, metavar="N")
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--json", metavar="PATH", help="leave the results here; - = standard output")
    parser.add_argument("--stay", action="store_true", help="keep the fleet and its dashboard up until Ctrl-C")


def _demo(arguments: argparse.Namespace) -> int:
    run: _Command = importlib.import_module("server.demo.cli").run
    return run(arguments)
