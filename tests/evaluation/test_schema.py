"""evaluation_results.json against its JSON schema, and the schema against types and documentation.

`python -m tests.evaluation.test_schema` writes docs/evaluation_results.schema.json from the types.
"""

import copy
import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from rlhf_recipes.evaluation.analysis import analyze
from rlhf_recipes.evaluation.results import EvaluationResults
from tests.evaluation.json_schema import json_schema

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCHEMA = DOCS / "evaluation_results.schema.json"
ABOUT = "Every key is defined in evaluation.md. Keys are closed; made from the types."


def schema_of_the_types():
    return json_schema(EvaluationResults, title="evaluation_results.json", description=ABOUT)


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.fixture(scope="module")
def bare(tmp_path_factory, records_of, collection_in):
    """No gold, no control, no curves, no reward model, nothing but ties."""
    models = {name: records_of(name, (0, 0, 0), 6, 1, gold=False) for name in ("base", "mine")}
    for record in models["base"] + models["mine"]:
        record |= {"reward": 0.0, "response": "", "n_tokens": 0, "kl": 0.0, "kl_k1": 0.0}
        del record["kl_curve"], record["entropy"]
    output = collection_in(tmp_path_factory.mktemp("bare") / "out", models)
    analyze(output)
    return output


def test_the_schema_is_that_of_the_types(validator):
    assert validator.schema == schema_of_the_types()


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def read(output):
    text = (output / "results" / "evaluation_results.json").read_text()
    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("run", ["evaluated", "searched", "bare"])
def test_results_follow_the_schema_and_hold_no_nan(run, request, validator):
    errors = list(validator.iter_errors(read(request.getfixturevalue(run))))
    assert [(list(error.path), error.message) for error in errors] == []


def test_the_schema_notices_what_is_missing_unknown_or_out_of_range(evaluated, validator):
    results = read(evaluated)
    for change in (
        lambda r: r["models"]["ppo"]["kl"].pop("ci"),
        lambda r: r["models"]["ppo"]["reward"].update(median=1.0),
        lambda r: r["models"]["ppo"]["win_rate"]["gold"].update(value=1.2),
        lambda r: r["models"]["ppo"].update(verdict="slightly better"),
    ):
        broken = copy.deepcopy(results)
        change(broken)
        assert not validator.is_valid(broken)


def keys_of(schema):
    """All names of properties, wherever they are in the schema."""
    if isinstance(schema, list):
        return set().union(*map(keys_of, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    own = set(schema["properties"]) if isinstance(schema.get("properties"), dict) else set()
    return own.union(*map(keys_of, schema.values()))


def test_every_reported_quantity_is_defined_in_the_documentation(validator):
    text = (DOCS / "evaluation.md").read_text()
    named = {part for code in re.findall(r"`([^`]+)`", text) for part in re.split(r"[^\w]+", code)}
    assert keys_of(validator.schema) - named == set()


def test_every_detector_and_check_is_defined_in_the_documentation(evaluated):
    text = (DOCS / "evaluation.md").read_text()
    failures = json.loads((evaluated / "results" / "failure_analysis.json").read_text())
    for name, found in failures.items():
        assert f"`{name}`" in text and found["definition"] in text.replace("\n", " ")
    for run in read(evaluated)["training_curves"].values():
        for check in run["checks"]:
            assert check["check"] in text


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(schema_of_the_types(), indent=2) + "\n")
