"""Properties that every contract must have, read from the descriptors and the sources."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor
from grpc_reflection.v1alpha import reflection_pb2

import murmura.api
from murmura.api.common.v1 import errors_pb2, rules_pb2
from services.common import access

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))
READS = (
    "Get",
    "List",
    "Watch",
    "Plan",
    "Describe",
    "ReadRows",
    "Price",
    "Calibrate",
    "Check",
    "Verify",
    "Count",
    "Heartbeat",
    "LoadCheckpoint",
)
FREE = (
    "ExchangeToken",
    "Generate",
    "StreamGenerate",
    "BatchGenerate",
    "UploadAdapter",
    "SaveCheckpoint",
    "ReportFailure",
)


def modules():
    for found in pkgutil.walk_packages(murmura.api.__path__, "murmura.api."):
        if found.name.endswith("_pb2"):
            yield importlib.import_module(found.name)


def services():
    for module in modules():
        yield from module.DESCRIPTOR.services_by_name.values()


def methods():
    for service in services():
        for method in service.methods:
            yield f"/{service.full_name}/{method.name}", method


METHODS = dict(methods())


def test_every_method_is_in_the_access_table_and_nothing_else_is():
    reflection = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
    known = set(METHODS) | {f"/{reflection.full_name}/{m.name}" for m in reflection.methods}
    assert known == access.listed()


def test_a_method_that_is_not_listed_is_nobodys():
    assert access.allowed_roles("/murmura.api.ledger.v1.LedgerService/Mint") == frozenset()
    assert access.allowed_roles("/x.Y/Z") == frozenset()


def test_only_workers_read_rows_and_only_services_spend():
    assert access.allowed_roles("/murmura.api.dataset.v1.DatasetService/ReadRows") == {"worker"}
    for name in ("CreateReservation", "CommitReservation", "ReleaseReservation"):
        assert access.allowed_roles(f"/murmura.api.ledger.v1.LedgerService/{name}") == {"service"}


@pytest.mark.parametrize("path", METHODS)
def test_writes_carry_a_request_id(path):
    method = METHODS[path]
    if method.name.startswith(READS) or method.name in FREE:
        return
    field = method.input_type.fields_by_name["request_id"]
    rules = field.GetOptions().Extensions[rules_pb2.rules]
    assert rules.uuid
    assert rules.required or method.name in ("LoadAdapter", "UnloadAdapter")


@pytest.mark.parametrize("path", METHODS)
def test_lists_are_paged(path):
    method = METHODS[path]
    if method.name.startswith("List"):
        assert {"page_size", "page_token"} <= set(method.input_type.fields_by_name)
        assert "next_page_token" in method.output_type.fields_by_name


def test_every_text_that_comes_in_is_bounded():
    """A string of a request without a length or pattern is memory for whoever asks."""
    unbounded, seen = [], set()
    waiting = [method.input_type for method in METHODS.values()]
    while waiting:
        message = waiting.pop()
        if message.full_name in seen or not message.full_name.startswith("murmura."):
            continue
        seen.add(message.full_name)
        for field in message.fields:
            if field.message_type is not None:
                waiting.append(field.message_type)
            elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
                rules = field.GetOptions().Extensions[rules_pb2.rules]
                if not (rules.max_length or rules.pattern or rules.uuid):
                    unbounded.append(f"{message.full_name}.{field.name}")
    # Maps carry no rules of their own: the map field bounds their count, the message their size.
    assert [name for name in unbounded if "Entry." not in name] == []


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.name)
def test_protos_need_nothing_but_google_protobuf(path):
    for imported in re.findall(r'^import "(.+)";', path.read_text(), re.MULTILINE):
        assert imported.startswith(("google/protobuf/", "murmura/api/")), imported


def test_every_pattern_compiles():
    for module in modules():
        for message in module.DESCRIPTOR.message_types_by_name.values():
            for field in message.fields:
                re.compile(field.GetOptions().Extensions[rules_pb2.rules].pattern)


def test_every_reason_in_the_code_is_in_the_catalogue():
    reasons = {name.removeprefix("ERROR_REASON_") for name in list(errors_pb2.ErrorReason.keys())}
    source = "\n".join(path.read_text() for path in (ROOT / "services").rglob("*.py"))
    used = set(re.findall(r'StatusCode\.[A-Z_]+,\s*"([A-Z_]+)"', source)) | set(
        re.findall(r'Refusal\(\s*"([A-Z_]+)"', source)
    )
    assert len(used) > 10
    assert used <= reasons
