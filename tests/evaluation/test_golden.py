"""The numbers of one small evaluation, as they were: changes to the code must keep them.

`python -m tests.evaluation.test_golden` writes golden.json again. A change that moves a number says
so in its commit message.
"""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from rlhf_recipes.evaluation.analysis import analyze
from tests.evaluation.conftest import (
    log_histories,
    make_pairs,
    make_records,
    write_collection,
)

GOLDEN = Path(__file__).parent / "golden.json"
# Mean of proxy, gold and KL over base: the proxy of ppo rises, its gold rises and falls.
MODELS = {
    "base": (0.0, 0.0, 0.0),
    "ppo-50": (0.8, 8.0, 2.0),
    "ppo": (1.5, -9.0, 7.0),
    "grpo-50": (0.4, 4.0, 1.0),
    "grpo": (0.9, 9.0, 3.0),
    "control": (0.0, 0.0, 0.0),
}


def small_evaluation(output):
    """Results of 12 prompts: checkpoints, a control, best of 4, a judge, curves, a reward model."""
    models = {n: make_records(n, e, 12, 4 if n == "base" else 2) for n, e in MODELS.items()}
    for record in models["base"] + models["control"]:
        record |= {"kl": 0.0, "kl_k1": 0.0}
    for record in (r for name, records in models.items() if name != "ppo" for r in records):
        del record["kl_curve"]  # one curve by position is enough
    steps = {"ppo-50": 50, "ppo": 100, "grpo-50": 50, "grpo": 100}
    families = {name: name.removesuffix("-50") for name in steps}
    write_collection(output, models, families=families, checkpoints=steps)
    verdicts = [
        {
            "prompt_id": i,
            "sample_index": 0,
            "model": "ppo",
            "against": "base",
            "readable": i != 5,
            "outcome": (first + second) / 2,
            "first": first,
            "second": second,
        }
        for i, (first, second) in enumerate([(1.0, 1.0)] * 6 + [(1.0, 0.0)] * 2 + [(0.0, 0.0)] * 4)
    ]
    (output / "samples" / "verdicts_chat.json").write_text(json.dumps(verdicts))
    for stage, log in log_histories().items():
        folder = output / "models" / f"{stage}_model"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": log[:10]}))
    (output / "models" / "reward_model" / "scores.json").write_text(json.dumps(make_pairs(40)))
    analyze(output)
    return json.loads((output / "results" / "evaluation_results.json").read_text())


def numbers(value, path=""):
    """Every number, bool and null by its path; a list of numbers or of pairs stays together."""
    if isinstance(value, str):
        return {}
    if isinstance(value, list) and any(isinstance(v, (dict, str)) for v in value):
        value = {str(i): v for i, v in enumerate(value)}
    if not isinstance(value, dict):
        return {path: rounded(value)}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= numbers(inner, f"{path}.{key}" if path else key)
    return found


def rounded(value):
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def is_close(a, b):
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(is_close, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-7, abs_tol=1e-12)
    return a == b


def without_facts(results):
    return numbers({key: value for key, value in results.items() if key != "run"})


def test_every_number_is_as_it_was(tmp_path):
    expected, found = json.loads(GOLDEN.read_text()), without_facts(small_evaluation(tmp_path))
    assert found.keys() == expected.keys()
    moved = {k: (v, found[k]) for k, v in expected.items() if not is_close(v, found[k])}
    assert not moved


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        lines = json.dumps(without_facts(small_evaluation(Path(folder))))
    GOLDEN.write_text(lines.replace(', "', ',\n"') + "\n")
