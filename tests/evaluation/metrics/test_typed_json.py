from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from jsonschema import Draft202012Validator

from rlhf_recipes.evaluation.metrics.statistics import Interval, ShareInterval
from rlhf_recipes.evaluation.metrics.typed_json import FLAT, Count, Share, as_json
from tests.evaluation.json_schema import json_schema


@dataclass(frozen=True)
class Checked:
    p: Share
    p_holm: Share | None


@dataclass(frozen=True)
class Measured:
    """What was measured."""

    from_: float
    ci: ShareInterval
    kind: Literal["rate", "mean"]
    names: Sequence[str]
    facts: Mapping[str, Any]
    n: Count
    missing: float | None
    by_metric: Mapping[str, Interval] = field(metadata=FLAT)
    reason: str | None = None
    test: Checked | None = field(default=None, metadata=FLAT)


FULL = Measured(
    from_=0.5,
    ci=Interval(0.25, 0.75),
    kind="rate",
    names=("a", "b"),
    facts={"any": [1, {"of": "these"}]},
    n=3,
    missing=None,
    by_metric={"gold": Interval(-1.0, 2.0)},
    reason="why",
    test=Checked(0.01, None),
)
JSON = {
    "from": 0.5,
    "ci": [0.25, 0.75],
    "kind": "rate",
    "names": ["a", "b"],
    "facts": {"any": [1, {"of": "these"}]},
    "n": 3,
    "missing": None,
    "gold": [-1.0, 2.0],
    "reason": "why",
    "p": 0.01,
    "p_holm": None,
}
OPTIONAL = {"reason", "p", "p_holm"}


def test_a_dataclass_is_an_object_with_the_entries_of_its_flat_fields():
    assert as_json(FULL) == JSON


def test_only_a_field_whose_default_is_none_is_left_out():
    bare = Measured(0.5, Interval(0, 1), "mean", [], {}, 0, None, {})
    assert set(as_json(bare)) == set(JSON) - OPTIONAL - {"gold"}


@pytest.fixture(scope="module")
def validator():
    schema = json_schema(Measured, title="measured")
    Draft202012Validator.check_schema(schema)
    assert schema["title"] == "measured"
    assert schema["$defs"]["Measured"]["description"] == "What was measured."
    return Draft202012Validator(schema)


def test_the_json_follows_the_schema_with_and_without_what_is_optional(validator):
    assert validator.is_valid(JSON)
    assert validator.is_valid({key: JSON[key] for key in JSON if key not in OPTIONAL})


@pytest.mark.parametrize("key", sorted(set(JSON) - OPTIONAL - {"gold"}))
def test_a_field_without_a_default_is_required(validator, key):
    assert not validator.is_valid({other: JSON[other] for other in JSON if other != key})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("from", None),
        ("from", "0.5"),
        ("ci", [0.25]),
        ("ci", [0.25, 1.5]),
        ("kind", "median"),
        ("names", [1]),
        ("facts", []),
        ("n", -1),
        ("n", 0.5),
        ("missing", "x"),
        ("gold", 1.0),
        ("other", "no interval"),
        ("reason", None),
        ("p", 1.5),
        ("p_holm", -0.1),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_noticed(validator, key, value):
    assert not validator.is_valid(JSON | {key: value})


def test_a_type_that_json_does_not_have_is_refused():
    @dataclass(frozen=True)
    class Odd:
        values: set[int]

    with pytest.raises(TypeError, match="set'> has no JSON schema"):
        json_schema(Odd)
