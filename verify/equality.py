"""How equal two sets of calls are: the strictest of five tiers in which they are the same.

In: the calls that are due, or the reply of the reference, and those of the artifact. Out: a `Tier`,
or None where they differ in all of them.

    byte            everything between the tags is the same text (only between two replies)
    json            the same functions, arguments equal as JSON: 1 and 1.0 are two values
    numeric         numbers are equal by value: 1, 1.0 and 1e0 are one; true is no number
    schema default  the same after every optional argument that was left out is written out with the
                    `default` its schema states
    bfcl            the same by the rules of the Berkeley leaderboard (`bfcl_scoring.py`), the first
                    calls taken as the answer, defaults written out: texts in any case and without
                    spaces and punctuation, a whole number for a float; needs the schema's types

Calls are sets in every tier: any order, each as often as in the other, matched optimally where a
call could be several of the others. Which tier a gate accepts is its own word (`equality`, json
unless it says otherwise); a looser one is reported, so that a reader sees whether `2` became `3` or
`2.0`. Where an answer lists accepted values there are two tiers, json and bfcl.

Of two replies there is more to compare than calls. What was meant as a call and cannot be read as
one, and reasoning that never comes to an answer, leave no calls on either side: such replies are
equal only where the same is written, and otherwise in no tier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

from convert.conversation import AcceptedCall, JsonObject, ToolCall
from verify.bfcl_scoring import matches_by_bfcl, matches_exactly
from verify.call_schemas import schemas_by_function
from verify.tool_calls import Reply, canonical_json, compare_calls

Due = tuple[ToolCall, ...] | tuple[AcceptedCall, ...]
Tools = Sequence[JsonObject]


class Tier(StrEnum):
    """How two sets of calls are equal, the strictest first."""

    BYTE = "byte"
    JSON = "json"
    NUMERIC = "numeric"
    DEFAULT = "schema default"
    BFCL = "bfcl"


_ORDER = tuple(Tier)


def within(found: Tier | None, allowed: Tier) -> bool:
    """Whether calls that are equal in the tier `found` are equal where `allowed` is asked."""
    return found is not None and _ORDER.index(found) <= _ORDER.index(allowed)


def tier_of_calls(due: Due, calls: Sequence[ToolCall], tools: Tools = ()) -> Tier | None:
    """The strictest tier, from json on, in which `calls` are those that are due and no others."""
    accepted = [call for call in due if isinstance(call, AcceptedCall)]
    if accepted:
        tiers: dict[Tier, Callable[[], bool]] = {
            Tier.JSON: lambda: matches_exactly(accepted, calls),
            Tier.BFCL: lambda: matches_by_bfcl(accepted, calls),
        }
    else:
        exact = [call for call in due if isinstance(call, ToolCall)]
        schemas = schemas_by_function(tools)
        tiers = {
            Tier.JSON: lambda: compare_calls(exact, calls),
            Tier.NUMERIC: lambda: _counted(exact) == _counted(calls),
            Tier.DEFAULT: lambda: (
                _counted(_written_out(exact, schemas)) == _counted(_written_out(calls, schemas))
            ),
            Tier.BFCL: lambda: _equal_by_bfcl(exact, calls, schemas),
        }
    if Counter(call.name for call in due) != Counter(call.name for call in calls):
        return None
    return next((tier for tier, equal in tiers.items() if equal()), None)


def tier_of_replies(ours: Reply, theirs: Reply, tools: Tools = ()) -> Tier | None:
    """The strictest tier in which two replies make the same calls and write them equally well."""
    if ours.unfinished or theirs.unfinished:
        same = ours.unfinished is theirs.unfinished and ours.reasoning == theirs.reasoning
        return Tier.BYTE if same else None
    if bool(ours.malformed) != bool(theirs.malformed):
        return None
    if _loses_calls(ours) or _loses_calls(theirs):
        return Tier.BYTE if _unread(ours) == _unread(theirs) else None
    recovered = tier_of_calls(ours.recovered, theirs.recovered, tools)
    valid = tier_of_calls(ours.calls, theirs.calls, tools)
    if valid is None or recovered is None:
        return None
    if _written(ours) == _written(theirs):
        return Tier.BYTE
    return max(valid, recovered, key=_ORDER.index)


def _loses_calls(reply: Reply) -> bool:
    """Whether something in it was meant as a call and is neither valid nor recovered."""
    return any(block.lost for block in reply.blocks) or (reply.malformed != () and not reply.blocks)


def _unread(reply: Reply) -> tuple[object, ...]:
    """All that can be compared where calls cannot: what is wrong, and what is written."""
    around = () if reply.blocks else (reply.reasoning, reply.text)
    return (reply.malformed, _written(reply), around)


def _written(reply: Reply) -> list[tuple[str, bool]]:
    return [(block.body, block.closed) for block in reply.blocks]


def _counted(calls: Sequence[ToolCall]) -> Counter[tuple[str, str]]:
    return Counter((call.name, canonical_json(_by_value(call.arguments))) for call in calls)


def _by_value(value: Any) -> Any:
    """The same with every whole number written as an integer."""
    if isinstance(value, dict):
        return {key: _by_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_by_value(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _written_out(calls: Sequence[ToolCall], schemas: dict[str, JsonObject]) -> list[ToolCall]:
    return [ToolCall(c.name, _with_defaults(c.arguments, schemas.get(c.name))) for c in calls]


def _with_defaults(value: Any, schema: Any) -> Any:
    """An object, and those inside it, with the stated defaults of what may be left out and was."""
    if not (isinstance(value, dict) and isinstance(schema, dict)):
        return value
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return value
    required = schema.get("required")
    required = required if isinstance(required, list) else []
    stated = {
        name: inner["default"]
        for name, inner in properties.items()
        if isinstance(inner, dict) and "default" in inner and name not in required
    }
    whole = {**stated, **value}
    return {name: _with_defaults(item, properties.get(name)) for name, item in whole.items()}


def _equal_by_bfcl(
    due: Sequence[ToolCall], calls: Sequence[ToolCall], schemas: dict[str, JsonObject]
) -> bool:
    due, calls = _written_out(due, schemas), _written_out(calls, schemas)
    if any("" in call.arguments.values() for call in (*due, *calls)):
        return False  # the leaderboard's mark for "may be left out" is no value
    accepted = [
        AcceptedCall(
            call.name,
            {name: (_option(value),) for name, value in call.arguments.items()},
            schemas.get(call.name, {}),
        )
        for call in due
    ]
    try:
        return matches_by_bfcl(accepted, calls)
    except (KeyError, TypeError, AttributeError):  # a schema of types that the leaderboard lacks
        return False


def _option(value: Any) -> Any:
    """A value as the leaderboard writes an accepted one: an object lists values for each key."""
    if isinstance(value, dict):
        return {key: [item] for key, item in value.items()}
    if isinstance(value, list):
        return [_option(item) if isinstance(item, dict) else item for item in value]
    return value
