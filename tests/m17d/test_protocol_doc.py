"""The protocol document, executed: its headings are the operations, its examples decode, its tables name every field."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from m17d.envelopes import REPLIES, REQUESTS, Claimed, ReplyEnvelope, RequestEnvelope
from m17d.outcomes import EXIT_CODES
from m17d.protocol import Request

TEXT = (Path(__file__).resolve().parents[2] / "protocol.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```json (request|reply) (\w+)\n(.*?)\n```$", TEXT, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """The text under a heading of the second level."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"protocol.md has no section {title}"
    return found.group(1)


def entry(title: str, name: str) -> str:
    """The text under a heading of the third level inside a section."""
    found = re.search(rf"^### {name}\n(.*?)(?=^### |\Z)", section(title), re.MULTILINE | re.DOTALL)
    assert found, f"section {title} has no entry {name}"
    return found.group(1)


def fields_in(text: str) -> set[str]:
    """The fields that the tables of a text name."""
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", text, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_headings_are_the_operations_in_their_order() -> None:
    """One heading per operation, none for an operation that does not exist."""
    assert re.findall(r"^### (\w+)$", section("Requests"), re.MULTILINE) == list(REQUESTS)


@pytest.mark.parametrize(("side", "name", "body"), EXAMPLES, ids=[f"{side} {name}" for side, name, _ in EXAMPLES])
def test_example_decodes_and_encodes_to_itself(side: str, name: str, body: str) -> None:
    """An example is a valid body that loses nothing on the way through the struct, in JSON and in msgpack."""
    kind: type = REQUESTS[name] if side == "request" else REPLIES[name]
    decoded = msgspec.json.decode(body, type=Request if side == "request" else kind)
    assert type(decoded) is kind
    assert json.loads(msgspec.json.encode(decoded)) == json.loads(body)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(decoded), type=kind) == decoded


def test_every_operation_has_an_example_each_way() -> None:
    """No operation is only described; credit alone has no reply."""
    shown = {(side, name) for side, name, _ in EXAMPLES}
    assert {name for side, name in shown if side == "request"} == set(REQUESTS)
    assert {name for side, name in shown if side == "reply"} == set(REPLIES) - {"credit"}


@pytest.mark.parametrize("name", REQUESTS)
def test_tables_name_every_field_of_the_request(name: str) -> None:
    """A field that was added to a struct is missing from its table until somebody writes it down."""
    assert set(REQUESTS[name].__struct_fields__) <= fields_in(entry("Requests", name))


def test_tables_name_every_field_of_the_replies() -> None:
    """Every reply's fields are in the document, beside the request that is first answered with it."""
    named: dict[type, set[str]] = {}
    for name, kind in REPLIES.items():
        title = "Requests" if name in REQUESTS else "Frames that any request may get"
        named.setdefault(kind, set()).update(fields_in(entry(title, name)))
    for kind, fields in named.items():
        assert set(kind.__struct_fields__) <= fields, kind.__name__


def test_tables_name_every_field_of_the_envelopes() -> None:
    """The envelopes are described whole."""
    transport = section("Transport")
    assert set(RequestEnvelope.__struct_fields__) | set(ReplyEnvelope.__struct_fields__) <= fields_in(transport)
    assert all(f"`{name}`" in transport for name in Claimed.__struct_fields__)


def test_failure_codes_and_exit_codes_are_the_table() -> None:
    """The document's table is the one that m17ctl exits with."""
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", section("Failure codes"), re.MULTILINE)
    assert {code: int(exit_code) for code, exit_code in rows} == EXIT_CODES


def test_failures_of_a_request_are_codes_that_exist() -> None:
    """No request lists a failure that the table does not explain."""
    for line in re.findall(r"^Failures: (.*)$", TEXT, re.MULTILINE):
        assert set(re.findall(r"`(\w+)`", line)) <= set(EXIT_CODES)
