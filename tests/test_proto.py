"""The wire protocol: generated modules are fresh, every part is documented, and no field can carry raw data."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from bitfleet.v1 import fleet_pb2
from tests.patience import LIMIT_S

WIRE = Path(__file__).parent / "golden" / "wire.txt"
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
    "InputRange.low": "a job's constant for each channel, from the coordinator to the device",
    "InputRange.high": "a job's constant for each channel, from the coordinator to the device",
    "ExchangeOrder.graph_seed": "32 random bytes, from the coordinator to the device",
    "ExchangePeer.keys": "another device's public keys, from the coordinator to the device",
    "ExchangePeer.sealed": "shares of keys that another device sealed, from the coordinator to the device",
    "SecureAggregation.scales": "magnitudes common to the cohort, from the coordinator to the device",
    "DownloadModelResponse.data": "a model's payload, from the coordinator to the device",
    "ModelStep.base_digest": "the SHA-256 of a model's payload, from the coordinator to the device",
    "ModelStep.digest": "the SHA-256 of a step's payload, from the coordinator to the device",
    "UpdateChunk.data": "an update's payload, which the coordinator decodes against the job's ModelSpec or rejects; "
    "under secure aggregation keys, shares of keys, and an update that masks make indistinguishable from noise",
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
        [sys.executable, PROTO_ROOT / "generate.py", "--check"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_every_declaration_is_documented(source: Path) -> None:
    assert list(undocumented(source.read_text())) == []


def test_an_undocumented_declaration_is_noticed() -> None:
    text = "// What it is.\nmessage A {\n  // Why.\n  uint32 a = 1;\n  repeated bytes b = 2;\n}\n"

    assert list(undocumented(text)) == ["repeated bytes b = 2;"]


def wire() -> Iterator[str]:
    """Yield what devices and coordinators of other versions count on: every number, with its type and name."""
    kinds = {
        value: name.removeprefix("TYPE_").lower()
        for name, value in vars(FieldDescriptor).items()
        if "TYPE_" in name[:5]
    }
    for message in messages():
        for field in message.fields:
            named = field.message_type or field.enum_type
            kind = kinds[field.type] if named is None else named.name
            yield f"{message.name} {field.number} {'repeated ' * field.is_repeated}{kind} {field.name}"
    for enum in fleet_pb2.DESCRIPTOR.enum_types_by_name.values():
        yield from (f"{enum.name} {value.number} {value.name}" for value in enum.values)
    for service in fleet_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            yield f"{service.name} {method.name} {method.input_type.name} {method.output_type.name}"


def test_the_wire_is_only_added_to() -> None:
    known, now = WIRE.read_text().splitlines(), list(wire())

    assert set(known) <= set(now), "other versions count on these: docs/upgrades.md"
    assert set(now) <= set(known), f"add what is new to {WIRE.name}: from then on it stays"


def test_only_known_fields_are_roomy_enough_for_raw_data() -> None:
    roomy = {
        f"{message.name}.{field.name}"
        for message in messages()
        for field in message.fields
        if field.type == FieldDescriptor.TYPE_BYTES
        or (field.is_repeated and field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE))
    }

    assert roomy == set(ROOMY_FIELDS)


def test_only_names_are_lists_of_text() -> None:
    texts = {
        f"{message.name}.{field.name}"
        for message in messages()
        for field in message.fields
        if field.is_repeated and field.type == FieldDescriptor.TYPE_STRING
    }

    assert texts == {"DataSummary.classes", "Task.classes", "Task.local_tensors"}


def test_messages_do_not_nest_and_only_what_goes_to_a_device_holds_a_list_of_messages() -> None:
    # Otherwise a list of small messages could carry what no single field can.
    nested = [message.name for message in messages() if message.nested_types]
    lists = [
        f"{message.name}.{field.name}"
        for message in messages()
        for field in message.fields
        if field.is_repeated and field.type == FieldDescriptor.TYPE_MESSAGE
    ]

    assert (nested, sorted(lists)) == ([], ["ExchangeOrder.peers", "Task.steps"])
