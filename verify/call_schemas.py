"""Are the arguments of a call what its function's schema asks for? By jsonschema, draft 2020-12.

In: calls and the functions on offer. Out: whether calls of these functions can be judged at all,
and yes or no. They cannot with a schema that is none (types of another language, say), or one that
refers to what is not in it: another document is never fetched. A function that is not on offer has
no schema, so a call of it is not valid.

jsonschema gives up with an exception on a whole number too large for a double (`multipleOf`) and on
references that go in a circle. What it cannot find valid is not valid: whether a prompt is judged
is for the schemas to say and never for a reply.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from convert.conversation import JsonObject, ToolCall


def are_schemas(tools: Sequence[JsonObject]) -> bool:
    """Whether calls can be judged: every function's `parameters` is a schema, whole in itself."""
    return all(map(is_schema, schemas_by_function(tools).values()))


def is_schema(schema: JsonObject) -> bool:
    """Whether an object is a schema, whole in itself."""
    return _is_schema(json.dumps(schema))


@lru_cache(maxsize=4096)
def _is_schema(text: str) -> bool:
    """Of a schema as JSON text: prompts share their tools, and checking one takes milliseconds."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing.exceptions import Unresolvable

    schema = json.loads(text)
    try:
        Draft202012Validator.check_schema(schema)
        _resolve(schema)
    except (SchemaError, Unresolvable, ValueError):  # ValueError: an address that is none
        return False
    return True


def _resolve(schema: JsonObject) -> None:
    """Look up every reference of a schema, and those of what they lead to. Raises Unresolvable."""
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    whole = DRAFT202012.create_resource(schema)
    waiting = [(schema, Registry().with_resource("", whole).resolver())]
    seen: set[int] = set()
    while waiting:
        contents, resolver = waiting.pop()
        if id(contents) in seen or not isinstance(contents, dict):
            continue
        seen.add(id(contents))
        resource = DRAFT202012.create_resource(contents)
        resolver = resolver.in_subresource(resource)
        waiting += [(inner.contents, resolver) for inner in resource.subresources()]
        for key in ("$ref", "$dynamicRef"):
            if key in contents:
                found = resolver.lookup(contents[key])
                waiting.append((found.contents, found.resolver))


def are_valid(calls: Sequence[ToolCall], tools: Sequence[JsonObject]) -> bool:
    """Whether every call is of a function on offer and its arguments are valid; of `are_schemas`
    only."""
    schemas = schemas_by_function(tools)
    return all(
        call.name in schemas and is_valid(call.arguments, schemas[call.name]) for call in calls
    )


def is_valid(value: Any, schema: JsonObject) -> bool:
    """Whether a value is found valid for a schema, as far as the schema's own text says."""
    from jsonschema import Draft202012Validator
    from referencing import Registry

    nothing_else: Registry[JsonObject] = Registry()
    try:
        return bool(Draft202012Validator(schema, registry=nothing_else).is_valid(value))
    except (OverflowError, RecursionError):
        return False


def schemas_by_function(tools: Sequence[JsonObject]) -> dict[str, JsonObject]:
    """The schema of every function on offer; of two with one name, the first."""
    functions = [tool.get("function", tool) for tool in tools]
    return {f["name"]: f.get("parameters", {}) for f in reversed(functions)}
