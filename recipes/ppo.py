"""Proximal policy optimisation: policy, value, reward and reference as adapters on one base.

accelerate launch --config_file accelerate_configs/single.yaml \
    recipes/ppo.py --config recipes/demo/ppo.yaml
"""

from trl import ModelConfig

from rlhf_recipes.arguments import RecipeArguments, RewardArguments, parse_recipe, run
from rlhf_recipes.inputs import Inputs
from rlhf_recipes.models.loading import open_language_model
from rlhf_recipes.models.lora import lora_config
from rlhf_recipes.planning.plan import training_plan
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.trainer import PPOTrainer
from rlhf_recipes.preferences import load_prepared
from rlhf_recipes.training import Run

ARGUMENTS = (RecipeArguments, RewardArguments, PPOConfig, ModelConfig)


def main() -> None:
    """Train policy and value on rollouts of the policy, scored by the reward adapter."""
    recipe, reward, training, model = parse_recipe(*ARGUMENTS)
    dataset = load_prepared(recipe.dataset_name, recipe.max_train_samples, recipe.max_eval_samples)
    inputs = Inputs("ppo", recipe, training, model, dataset, reward)
    plan = training_plan(inputs)
    if recipe.plan:
        print(plan)
        return
    prompts, held_out = inputs.prompts
    stage = Run("ppo", recipe, training, reward, model)
    stage.tell(plan.rows, plan.notes)
    trainer = PPOTrainer(
        model=open_language_model(model),
        args=training,
        train_dataset=prompts,
        eval_dataset=held_out,
        processing_class=inputs.tokenizer,
        peft_config=lora_config(model),
        reward_model_path=inputs.reward_model,
        sft_model=inputs.start,
        reward_funcs=inputs.reward_funcs,
        prefix_sharing=recipe.prefix_sharing,
    )
    stage.train_and_save(trainer)


if __name__ == "__main__":
    run(main)
