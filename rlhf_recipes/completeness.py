"""Whether an output folder is complete: every file there, each made from the others as they are.

    python -m rlhf_recipes.completeness outputs [STAGE...]

make asks for files alone, since copying a folder or touching a file changes their times. What
depends on what is told by the fingerprints in the stages' records.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_recipes.ending import ended_by_a_sentence
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.records import read_json

TRAINED = ("reward", "ppo", "grpo", "dpo")
EVALUATED = (
    "samples/collection.json",
    "results/failure_analysis.json",
    "results/report.html",
    "results/evaluation_results.json",
    "ANALYSIS.md",
)


def stale(out: Path, stages: list[str]) -> Iterator[str]:
    """Yield a sentence per finished stage that was made from something that is there no more."""
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
    if "evaluate" in stages:
        collection = _record(out / "samples" / "collection.json")
        made = collection.get("run", {}).get("created", "")
        again = "Evaluate again with `make evaluate ARGS_evaluate=--overwrite`"
        newer = [stage for stage in TRAINED if made and records[stage].get("created", "") > made]
        if newer or _differ(collection.get("dataset_fingerprint"), data):
            yield f"The evaluation is older than {' and '.join(newer) or 'the data'}. {again}."


def missing(out: Path) -> list[str]:
    """Return the files of a complete output folder that are not there, or empty."""
    trained = [f"models/{stage}_model/run.json" for stage in TRAINED]
    names = ["data/run.json", *trained, *EVALUATED]
    return [name for name in names if not ((out / name).is_file() and (out / name).stat().st_size)]


def main() -> None:
    """Raise RecipeError for what is stale; without stages also for what is missing."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_recipes.completeness")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("stages", nargs="*", help="all, and every file, if none is named")
    options = parser.parse_args()
    out = options.output_dir
    problems = list(stale(out, options.stages or [*TRAINED, "evaluate"]))
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
    """A record, or nothing where there is none."""
    return read_json(path) if path.is_file() else {}


def _differ(first: str | None, second: str | None) -> bool:
    """Whether two fingerprints that are both known differ."""
    return None not in (first, second) and first != second


if __name__ == "__main__":
    with ended_by_a_sentence():
        main()
