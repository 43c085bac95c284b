"""Evaluation: sample every model on held-out prompts, then compare them honestly.

python recipes/evaluate.py --config recipes/demo/evaluate.yaml
"""

from pathlib import Path

from rlhf_recipes.arguments import parse_recipe, run
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation import analyse, closing_table
from rlhf_recipes.evaluation.arguments import EvaluationArguments
from rlhf_recipes.evaluation.collect import collect
from rlhf_recipes.plan import evaluation_plan
from rlhf_recipes.training import keep_freed_memory, use_all_cores

ARGUMENTS = (EvaluationArguments,)


def main() -> None:
    """Collect with the models, analyse without them, print the closing table."""
    (arguments,) = parse_recipe(*ARGUMENTS)
    if arguments.plan:
        print(evaluation_plan(arguments))
        return
    results = Path(arguments.output_dir) / "results" / "evaluation_results.json"
    if results.exists() and not arguments.overwrite:
        raise RecipeError(
            f"{results} holds a finished evaluation, which is never replaced unasked. "
            "Give another `output_dir`, or `--overwrite`."
        )
    use_all_cores()
    keep_freed_memory()
    collect(arguments)
    print(closing_table(analyse(Path(arguments.output_dir))))


if __name__ == "__main__":
    run(main)
