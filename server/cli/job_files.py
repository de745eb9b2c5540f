"""The commands around job files: create, clone, compare, and the templates."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bnncore.errors import ConfigurationError
from server.cli.asking import ask, connect, print_table, show
from server.client.connection import RequestError, path_of
from server.job_files import differences, list_templates, parse_changes, read_job_file, read_template, write_yaml
from server.jobs import JobConfig, parse_job

_SUFFIXES = (".json", ".toml", ".yaml", ".yml")


def create_job(arguments: argparse.Namespace) -> int:
    """Create a job from a file; it is validated here first, so that mistakes are told with the file's name."""
    changes = parse_changes(arguments.set)
    file = arguments.file or arguments.job_file
    if sum(source is not None for source in (arguments.file, arguments.job_file, arguments.template)) != 1:
        raise ConfigurationError("exactly one of FILE, -f FILE and --template NAME says what job to create")
    source = read_template(arguments.template) if file is None else read_job_file(Path(file))
    description = source.validate(changes).model_dump(mode="json")
    if arguments.start_checkpoint is not None:
        description["start"] = {"checkpoint": str(Path(arguments.start_checkpoint).resolve())}
    with connect(arguments) as connection:
        job = connection.make("/jobs", description)
    return show(arguments, job, lambda: print(f"created job {job['id']}{_when(job)}"))


def clone_job(arguments: argparse.Namespace) -> int:
    """Create a job like another one."""
    changes = parse_changes(arguments.set)
    with connect(arguments) as connection:
        job = connection.make(path_of("jobs", arguments.job, "clone"), {"set": changes})
    return show(arguments, job, lambda: print(f"created job {job['id']}{_when(job)}"))


def print_job_file(arguments: argparse.Namespace) -> int:
    """Print a job as a file that creates the same again."""
    written = ask(arguments, "GET", path_of("jobs", arguments.job, "file"))
    return show(arguments, written, lambda: print(write_yaml(written), end=""))


def show_templates(arguments: argparse.Namespace) -> int:
    """List the templates, or print one."""
    if arguments.name is not None:
        template = read_template(arguments.name)
        return show(arguments, template.value, lambda: sys.stdout.write(template.text))
    templates = list_templates()
    return show(
        arguments, templates, lambda: print_table(["template", "what for"], [[*row] for row in templates.items()])
    )


def diff_jobs(arguments: argparse.Namespace) -> int:
    """Show in what two jobs differ; exit code 1 when they do."""
    first, second = (_job_named(arguments, name) for name in (arguments.first, arguments.second))
    found = differences(first, second)
    told = [{"key": item.key, "first": item.first, "second": item.second} for item in found]

    def print_differences() -> None:
        rows = [[item.key, *(_told(value) for value in (item.first, item.second))] for item in found]
        if rows:
            print_table(["key", arguments.first, arguments.second], rows)
        else:
            print(f"{arguments.first} and {arguments.second} are the same job")

    show(arguments, told, print_differences)
    return 1 if found else 0


def _job_named(arguments: argparse.Namespace, name: str) -> JobConfig:
    """Read a job file, or ask for the job of this id."""
    path = Path(name)
    if path.suffix.lower() in _SUFFIXES or path.is_file():
        return read_job_file(path).validate()
    if name in list_templates():
        return read_template(name).validate()
    try:
        return parse_job(ask(arguments, "GET", path_of("jobs", name))["config"])
    except RequestError as error:
        raise RequestError(f"{name!r} is no file, and no job here: {error}", error.status) from error


def _when(job: dict[str, Any]) -> str:
    return "" if job["starts_at"] is None else f", which begins at {job['starts_at']}"


def _told(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)
