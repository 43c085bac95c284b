import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences import DataArguments, load_prepared


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"max_length": 0}, "`max_length` is 0"),
        ({"max_eval_samples": -1}, "`max_eval_samples` is -1"),
        ({"validation_fraction": 1.0}, "`validation_fraction` is 1.0"),
        ({"judge_fraction": 0.0}, "`judge_fraction` is 0.0"),
        ({"dataset_test_split": "train"}, "which is the training split too"),
    ],
)
def test_values_that_leave_no_data_are_refused(wrong: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        DataArguments("pairs.jsonl", **wrong)


def test_a_folder_that_is_not_prepared_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    with pytest.raises(RecipeError, match="Run `make data`"):
        load_prepared(tmp_path)


def test_a_script_starts_without_torch_and_without_datasets() -> None:
    code = (
        "import sys, rlhf_recipes.preferences.preparation as p\n"
        "print([m for m in ('torch', 'datasets', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
