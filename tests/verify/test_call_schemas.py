"""Calls against their functions' schemas: no verdict without a schema, and nothing is fetched."""

from __future__ import annotations

from typing import Any

import pytest

from convert.conversation import ToolCall
from verify.call_schemas import are_schemas, are_valid
from verify.scoring import is_valid_json


def tool(parameters: Any, name: str = "f") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("arguments", "valid"),
    [
        ({"city": "Oslo"}, True),
        ({"city": "Oslo", "days": 2}, True),
        ({"city": "Oslo", "days": 2.0}, True),
        ({"city": "Oslo", "days": "2"}, False),
        ({"city": "Oslo", "days": 0}, False),
        ({"city": "Oslo", "days": True}, False),
        ({"days": 2}, False),
        ({"city": "Oslo", "town": "Oslo"}, False),
    ],
)
def test_arguments_are_judged_by_the_schema(arguments: dict[str, Any], valid: bool) -> None:
    assert are_valid([ToolCall("f", arguments)], [tool(CITY)]) is valid
    assert are_valid([ToolCall("f", {"city": "Oslo"}), ToolCall("f", arguments)], [tool(CITY)]) is (
        valid
    )


def test_a_function_that_is_not_offered_is_not_valid() -> None:
    assert are_valid([ToolCall("g", {})], [tool(CITY)]) is False
    assert are_valid([ToolCall("g", {})], [tool(CITY), {"name": "g"}]) is True
    assert are_valid([], [tool(CITY)]) is True


def test_types_of_another_language_are_no_schema() -> None:
    assert are_schemas([tool(CITY)])
    for kind in ("dict", "float", "any"):
        assert not are_schemas([tool(CITY), tool({"type": kind}, "g")])


def test_another_document_is_never_fetched() -> None:
    for place in ("http://127.0.0.1:9/schema.json", "#/$defs/lost", "#/allOf/x", "http://[a"):
        assert not are_schemas([tool({"properties": {"x": {"anyOf": [{"$ref": place}]}}})])
        assert not are_schemas([tool({"$ref": "#/mine", "mine": {"$ref": place}})])
    tree = {"$id": "t", "properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"$ref": "t"}}}
    assert are_schemas([tool(tree)])
    assert are_valid([ToolCall("f", {"x": {"x": {}}})], [tool(tree)])


def test_a_number_or_a_schema_that_jsonschema_gives_up_on_is_not_valid() -> None:
    tenths = tool({"properties": {"x": {"multipleOf": 0.1}}})
    assert are_schemas([tenths])
    assert not are_valid([ToolCall("f", {"x": 10**400})], [tenths])
    assert not is_valid_json("1" + "0" * 400, {"multipleOf": 0.1})
    circle = tool({"$ref": "#"})
    assert are_schemas([circle])
    assert not are_valid([ToolCall("f", {})], [circle])
