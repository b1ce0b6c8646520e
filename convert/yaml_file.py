"""YAML that a person wrote, checked against a pydantic model: every mistake with its line.

In: a path and the model. Out: the model's instance, or an InputError that names the file, the line,
the key and, for a key that is nearly right, the key that was probably meant. Unknown keys are
mistakes (the models forbid extras). YAML tags that build Python objects are never followed.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from convert.errors import InputError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    T = TypeVar("T", bound=BaseModel)


def read_yaml(path: Path, kind: type[T]) -> T:
    """The file at `path` as a `kind`."""
    import yaml
    from pydantic import ValidationError

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path}: cannot be read: {reason}") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise InputError(f"{path}{line}: not YAML: {problem}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected `key: value` lines, found {type(data).__name__}")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise InputError(_first_mistake(path, root, kind, error)) from error


def _first_mistake(path: Path, root: Any, kind: type[BaseModel], error: ValidationError) -> str:
    """The first mistake, unknown keys before others, as `path:line: key: what`."""
    unknown = "extra_forbidden"  # before what is missing: it is often the same key, misspelt
    mistakes = sorted(error.errors(), key=lambda m: (m["type"] != unknown, _line(root, m["loc"])))
    first = mistakes[0]
    key = ".".join(str(part) for part in first["loc"] if part != "[key]") or "the file"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == unknown:
        known = _keys(kind, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        message = "unknown key" + (f"; did you mean {near[0]!r}?" if near else "")
        message += f" (known: {', '.join(known)})"
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return f"{path}:{_line(root, first['loc'])}: {key}: {message}{more}"


def _keys(kind: type[BaseModel], where: tuple[int | str, ...]) -> list[str]:
    """The keys that the model allows at `where`."""
    schema = kind.model_json_schema()
    definitions, node = schema.get("$defs", {}), schema
    for part in where:
        node = _resolved(node, definitions)
        inside = (
            node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
        )
        node = inside if isinstance(inside, dict) else {}
    return list(_resolved(node, definitions).get("properties", {}))


def _resolved(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    for option in (node, *node.get("anyOf", ())):
        if "$ref" in option:
            found: dict[str, Any] = definitions[option["$ref"].rpartition("/")[2]]
            return found
    return node


def _line(node: Any, where: tuple[int | str, ...]) -> int:
    """The line (from 1) of the node at `where`, or of the last one on the way there."""
    line = node.start_mark.line + 1
    for part in where:
        children = node.value if isinstance(node.value, list) else []
        if isinstance(part, int) and part < len(children) and not isinstance(children[0], tuple):
            node = children[part]
        else:
            pairs = [pair for pair in children if isinstance(pair, tuple)]
            found = [pair for pair in pairs if pair[0].value == part]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
            continue
        line = node.start_mark.line + 1
    return int(line)
