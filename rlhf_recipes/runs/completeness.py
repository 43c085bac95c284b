"""Check that an output folder is complete: every file exists and was made from the current others.

    python -m rlhf_recipes.runs.completeness outputs [STAGE...]

make only checks that files exist, as copying a folder changes their times. Dependencies between
stages are checked here by the fingerprints in their records.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_recipes.ending import ended_by_a_sentence
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.records import read_json

TRAINED = ("sft", "reward", "ppo", "grpo", "dpo")
POLICIES = TRAINED[2:]
EVALUATED = (
    "samples/collection.json",
    "results/failure_analysis.json",
    "results/report.html",
    "results/evaluation_results.json",
    "ANALYSIS.md",
)


def stale(out: Path, stages: list[str]) -> Iterator[str]:
    """Yield a sentence per finished stage whose data or models have changed since."""
    data = _record(out / "data" / "run.json").get("dataset_fingerprint")
    records = {stage: _record(out / "models" / f"{stage}_model" / "run.json") for stage in TRAINED}
    reward = records["reward"].get("fingerprint")
    for stage in (stage for stage in TRAINED if stage in stages):
        record = records[stage]
        again = f"Train it again with `make {stage} ARGS_{stage}=--overwrite`"
        if _differ(record.get("dataset_fingerprint"), data):
            yield f"{stage} was trained on other data than {out}/data holds now. {again}."
        elif _differ(record.get("inputs", {}).get("reward_model_path"), reward) and (
            Path(record["recipe"]["reward_model_path"]).parts[-2:] == ("models", "reward_model")
        ):
            yield f"{stage} was trained against another reward model than is there now. {again}."
        elif stage in POLICIES and record and records["sft"]:
            yield from _stale_start(out, stage, records, again)
    if "judge" in stages:
        yield from _stale_judge(out)
    if "evaluate" in stages:
        changed = list(_changed_since_evaluation(out, records, data))
        if changed:
            yield (
                f"The evaluation was made with another {' and '.join(changed)} than is there now. "
                "Evaluate again with `make evaluate ARGS_evaluate=--overwrite`."
            )


def _stale_start(
    out: Path, stage: str, records: dict[str, dict[str, Any]], again: str
) -> Iterator[str]:
    """Yield a sentence if a policy did not start from the workspace's SFT adapter."""
    record, sft = records[stage], records["sft"]
    start = record.get("recipe", {}).get("sft_model_path")
    if start is None:
        yield (
            f"{stage} was trained from the base, and {out}/models/sft_model is there, which every "
            f"policy starts from. {again}, or remove that folder."
        )
    elif _differ(record.get("inputs", {}).get("sft_model_path"), sft.get("fingerprint")) and (
        Path(start).parts[-2:] == ("models", "sft_model")
    ):
        yield f"{stage} was trained from another SFT adapter than is there now. {again}."


def _stale_judge(out: Path) -> Iterator[str]:
    """Yield a sentence if the judge was trained on pairs that may be training pairs now."""
    judge = _record(out / "judge" / "models" / "reward_model" / "run.json")
    pairs = _record(out / "judge" / "data" / "run.json").get("dataset_fingerprint")
    if judge and judge.get("dataset_fingerprint") != pairs:
        yield (
            f"The judge was trained on other pairs than {out}/judge/data holds now, some of which "
            f"may be training pairs by now. Remove {out}/judge/models and train it again with "
            "`make judge`, or remove the whole folder to go without a judge."
        )


def _changed_since_evaluation(out: Path, records: dict[str, Any], data: Any) -> Iterator[str]:
    """Yield the name of each adapter or data set that differs from the evaluated one."""
    collection = _record(out / "samples" / "collection.json")
    evaluated = {
        name: model.get("fingerprint")
        for name, model in collection.get("models", {}).items()
        if Path(model.get("adapter") or "").parts[-2:] == ("models", f"{name}_model")
    }
    evaluated["reward"] = collection.get("reward_model_fingerprint")
    if Path(collection.get("reference") or "").parts[-2:] == ("models", "sft_model"):
        evaluated["sft"] = collection["models"]["base"].get("fingerprint")
    for stage in TRAINED:
        if _differ(evaluated.get(stage), records[stage].get("fingerprint")):
            yield f"{stage} adapter"
    if _differ(collection.get("dataset_fingerprint"), data):
        yield "data"


def missing(out: Path) -> list[str]:
    """Return the files of a complete output folder that are missing or empty; SFT is optional."""
    trained = [f"models/{stage}_model/run.json" for stage in TRAINED if stage != "sft"]
    names = ["data/run.json", *trained, *EVALUATED]
    return [name for name in names if not ((out / name).is_file() and (out / name).stat().st_size)]


def main() -> None:
    """Raise RecipeError for stale stages, and for missing files if no stage is named."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_recipes.runs.completeness")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("stages", nargs="*", help="by default all stages, and every file")
    options = parser.parse_args()
    out = options.output_dir
    problems = list(stale(out, options.stages or [*TRAINED, "judge", "evaluate"]))
    if not options.stages and (lost := missing(out)):
        problems.append(
            f"{', '.join(lost)} cannot be found. Bring them back, or make the stage again with "
            "`--overwrite`."
        )
    if problems:
        raise RecipeError("\n- ".join([f"{out} does not belong together:", *problems]))
    if not options.stages:
        sys.stdout.write(f"{out} is complete: {out}/results/report.html\n")


def _record(path: Path) -> dict[str, Any]:
    """Read a record; an empty one if the file is missing."""
    return read_json(path) if path.is_file() else {}


def _differ(first: str | None, second: str | None) -> bool:
    """Whether two fingerprints are both known and differ."""
    return None not in (first, second) and first != second


if __name__ == "__main__":
    with ended_by_a_sentence():
        main()
