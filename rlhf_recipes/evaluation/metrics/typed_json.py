"""The JSON of results from their dataclasses."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

# Limits of a number, or of the numbers in a sequence, by JSON schema's names.
Share = Annotated[float, ("minimum", 0), ("maximum", 1)]
"""A fraction, rate or probability."""
Count = Annotated[int, ("minimum", 0)]
AtLeast0 = Annotated[float, ("minimum", 0)]

FLAT = {"flat": True}
"""Metadata of a field whose entries stand in the JSON beside the other fields of its object."""


def as_json(value: object) -> Any:
    """Return a result as JSON has it: objects for dataclasses and mappings, lists for sequences.

    A field with the default None is left out where it is None. The entries of a `FLAT` field stand
    beside the other fields. A name that Python reserves, `from_`, loses its underscore.
    """
    if isinstance(value, Mapping):
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(inner) for inner in value]
    if isinstance(value, type) or not dataclasses.is_dataclass(value):
        return value
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if inner is None and field.default is None:
            continue
        content = as_json(inner)
        found |= content if field.metadata.get("flat") else {field.name.rstrip("_"): content}
    return found
