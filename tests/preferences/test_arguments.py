from typing import Any

import pytest

from rlhf_recipes.preferences import DataArguments


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 0}, "`max_length` is 0"),
        ({"max_eval_samples": -1}, "`max_eval_samples` is -1"),
        ({"validation_fraction": 1.0}, "`validation_fraction` is 1.0"),
        ({"judge_fraction": 0.0}, "`judge_fraction` is 0.0"),
        ({"dataset_test_split": "train"}, "which is the training split too"),
        ({"columns": {"q": "question"}}, "maps to 'question'"),
        ({"columns": {"q": "prompt", "p": "prompt"}}, "two columns"),
    ],
)
def test_values_that_cannot_work_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataArguments("pairs.jsonl", **values)
