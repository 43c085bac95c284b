"""Group relative policy optimization: a LoRA policy against the reward model, without a value.

accelerate launch --config_file accelerate_configs/single.yaml \
    recipes/grpo.py --config recipes/demo/grpo.yaml
"""

from trl import GRPOConfig, GRPOTrainer, ModelConfig

from rlhf_recipes import load_prepared, share_prefixes
from rlhf_recipes.arguments import RecipeArguments, RewardArguments, StartArguments, parse_recipe
from rlhf_recipes.ending import run_script
from rlhf_recipes.generation.grpo import rollout_func_for
from rlhf_recipes.inputs import Inputs
from rlhf_recipes.machine import use_whole_cpu
from rlhf_recipes.models.starting import open_policy
from rlhf_recipes.planning.plan import training_plan
from rlhf_recipes.reward_functions import checked
from rlhf_recipes.rewards import RewardRole
from rlhf_recipes.runs.resuming import WholeGenerations
from rlhf_recipes.training import check_run_folder, push_if_asked, train_and_save

ARGUMENTS = (RecipeArguments, RewardArguments, StartArguments, GRPOConfig, ModelConfig)


def main() -> None:
    """Train the policy on groups of its own completions, scored by the reward adapter."""
    (recipe, reward, starting, training, model), settings = parse_recipe(*ARGUMENTS)
    dataset = load_prepared(recipe.dataset_name, recipe.max_train_samples, recipe.max_eval_samples)
    inputs = Inputs("grpo", recipe, training, model, dataset, reward, starting, settings=settings)
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
    rewards = [*inputs.reward_funcs]
    if inputs.reward_model is not None:
        reward_model = RewardRole(inputs.reward_model, prefix_sharing=recipe.prefix_sharing)
        rewards.insert(0, reward_model)
    policy, lora = open_policy(model, inputs.start, dropout=not training.disable_dropout)
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=[checked(function) for function in rewards],  # type: ignore[misc]  # Any
        args=training,
        train_dataset=inputs.prompts[0],
        processing_class=inputs.tokenizer,
        peft_config=lora,
        rollout_func=rollout_func_for(training, merge=reward.merge_for_sampling),
        callbacks=[WholeGenerations()],
    )
    assert trainer.model is not None
    if recipe.prefix_sharing:
        share_prefixes(trainer.model)
    if inputs.reward_model is not None:
        precision = None if inputs.reward_shares_base else inputs.reward_precision
        reward_model.attach(trainer.model, own_base=precision)
    train_and_save(trainer, run)
    push_if_asked(run, training)


if __name__ == "__main__":
    run_script(main)
