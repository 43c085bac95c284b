"""Supervised fine-tuning: a LoRA adapter on the chosen completions, for the policies to start from.

accelerate launch --config_file accelerate_configs/single.yaml \
    recipes/sft.py --config recipes/demo/sft.yaml
"""

from trl import ModelConfig, SFTConfig, SFTTrainer

from rlhf_recipes import load_prepared, share_prefixes
from rlhf_recipes.arguments import RecipeArguments, parse_recipe
from rlhf_recipes.ending import run_script
from rlhf_recipes.inputs import Inputs
from rlhf_recipes.machine import use_whole_cpu
from rlhf_recipes.models.loading import open_language_model
from rlhf_recipes.models.lora import lora_config
from rlhf_recipes.planning.plan import training_plan
from rlhf_recipes.preferences import chosen_completions
from rlhf_recipes.training import check_run_folder, push_if_asked, train_and_save

ARGUMENTS = (RecipeArguments, SFTConfig, ModelConfig)


def main() -> None:
    """Train the adapter to write the chosen completions; the loss leaves out the prompts."""
    (recipe, training, model), settings = parse_recipe(*ARGUMENTS)
    dataset = load_prepared(recipe.dataset_name, recipe.max_train_samples, recipe.max_eval_samples)
    inputs = Inputs("sft", recipe, training, model, dataset, settings=settings)
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
    trainer = SFTTrainer(
        model=open_language_model(model),
        args=training,
        train_dataset=chosen_completions(dataset["train"], plan.rows["train"].indices),
        eval_dataset=chosen_completions(dataset["validation"], plan.rows["validation"].indices),
        processing_class=inputs.tokenizer,
        peft_config=lora_config(model),
    )
    assert trainer.model is not None
    if recipe.prefix_sharing:
        share_prefixes(trainer.model)
    train_and_save(trainer, run)
    push_if_asked(run, training)


if __name__ == "__main__":
    run_script(main)
