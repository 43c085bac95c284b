"""Reward model: a LoRA sequence classifier fitted to chosen/rejected pairs.

accelerate launch --config_file accelerate_configs/single.yaml \
    recipes/reward.py --config recipes/demo/reward.yaml
"""

from functools import partial

from trl import ModelConfig, RewardConfig, RewardTrainer

from rlhf_recipes import load_prepared, share_prefixes
from rlhf_recipes.arguments import RecipeArguments, parse_recipe
from rlhf_recipes.ending import run_script
from rlhf_recipes.evaluation.collect.reward_review import review_reward_model
from rlhf_recipes.inputs import Inputs
from rlhf_recipes.machine import use_whole_cpu
from rlhf_recipes.models.loading import open_classifier
from rlhf_recipes.models.lora import lora_config
from rlhf_recipes.planning.plan import training_plan
from rlhf_recipes.sharding import shards_weights
from rlhf_recipes.training import check_run_folder, push_if_asked, train_and_save

ARGUMENTS = (RecipeArguments, RewardConfig, ModelConfig)


def main() -> None:
    """Train the reward model, then score the validation pairs and look into the wrong ones."""
    (recipe, training, model), settings = parse_recipe(*ARGUMENTS)
    dataset = load_prepared(recipe.dataset_name, recipe.max_train_samples, recipe.max_eval_samples)
    inputs = Inputs("reward", recipe, training, model, dataset, settings=settings)
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
    trainer = RewardTrainer(
        model=open_classifier(model, training.seed, dropout=not training.disable_dropout),
        args=training,
        train_dataset=dataset["train"].select(plan.rows["train"].indices),
        eval_dataset=dataset["validation"].select(plan.rows["validation"].indices),
        processing_class=inputs.tokenizer,
        peft_config=lora_config(model),
    )
    assert trainer.model is not None
    if recipe.prefix_sharing:
        share_prefixes(trainer.model)
    review = partial(
        review_reward_model,
        pairs=dataset["validation"],
        model=None if shards_weights(training) else trainer.model,
        prefix_sharing=recipe.prefix_sharing,
    )
    train_and_save(trainer, run, review)
    push_if_asked(run, training)


if __name__ == "__main__":
    run_script(main)
