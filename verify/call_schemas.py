"""Are the arguments of a call what its function's schema asks for? By jsonschema, draft 2020-12.

In: calls and the functions on offer. Out: yes or no, or None where nothing can be said: a schema
that is none (types of another language, say), or one that refers to another document, which is
never fetched. A function that is not on offer has no schema, so a call of it is not valid.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

from convert.conversation import JsonObject, ToolCall


def are_schemas(tools: Sequence[JsonObject]) -> bool:
    """Whether calls can be judged: every function's `parameters` is a schema."""
    return all(_is_schema(json.dumps(s)) for s in schemas_by_function(tools).values())


@lru_cache(maxsize=4096)
def _is_schema(text: str) -> bool:
    """Of a schema as JSON text: prompts share their tools, and checking one takes milliseconds."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(json.loads(text))
    except SchemaError:
        return False
    return True


def are_valid(calls: Sequence[ToolCall], tools: Sequence[JsonObject]) -> bool | None:
    """Whether every call is of a function on offer and its arguments are valid."""
    from jsonschema import Draft202012Validator
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    schemas = schemas_by_function(tools)
    nothing_else: Registry[JsonObject] = Registry()
    try:
        return all(
            call.name in schemas
            and Draft202012Validator(schemas[call.name], registry=nothing_else).is_valid(
                call.arguments
            )
            for call in calls
        )
    except Unresolvable:
        return None


def schemas_by_function(tools: Sequence[JsonObject]) -> dict[str, JsonObject]:
    """The schema of every function on offer; of two with one name, the first."""
    functions = [tool.get("function", tool) for tool in tools]
    return {f["name"]: f.get("parameters", {}) for f in reversed(functions)}
