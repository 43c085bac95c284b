"""Proximal policy optimization: policy, value, reward and reference as adapters on one base.

accelerate launch --config_file accelerate_configs/single.yaml \
    recipes/ppo.py --config recipes/demo/ppo.yaml
"""

from trl import ModelConfig

from rlhf_recipes import PPOConfig, PPOTrainer, load_prepared
from rlhf_recipes.arguments import RecipeArguments, RewardArguments, parse_recipe
from rlhf_recipes.ending import run_script
from rlhf_recipes.inputs import Inputs
from rlhf_recipes.machine import use_whole_cpu
from rlhf_recipes.models.loading import open_language_model
from rlhf_recipes.models.lora import lora_config
from rlhf_recipes.planning.plan import training_plan
from rlhf_recipes.training import check_run_folder, push_if_asked, train_and_save

ARGUMENTS = (RecipeArguments, RewardArguments, PPOConfig, ModelConfig)


def main() -> None:
    """Train policy and value on rollouts of the policy, scored by the reward adapter."""
    (recipe, reward, training, model), settings = parse_recipe(*ARGUMENTS)
    dataset = load_prepared(recipe.dataset_name, recipe.max_train_samples, recipe.max_eval_samples)
    inputs = Inputs("ppo", recipe, training, model, dataset, reward, settings=settings)
    plan = training_plan(inputs)
    if recipe.plan:
        print(plan)
        return
    prompts, held_out = inputs.prompts
    run = check_run_folder(inputs)
    if run is None:
        return
    training.output_dir = run.output_dir
    training.push_to_hub = False  # `push_if_asked` does, once the run folder is finished
    use_whole_cpu()
    plan.announce()
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
        merge_for_sampling=reward.merge_for_sampling,
    )
    train_and_save(trainer, run)
    push_if_asked(run, training)


if __name__ == "__main__":
    run_script(main)
