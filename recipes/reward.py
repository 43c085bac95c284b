"""Reward model: a LoRA sequence classifier fitted to chosen/rejected pairs.

accelerate launch --config_file accelerate_configs/single.yaml \
    recipes/reward.py --config recipes/demo/reward.yaml
"""

from trl import ModelConfig, RewardConfig, RewardTrainer

from rlhf_recipes.arguments import RecipeArguments, parse_recipe, run
from rlhf_recipes.evaluation.collect.reward_review import review_reward_model
from rlhf_recipes.inputs import Inputs
from rlhf_recipes.models.loading import open_classifier
from rlhf_recipes.models.lora import lora_config
from rlhf_recipes.planning.plan import training_plan
from rlhf_recipes.preferences import load_prepared
from rlhf_recipes.training import Run

ARGUMENTS = (RecipeArguments, RewardConfig, ModelConfig)


def main() -> None:
    """Train the reward model, then score the validation pairs and look into the wrong ones."""
    recipe, training, model = parse_recipe(*ARGUMENTS)
    dataset = load_prepared(recipe.dataset_name, recipe.max_train_samples, recipe.max_eval_samples)
    inputs = Inputs("reward", recipe, training, model, dataset)
    plan = training_plan(inputs)
    if recipe.plan:
        print(plan)
        return
    stage = Run("reward", recipe, training, model)
    stage.tell(plan.rows, plan.notes)
    trainer = RewardTrainer(
        model=open_classifier(model, training.seed),
        args=training,
        train_dataset=dataset["train"].select(plan.rows["train"].kept),
        eval_dataset=dataset["validation"].select(plan.rows["validation"].kept),
        processing_class=inputs.tokenizer,
        peft_config=lora_config(model),
    )
    # The folder says how its base is opened.
    how = {
        "prefix_sharing": recipe.prefix_sharing,
        "attn_implementation": model.attn_implementation,
    }
    stage.train_and_save(
        trainer, lambda folder: review_reward_model(folder, dataset["validation"], **how)
    )


if __name__ == "__main__":
    run(main)
