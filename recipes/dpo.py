"""Direct preference optimization: fit a LoRA policy to chosen/rejected pairs, no reward model.

accelerate launch --config_file accelerate_configs/single.yaml \
    recipes/dpo.py --config recipes/demo/dpo.yaml
"""

from trl import DPOConfig, DPOTrainer, ModelConfig

from rlhf_recipes import load_prepared, share_prefixes
from rlhf_recipes.arguments import RecipeArguments, StartArguments, parse_recipe
from rlhf_recipes.ending import run_script
from rlhf_recipes.inputs import Inputs
from rlhf_recipes.machine import use_whole_cpu
from rlhf_recipes.models.starting import open_policy
from rlhf_recipes.planning.plan import training_plan
from rlhf_recipes.training import check_run_folder, push_if_asked, train_and_save

ARGUMENTS = (RecipeArguments, StartArguments, DPOConfig, ModelConfig)


def main() -> None:
    """Train the policy on the pairs; the reference is what the policy starts as."""
    (recipe, starting, training, model), settings = parse_recipe(*ARGUMENTS)
    dataset = load_prepared(recipe.dataset_name, recipe.max_train_samples, recipe.max_eval_samples)
    inputs = Inputs("dpo", recipe, training, model, dataset, starting=starting, settings=settings)
    plan = training_plan(inputs)
    if recipe.plan:
        print(plan)
        return
    run = check_run_folder(inputs)
    if run is None:
        return
    training.output_dir = run.output_dir
    training.push_to_hub = False  # `push_if_asked` does, once the run folder is finished
    use_whole_cpu()
    plan.announce()
    policy, lora = open_policy(model, inputs.start, dropout=not training.disable_dropout)
    trainer = DPOTrainer(
        model=policy,
        args=training,
        train_dataset=dataset["train"].select(plan.rows["train"].indices),
        eval_dataset=dataset["validation"].select(plan.rows["validation"].indices),
        processing_class=inputs.tokenizer,
        peft_config=lora,
    )
    assert trainer.model is not None
    if recipe.prefix_sharing:
        share_prefixes(trainer.model)
    train_and_save(trainer, run)
    push_if_asked(run, training)


if __name__ == "__main__":
    run_script(main)
