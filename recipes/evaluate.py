"""Evaluation: sample every model on held-out prompts, then compare them honestly.

accelerate launch --config_file accelerate_configs/single.yaml \
    recipes/evaluate.py --config recipes/demo/evaluate.yaml
"""

from pathlib import Path

from rlhf_recipes.arguments import parse_recipe, resolved_recipe
from rlhf_recipes.ending import run_script
from rlhf_recipes.evaluation.analysis import analyze
from rlhf_recipes.evaluation.arguments import EvaluationArguments
from rlhf_recipes.evaluation.collect.collection import collect
from rlhf_recipes.evaluation.collect.processes import connect_processes, from_main, is_main
from rlhf_recipes.evaluation.collect.provenance import read_adapters
from rlhf_recipes.evaluation.output_files import open_evaluation
from rlhf_recipes.evaluation.report.rendering import closing_table
from rlhf_recipes.machine import use_whole_cpu
from rlhf_recipes.planning.plan import evaluation_plan

ARGUMENTS = (EvaluationArguments,)


def main() -> None:
    """Collect with the models, analyze without them, print the closing table."""
    (arguments,), _ = parse_recipe(*ARGUMENTS)
    adapters = read_adapters(arguments)
    plan = evaluation_plan(arguments, adapters)
    if arguments.plan:
        print(plan)
        return
    connect_processes()
    output_dir = Path(arguments.output_dir)
    recipe = resolved_recipe(vars(arguments))
    if from_main(lambda: open_evaluation(output_dir, recipe, arguments.overwrite)):
        if is_main():
            print(f"{output_dir / 'results'} was complete and is in place now.")
        return
    if is_main():
        for note in plan.notes:
            print(note)
    use_whole_cpu()
    collect(arguments, adapters)
    if is_main():
        print(closing_table(analyze(output_dir)))


if __name__ == "__main__":
    run_script(main)
