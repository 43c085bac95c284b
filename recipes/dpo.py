"""Direct preference optimisation: fit a LoRA policy to chosen/rejected pairs, no reward model.

accelerate launch --config_file accelerate_configs/single.yaml \
    recipes/dpo.py --config recipes/demo/dpo.yaml
"""

from trl import DPOConfig, DPOTrainer, ModelConfig

from rlhf_recipes.arguments import RecipeArguments, parse_recipe, run
from rlhf_recipes.inputs import Inputs
from rlhf_recipes.models.loading import open_language_model
from rlhf_recipes.models.lora import lora_config
from rlhf_recipes.planning.plan import training_plan
from rlhf_recipes.preferences import load_prepared
from rlhf_recipes.training import Run

ARGUMENTS = (RecipeArguments, DPOConfig, ModelConfig)


def main() -> None:
    """Train the policy on the pairs; the base with the adapter off is the reference."""
    recipe, training, model = parse_recipe(*ARGUMENTS)
    dataset = load_prepared(recipe.dataset_name, recipe.max_train_samples, recipe.max_eval_samples)
    inputs = Inputs("dpo", recipe, training, model, dataset)
    plan = training_plan(inputs)
    if recipe.plan:
        print(plan)
        return
    stage = Run("dpo", recipe, training, model)
    stage.tell(plan.rows, plan.notes)
    trainer = DPOTrainer(
        model=open_language_model(model),
        args=training,
        train_dataset=dataset["train"].select(plan.rows["train"].kept),
        eval_dataset=dataset["validation"].select(plan.rows["validation"].kept),
        processing_class=inputs.tokenizer,
        peft_config=lora_config(model),
    )
    stage.train_and_save(trainer)


if __name__ == "__main__":
    run(main)
