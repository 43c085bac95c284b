import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from rlhf_recipes.records import run_record, workspace, write_json


def test_written_json_reads_back_equal_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    write_json(path, {"text": "naïve", "numbers": [1, 2.5, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "text": "naïve",
        "numbers": [1, 2.5, None],
    }
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]


@pytest.mark.parametrize("value", [math.nan, math.inf, object()])
def test_data_that_is_not_json_leaves_the_old_file_untouched(tmp_path: Path, value: object) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"reward": 1.0})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, {"reward": value})
    assert json.loads(path.read_text()) == {"reward": 1.0}
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_record_names_versions_time_and_facts() -> None:
    record: dict[str, Any] = run_record(
        "ppo", {"learning_rate": 1e-5}, seed=42, metrics={"kl": 0.5}
    )
    assert record["stage"] == "ppo"
    assert record["recipe"] == {"learning_rate": 1e-5}
    assert record["seed"] == 42
    assert record["metrics"] == {"kl": 0.5}
    assert {"python", "torch", "trl"} <= set(record["versions"])
    assert datetime.fromisoformat(record["created"]).utcoffset() is not None
    assert record["git_commit"] is None or len(record["git_commit"]) >= 40


@pytest.mark.parametrize(
    ("output_dir", "shared"),
    [
        ("out/models/ppo_model", "out"),
        ("out", "out"),
        ("models/x", "."),
        ("out/models", "out/models"),
    ],
)
def test_workspace_is_the_folder_above_models(output_dir: str, shared: str) -> None:
    assert workspace(Path(output_dir)) == Path(shared)
