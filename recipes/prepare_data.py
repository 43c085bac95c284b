"""Prepare preference data: any usual shape -> balanced training and validation pairs.

python recipes/prepare_data.py --config recipes/demo/prepare_data.yaml
"""

import os
from pathlib import Path

from rlhf_recipes.arguments import parse_recipe
from rlhf_recipes.collector import no_collection
from rlhf_recipes.ending import run_script
from rlhf_recipes.folders import hold
from rlhf_recipes.preferences import DataArguments
from rlhf_recipes.preferences.preparation import check_writable, prepare, write_prepared
from rlhf_recipes.preferences.summary import summary
from rlhf_recipes.runs.locks import check_free

ARGUMENTS = (DataArguments,)


@no_collection()
def main() -> None:
    """Prepare the pairs, then write them with their statistics, or say what would be written."""
    (arguments,), _ = parse_recipe(*ARGUMENTS)
    out = Path(arguments.output_dir)
    outputs = f"{out / 'data'}, {out / 'dataset_stats.json'}, {out / 'dataset_distribution.png'}"
    if os.getenv("RANK", "0") != "0":  # of several launched processes one is enough
        return
    if arguments.plan:
        check_free(out)
    else:
        hold(out)
    check_writable(arguments)
    prepared = prepare(arguments)
    if arguments.plan:
        print(f"{summary(prepared)}\n\nWould write {outputs}")
        return
    write_prepared(prepared, arguments)
    print(f"{summary(prepared)}\n\nWrote {outputs}")


if __name__ == "__main__":
    run_script(main)
