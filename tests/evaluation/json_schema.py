"""The JSON schema of what `as_json` makes of dataclasses."""

import dataclasses
from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

Schema = dict[str, Any]

SCALARS = {bool: "boolean", int: "integer", float: "number", str: "string", NoneType: "null"}


def json_schema(kind: type, **top: Any) -> Schema:
    """Return the schema (draft 2020-12) of the JSON that `as_json` makes of a dataclass.

    Keys are closed. A field is required unless its default is None.

    Args:
        top: Keywords for the top of the schema, such as its title.
    """
    definitions: dict[str, Schema] = {}
    own = _schema(kind, definitions)
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return dialect | top | own | {"$defs": dict(sorted(definitions.items()))}


def _schema(kind: Any, definitions: dict[str, Schema]) -> Schema:
    """Return the schema of a type, having put those of the dataclasses in it into definitions."""
    if kind is Any:
        return {}
    if kind in SCALARS:
        return {"type": SCALARS[kind]}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return {"enum": [str(member) for member in kind]}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = _object(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if isinstance(kind, type) and issubclass(kind, tuple):  # a NamedTuple of one type
        hints = list(get_type_hints(kind).values())
        size = {"minItems": len(hints), "maxItems": len(hints)}
        return {"type": "array", "items": _schema(hints[0], definitions), **size}
    return _generic(get_origin(kind), get_args(kind), definitions)


def _generic(origin: Any, arguments: tuple[Any, ...], definitions: dict[str, Schema]) -> Schema:
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, UnionType):
        return {"anyOf": [_schema(one, definitions) for one in arguments]}
    if origin is Annotated:
        schema, limits = _schema(arguments[0], definitions), dict(arguments[1:])
        return schema | ({"items": schema["items"] | limits} if "items" in schema else limits)
    inner = _schema(arguments[-1], definitions)
    if issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": inner}
    if issubclass(origin, Sequence):
        return {"type": "array", "items": inner}
    raise TypeError(f"{origin} has no JSON schema here.")


def _object(kind: Any, definitions: dict[str, Schema]) -> Schema:
    hints = get_type_hints(kind, include_extras=True)
    properties: dict[str, Schema] = {}
    required: list[str] = []
    others: Schema | bool = False
    for field in dataclasses.fields(kind):
        hint, optional = hints[field.name], field.default is None
        if optional:  # X | None, without the None
            (hint,) = (one for one in get_args(hint) if one is not NoneType)
        if not field.metadata.get("flat"):
            name = field.name.rstrip("_")
            properties[name] = _schema(hint, definitions)
            required += [name] * (not optional)
        elif dataclasses.is_dataclass(hint):
            inner = _object(hint, definitions)
            properties |= inner["properties"]
            required += [] if optional else inner["required"]
        else:
            others = _schema(get_args(hint)[1], definitions)
    return {
        "description": (kind.__doc__ or "").partition("\n")[0],
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": others,
    }
