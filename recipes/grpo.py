"""Group relative policy optimisation: a LoRA policy against the reward model, without a value.

accelerate launch --config_file accelerate_configs/single.yaml \
    recipes/grpo.py --config recipes/demo/grpo.yaml
"""

from trl import GRPOConfig, GRPOTrainer, ModelConfig

from rlhf_recipes.arguments import RecipeArguments, RewardArguments, parse_recipe, run
from rlhf_recipes.generation.grpo import rollout_func_for
from rlhf_recipes.inputs import Inputs
from rlhf_recipes.models.loading import open_language_model
from rlhf_recipes.models.lora import lora_config
from rlhf_recipes.planning.plan import training_plan
from rlhf_recipes.preferences import load_prepared
from rlhf_recipes.reward_functions import RewardFunc, checked
from rlhf_recipes.rewards import RewardModel
from rlhf_recipes.runs.resuming import WholeGenerations
from rlhf_recipes.training import Run

ARGUMENTS = (RecipeArguments, RewardArguments, GRPOConfig, ModelConfig)


def main() -> None:
    """Train the policy on groups of its own completions, scored by the reward adapter."""
    recipe, reward, training, model = parse_recipe(*ARGUMENTS)
    dataset = load_prepared(recipe.dataset_name, recipe.max_train_samples, recipe.max_eval_samples)
    inputs = Inputs("grpo", recipe, training, model, dataset, reward)
    plan = training_plan(inputs)
    if recipe.plan:
        print(plan)
        return
    stage = Run("grpo", recipe, training, reward, model)
    stage.tell(plan.rows, plan.notes)
    rewards: list[RewardFunc] = list(inputs.reward_funcs)
    if inputs.reward_model is not None:
        reward_model = RewardModel.load(
            inputs.reward_model,
            prefix_sharing=recipe.prefix_sharing,
            attn_implementation=model.attn_implementation,
            **inputs.reward_precision.kwargs(),
        )
        rewards.insert(0, reward_model.to(training.device))
    trainer = GRPOTrainer(
        model=open_language_model(model),
        # A list of floats is none of floats or None to a type checker.
        reward_funcs=[checked(function) for function in rewards],  # type: ignore[misc]
        args=training,
        train_dataset=inputs.prompts[0],
        processing_class=inputs.tokenizer,
        peft_config=lora_config(model),
        rollout_func=rollout_func_for(training),
        callbacks=[WholeGenerations()],
    )
    stage.train_and_save(trainer)


if __name__ == "__main__":
    run(main)
