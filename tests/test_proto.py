"""The wire protocol: generated modules are fresh, every part is documented, and no field can carry raw data."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from bitfleet.v1 import fleet_pb2

PROTO_ROOT = Path(__file__).resolve().parent.parent / "proto"
SOURCES = sorted(PROTO_ROOT.rglob("*.proto"))

# Lines of a .proto file that declare something a reader must be told about.
DECLARATION = re.compile(
    r"^\s*(?:(?P<kind>service|message|enum|rpc)\s+(?P<name>\w+)"
    r"|(?:repeated |optional )?[\w.]+\s+(?P<field>\w+)\s*=\s*\d+;"
    r"|(?P<value>[A-Z][A-Z0-9_]+)\s*=\s*[1-9]\d*;)"
)

# Every field of bytes or of repeated numbers, hence every field that could hold a sample, an image or a list of labels.
# A new one is a decision about privacy: it is added here by hand, with the reason.
ROOMY_FIELDS = {
    "DataSummary.input_shape": "the shape of one sample",
    "DownloadModelResponse.data": "a model's payload, from the coordinator to the device",
    "ModelStep.base_digest": "the SHA-256 of a model's payload, from the coordinator to the device",
    "ModelStep.digest": "the SHA-256 of a step's payload, from the coordinator to the device",
    "UpdateChunk.data": "an update's payload, which the coordinator decodes against the job's ModelSpec or rejects",
}


def undocumented(text: str) -> Iterator[str]:
    """Yield the declarations of a .proto file whose preceding line is no comment."""
    previous = ""
    for line in text.splitlines():
        declared = DECLARATION.match(line)
        if declared and not previous.lstrip().startswith("//"):
            yield line.strip()
        previous = line


def messages() -> list[Descriptor]:
    return list(fleet_pb2.DESCRIPTOR.message_types_by_name.values())


def test_generated_modules_are_what_the_sources_give() -> None:
    result = subprocess.run(
        [sys.executable, PROTO_ROOT / "generate.py", "--check"], capture_output=True, text=True, timeout=60, check=False
    )

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_every_declaration_is_documented(source: Path) -> None:
    assert list(undocumented(source.read_text())) == []


def test_an_undocumented_declaration_is_noticed() -> None:
    text = "// What it is.\nmessage A {\n  // Why.\n  uint32 a = 1;\n  repeated bytes b = 2;\n}\n"

    assert list(undocumented(text)) == ["repeated bytes b = 2;"]


def test_only_known_fields_are_roomy_enough_for_raw_data() -> None:
    roomy = {
        f"{message.name}.{field.name}"
        for message in messages()
        for field in message.fields
        if field.type == FieldDescriptor.TYPE_BYTES
        or (field.is_repeated and field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE))
    }

    assert roomy == set(ROOMY_FIELDS)


def test_only_class_names_are_lists_of_text() -> None:
    texts = {
        f"{message.name}.{field.name}"
        for message in messages()
        for field in message.fields
        if field.is_repeated and field.type == FieldDescriptor.TYPE_STRING
    }

    assert texts == {"DataSummary.classes", "Task.classes"}


def test_messages_do_not_nest_and_only_a_task_holds_a_list_of_messages() -> None:
    # Otherwise a list of small messages could carry what no single field can. A task goes to the device.
    nested = [message.name for message in messages() if message.nested_types]
    lists = [
        f"{message.name}.{field.name}"
        for message in messages()
        for field in message.fields
        if field.is_repeated and field.type == FieldDescriptor.TYPE_MESSAGE
    ]

    assert (nested, lists) == ([], ["Task.steps"])
