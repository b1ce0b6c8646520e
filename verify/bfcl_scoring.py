"""What counts as the right calls where an answer lists accepted values: exactly, and by BFCL.

In: `AcceptedCall`s and the calls a reply makes. Out: yes or no, in two tiers:

    exactly   every argument is one of the accepted values as JSON, number types kept; one that may
              be left out ("" among its values) is left out or one of the others; no other argument
    by BFCL   the leaderboard's rules (bfcl_eval/eval_checker/ast_eval/ast_checker.py, written down
              here anew): an argument must have the type that its schema states, a whole number for
              a float apart, items of a list the type of `items`, or else the type of the first
              accepted value; all required parameters are there, as are all not marked "" and none
              that the answer does not know; and then values are compared, texts in any case,
              without spaces and , . / - _ * ^ and with one kind of quote

The second tier is for comparing with published scores and not for fidelity: "1.5" equals "15" and
"-5" equals "5" in it. Two quirks of it are kept: an empty list passes where "" is accepted, and a
whole number is no item for a list of floats.

One thing is better here than there: parallel calls are matched optimally (scipy), where BFCL takes
for each answer the first call that fits it and can so run out of calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from convert.conversation import AcceptedCall, JsonObject, ToolCall
from verify.tool_calls import canonical_json

OPTIONAL = ""
"""Among the accepted values: the argument may be left out."""
Fits = Callable[[AcceptedCall, ToolCall], bool]
_PYTHON = {
    "string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict,
}  # fmt: skip
_IGNORED = re.compile(r"[ ,./\-_*^]")


def matches_exactly(accepted: Sequence[AcceptedCall], calls: Sequence[ToolCall]) -> bool:
    """Whether the calls are the accepted ones, in any order, by the strict tier."""
    return _match(accepted, calls, fits_exactly)


def matches_by_bfcl(accepted: Sequence[AcceptedCall], calls: Sequence[ToolCall]) -> bool:
    """Whether the calls are the accepted ones, in any order, by BFCL's rules."""
    return _match(accepted, calls, fits_by_bfcl)


def _match(accepted: Sequence[AcceptedCall], calls: Sequence[ToolCall], fits: Fits) -> bool:
    if len(accepted) != len(calls):
        return False
    if not calls:
        return True
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    edges = [[int(fits(wanted, call)) for call in calls] for wanted in accepted]
    return bool((maximum_bipartite_matching(csr_matrix(edges)) >= 0).all())


def fits_exactly(wanted: AcceptedCall, call: ToolCall) -> bool:
    """Whether one call is the accepted one by the strict tier."""
    if call.name != wanted.name or not _all_there(wanted, call):
        return False
    return all(
        any(_exact(value, option, top=True) for option in wanted.arguments[name])
        for name, value in call.arguments.items()
    )


def _exact(value: Any, option: Any, *, top: bool = False) -> bool:
    """Equal as JSON, where objects inside an option list the accepted values of each of their keys.

    The marker for "may be left out" is no value.
    """
    if isinstance(option, dict):
        return (
            isinstance(value, dict)
            and value.keys() <= option.keys()
            and all(any(_exact(v, o, top=True) for o in option[k]) for k, v in value.items())
            and all(k in value or OPTIONAL in options for k, options in option.items())
        )
    if isinstance(option, list) and any(isinstance(item, dict) for item in option):
        return (
            isinstance(value, list)
            and len(value) == len(option)
            and all(_exact(v, o) for v, o in zip(value, option, strict=True))
        )
    if top and option == OPTIONAL:
        return False
    return canonical_json(value) == canonical_json(option)


def fits_by_bfcl(wanted: AcceptedCall, call: ToolCall) -> bool:
    """Whether one call is the accepted one by BFCL's rules."""
    properties = wanted.parameters.get("properties", {})
    if call.name != wanted.name or not _all_there(wanted, call):
        return False
    return all(
        name in properties and _argument(value, wanted.arguments[name], properties[name])
        for name, value in call.arguments.items()
    )


def _all_there(wanted: AcceptedCall, call: ToolCall) -> bool:
    """No argument that the answer does not know, and all that may not be left out."""
    required = wanted.parameters.get("required", ())
    return (
        call.arguments.keys() <= wanted.arguments.keys()
        and all(name in call.arguments for name in required)
        and all(n in call.arguments or OPTIONAL in o for n, o in wanted.arguments.items())
    )


def _argument(value: Any, options: Sequence[Any], stated: JsonObject) -> bool:
    """Whether one argument is right, by its stated type if it has that, else by the answer's."""
    kind = _PYTHON[stated["type"]]
    inner = _PYTHON[stated["items"]["type"]] if kind is list and "items" in stated else None
    if kind is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:  # no double, and so none that was accepted
            return False
    of_options = _first_type(options)
    if type(value) is kind and not _items_fit(value, options, inner):
        return False
    if type(value) is kind and of_options in (None, kind):
        return _among(value, options, of_objects=inner is dict)
    return type(value) in (kind, of_options) and value in options


def _among(value: Any, options: Sequence[Any], *, of_objects: bool) -> bool:
    if isinstance(value, dict):
        return any(_object(value, option) for option in options)
    if isinstance(value, list) and of_objects:
        return any(_objects(value, option) for option in options)
    if isinstance(value, list):  # the marker is a list without items here
        options = [list(o) if isinstance(o, str) else o for o in options]
    return _plain(value) in [_plain(option) for option in options]


def _first_type(options: Sequence[Any]) -> type | None:
    """The type of the first accepted value; None if there is nothing but the marker."""
    return next((type(option) for option in options if option != OPTIONAL), None)


def _items_fit(value: Any, options: Sequence[Any], inner: type | None) -> bool:
    """Whether a list's items have the stated type, or that of an accepted list's first item."""
    if inner is None:
        return True
    return any(
        not isinstance(option, list)
        or all(type(item) is inner or type(item) is _first_type(option) for item in value)
        for option in options
    )


def _object(value: JsonObject, option: Any) -> bool:
    """An object's keys, each with a list of accepted values; texts in lists stay as they are."""
    return (
        isinstance(value, dict)
        and isinstance(option, dict)
        and all(k in option and _text(v) in map(_text, option[k]) for k, v in value.items())
        and all(k in value or OPTIONAL in options for k, options in option.items())
    )


def _objects(value: Sequence[Any], option: Any) -> bool:
    """A list of objects, in order; the marker is a list without items here too."""
    return len(value) == len(option) and all(map(_object, value, option))


def _plain(value: Any) -> Any:
    return [_text(item) for item in value] if isinstance(value, list) else _text(value)


def _text(value: Any) -> Any:
    """A text as BFCL compares it; anything else unchanged."""
    if not isinstance(value, str):
        return value
    return _IGNORED.sub("", value).lower().replace("'", '"')
