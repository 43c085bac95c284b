import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences import current_fingerprint, load_prepared, split_off


def test_rows_that_were_changed_after_they_were_prepared_are_refused(tmp_path: Path) -> None:
    row = json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n"
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(row * 2)
    record = json.dumps({"dataset_fingerprint": current_fingerprint(tmp_path)})
    (tmp_path / "run.json").write_text(record)
    assert len(load_prepared(tmp_path)["train"]) == 2
    (tmp_path / "train.jsonl").write_text(row)
    with pytest.raises(RecipeError, match="were changed after they were prepared"):
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


def test_prompts_to_evaluate_on_share_no_first_turn_with_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from datasets import Dataset

    plain = Dataset.from_dict({"prompt": [f"prompt {i}" for i in range(6)]})
    train, held_out = split_off(plain, 2)
    assert (train["prompt"][-1], held_out["prompt"]) == ("prompt 3", ["prompt 4", "prompt 5"])

    # The last prompt and the first begin alike: both are taken, and the one between stays.
    alike = Dataset.from_dict({"prompt": ["Why so?", "one", "two", "three", "why  SO?"]})
    train, held_out = split_off(alike, 2)
    assert train["prompt"][:] == ["one", "two", "three"]
    assert held_out["prompt"][:] == ["Why so?", "why  SO?"]

    twos = Dataset.from_dict({"prompt": ["a", "A", "b", "B", "c", "C"]})
    train, held_out = split_off(twos, 3)
    assert (len(train), held_out["prompt"][:]) == (4, ["c", "C"])
    assert "2 prompts are evaluated on, not `num_eval_prompts: 3`" in caplog.text
    train, held_out = split_off(twos, 1)
    assert (len(train), held_out["prompt"][:]) == (4, ["C"])
    with pytest.raises(RecipeError, match=r"6 of 6 .* which have 3 different first user turns"):
        split_off(twos, 6)
    with pytest.raises(RecipeError, match=r"1 of 2 .* which have 1 different"):
        split_off(twos.select([0, 1]), 1)
