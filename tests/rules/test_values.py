"""Values of the right type that cannot work are refused as a recipe is read, in every stage."""

import importlib.util
import re

import pytest

from rlhf_recipes.arguments import parse_recipe
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.rules.packages import package_problems
from rlhf_recipes.rules.values import RULES

STAGES = ("sft", "reward", "dpo", "grpo", "ppo")

# Flags, the stages that refuse them, and what the message says.
REFUSED = [
    ("--max_steps 0", STAGES, "`max_steps` is 0"),
    ("--max_steps -1 --num_train_epochs 0", STAGES, "`num_train_epochs` 0.0, so no step"),
    ("--learning_rate 0", STAGES, "`learning_rate` is 0.0, with which nothing is learned"),
    ("--learning_rate inf", STAGES, "`learning_rate` is inf"),
    ("--weight_decay -1", STAGES, "`weight_decay` is -1.0"),
    ("--adam_epsilon 0", STAGES, "`adam_epsilon` is 0.0"),
    ("--adam_beta1 1.5", STAGES, "`adam_beta1` is 1.5"),
    ("--adam_beta2 1", STAGES, "`adam_beta2` is 1.0"),
    ("--max_grad_norm -1", STAGES, "`max_grad_norm` is -1.0"),
    ("--optim_args fast", STAGES, "`optim_args` is fast"),
    ("--train_sampling_strategy group_by_length", STAGES, "a column of lengths that TRL's rows"),
    ("--train_sampling_strategy batch_rebalance", STAGES, "would count for more"),
    ("--ignore_data_skip true", ("sft", "reward", "dpo", "grpo"), "`ignore_data_skip` is true"),
    (
        '--accelerator_config {"use_seedable_sampler":false}',
        ("sft", "reward", "dpo"),
        "has use_seedable_sampler false",
    ),
    ("--seed -1", STAGES, "`seed` is -1"),
    ("--data_seed -1", STAGES, "`data_seed` is -1"),
    ("--eval_strategy steps --eval_steps 1", ("grpo",), "GRPO has no held-out prompts"),
    ("--eval_on_start true", ("grpo",), "`eval_on_start` True"),
    ("--save_strategy best", STAGES, "`eval_strategy` is no"),
    (
        "--load_best_model_at_end true --eval_strategy steps --eval_steps 1 --save_steps 1",
        ("ppo",),
        "`metric_for_best_model` is loss, and PPO's evaluations measure no loss",
    ),
    (
        "--save_strategy best --eval_strategy steps --eval_steps 1",
        ("sft", "reward", "dpo"),
        "no checkpoint is the best",
    ),
    (
        "--load_best_model_at_end true --eval_strategy steps --eval_steps 1 --save_steps 1 "
        "--metric_for_best_model eval_truth",
        ("sft", "reward", "dpo", "ppo"),
        "`metric_for_best_model` is eval_truth, which the evaluations of the stage",
    ),
    ("--eval_strategy steps --eval_steps -1", ("reward", "dpo", "ppo"), "`eval_steps` is -1"),
    ("--eval_accumulation_steps 0", STAGES, "`eval_accumulation_steps` is 0"),
    ("--save_steps 0", STAGES, "`save_steps` is 0"),
    ("--logging_steps -1", STAGES, "`logging_steps` is -1"),
    ("--label_smoothing_factor 0.1", STAGES, "`label_smoothing_factor` is 0.1"),
    (
        '--model_init_kwargs {"dtype":"float16"}',
        ("sft", "reward", "dpo", "grpo"),
        "`model_init_kwargs`",
    ),
    ("--trust_remote_code true", ("sft", "reward", "dpo", "grpo"), "`trust_remote_code` is true"),
    ("--chat_template_path here.jinja", ("sft", "reward"), "`chat_template_path` is here.jinja"),
    ("--resume_from_checkpoint here", STAGES, "`resume_from_checkpoint` is here"),
    ("--do_train false", STAGES, "`do_train` is False"),
    ("--do_predict true", STAGES, "`do_predict` is True"),
    ("--local_rank 3", STAGES, "`local_rank` is"),
    ("--optim_target_modules q_proj", STAGES, "`optim_target_modules` is"),
    ("--hub_strategy checkpoint", STAGES, "`hub_strategy` is"),
    ("--hub_always_push true", STAGES, "`hub_always_push` is True"),
    ("--hub_revision draft", STAGES, "`hub_revision` is draft"),
    ("--num_generations_eval 2", ("grpo",), "`num_generations_eval` is 2"),
    ("--max_tool_calling_iterations 1", ("grpo",), "`max_tool_calling_iterations` is 1"),
    ("--use_bnb_nested_quant true", STAGES, "`load_in_4bit` is false"),
    ("--neftune_noise_alpha 5", STAGES, "`neftune_noise_alpha` is 5.0"),
    ("--use_liger_kernel true", STAGES, "`use_liger_kernel` is true"),
    ("--debug underflow_overflow", ("ppo",), "`debug` is"),
    ('--accelerator_config {"dispatch_batches":true}', ("grpo", "ppo"), "has dispatch_batches"),
    ("--dataloader_num_workers -1", STAGES, "`dataloader_num_workers` is -1"),
    ("--dataloader_persistent_workers true", STAGES, "`dataloader_persistent_workers` is true"),
    (
        "--activation_offloading true --use_cpu true",
        ("sft", "reward", "dpo"),
        "`activation_offloading`",
    ),
    ("--lora_alpha 0", STAGES, "`lora_alpha` is 0"),
    ("--lora_dropout 0.1 --disable_dropout true", ("reward", "dpo", "grpo"), "turns dropout off"),
    ("--lora_dropout 0.1", ("ppo",), "turns dropout off"),
    ("--lora_dropout 1", STAGES, "`lora_dropout` is 1.0, which is not a probability"),
    ("--lora_task_type CAUSAL_LM", ("reward",), "head is not saved"),
    (
        "--lora_task_type SEQ_CLS",
        ("sft", "dpo", "grpo", "ppo"),
        "a policy is a causal language model",
    ),
    ("--pad_to_multiple_of 0", ("sft", "reward", "dpo", "grpo"), "`pad_to_multiple_of` is 0"),
    ("--dataset_num_proc -1", ("sft", "reward", "dpo"), "`dataset_num_proc` is -1"),
    ("--packing true", ("sft",), "`packing` is True"),
    ("--eval_packing true", ("sft",), "`eval_packing` True"),
    ("--padding_free true", ("sft",), "`padding_free` True, which lay rows out"),
    ("--completion_only_loss false", ("sft",), "the prompts are learned too"),
    ("--assistant_only_loss true", ("sft",), "`assistant_only_loss` is True"),
    ("--dataset_text_field words", ("sft",), "`dataset_text_field` is words"),
    ('--dataset_kwargs {"skip_prepare_dataset":true}', ("sft",), "`dataset_kwargs` is"),
    ("--center_rewards_coefficient -1", ("reward",), "`center_rewards_coefficient` is -1.0"),
    (
        "--loss_type sigmoids",
        ("dpo", "grpo"),
        "`loss_type` is .*sigmoids.*, which is not known",
    ),
    ("--beta 0", ("dpo",), "`beta` is 0.0. At 0 the loss does not depend on the policy"),
    ("--beta -1", ("grpo",), "`beta` is -1.0"),
    ("--loss_weights 0", ("dpo",), "`loss_weights` is"),
    ("--label_smoothing 0.1", ("dpo",), "the loss .* does not use it"),
    ("--loss_type robust --label_smoothing 0.5", ("dpo",), "a pair is mislabeled"),
    ("--loss_type exo_pair", ("dpo",), "takes the logarithm"),
    ("--loss_type discopop --discopop_tau 0", ("dpo",), "`discopop_tau` is 0.0"),
    ("--f_divergence_type kl", ("dpo",), "`f_divergence_type` is kl"),
    ("--ld_alpha 2", ("dpo",), "`ld_alpha` is 2.0"),
    ("--sync_ref_model true", ("dpo", "grpo"), "`sync_ref_model` is true"),
    ("--temperature 0", ("grpo",), "`temperature` is 0.0, with which all completions"),
    ("--max_completion_length null", ("grpo",), "completions need a limit"),
    ("--top_p 0", ("grpo",), "`top_p` is 0.0"),
    ("--min_p 2", ("grpo",), "`min_p` is 2.0"),
    ("--top_k -1", ("grpo",), "`top_k` is -1"),
    ("--repetition_penalty 0", ("grpo",), "`repetition_penalty` is 0.0"),
    ("--use_transformers_continuous_batching true", ("grpo",), "another attention implementation"),
    ("--log_completions_hub_repo me/it", ("grpo",), "publishes"),
    ("--num_iterations 0", ("grpo",), "`num_iterations` is 0"),
    ("--steps_per_generation 0", ("grpo",), "`steps_per_generation` is 0"),
    ("--epsilon 0", ("grpo",), "`epsilon` is 0.0"),
    ("--epsilon_high -1", ("grpo",), "`epsilon_high` is -1.0"),
    ("--delta 0.5", ("grpo",), "`delta` is 0.5"),
    ("--top_entropy_quantile 0", ("grpo",), "`top_entropy_quantile` is 0.0"),
    ("--importance_sampling_level row", ("grpo",), "`importance_sampling_level` is row"),
    ("--scale_rewards rows", ("grpo",), "`scale_rewards` is rows"),
    ("--multi_objective_aggregation sum", ("grpo",), "`multi_objective_aggregation` is sum"),
]


@pytest.fixture(autouse=True)
def in_the_checkout(root, monkeypatch):
    monkeypatch.chdir(root)


def parse(root, stage, flags):
    """The recipe of recipes/tiny with these flags, parsed as the stage's script does."""
    spec = importlib.util.spec_from_file_location(f"script_{stage}", root / f"recipes/{stage}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    argv = ["--config", str(root / f"recipes/tiny/{stage}.yaml"), *flags.split()]
    return parse_recipe(*script.ARGUMENTS, argv=argv).arguments


@pytest.mark.parametrize(("flags", "stages", "message"), REFUSED, ids=[case[0] for case in REFUSED])
def test_what_cannot_work_is_refused_as_the_recipe_is_read(root, flags, stages, message):
    for stage in stages:
        with pytest.raises(RecipeError, match=message):
            parse(root, stage, flags)


def test_every_rule_is_broken_by_one_of_these(root, monkeypatch):
    """A rule that no example breaks might as well not be there."""
    broken = set()

    def recording(index, rule):
        def is_broken(values):
            result = rule.is_broken(values)
            if result:
                broken.add(index)
            return result

        return rule._replace(is_broken=is_broken)

    recorded = tuple(recording(index, rule) for index, rule in enumerate(RULES))
    monkeypatch.setattr("rlhf_recipes.rules.values.RULES", recorded)
    for flags, stages, _ in REFUSED:
        for stage in stages:
            with pytest.raises(RecipeError):
                parse(root, stage, flags)
    assert [rule.message for index, rule in enumerate(RULES) if index not in broken] == []


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("flags", "package", "message"),
    [
        ("--load_in_4bit true", "is_bitsandbytes_available", "needs the package bitsandbytes"),
        ("--load_in_8bit true", "is_bitsandbytes_available", "needs the package bitsandbytes"),
        (
            "--attn_implementation flash_attention_2",
            "is_flash_attn_2_available",
            "the package flash-attn is not installed",
        ),
        (
            "--use_liger_kernel true --prefix_sharing false",
            "is_liger_kernel_available",
            "the package liger-kernel is not installed",
        ),
        ("--report_to no_such_tracker", None, "`report_to` is .'no_such_tracker'."),
    ],
)
def test_a_package_that_is_missing_is_named(root, monkeypatch, stage, flags, package, message):
    if package is not None:
        monkeypatch.setattr(f"transformers.utils.import_utils.{package}", lambda: False)
    (problem,) = package_problems(parse(root, stage, flags))
    assert re.search(message, problem)
    assert list(package_problems(parse(root, stage, ""))) == []


def test_all_problems_of_a_recipe_are_reported_together(root):
    with pytest.raises(RecipeError) as refused:
        parse(root, "dpo", "--beta 0 --seed -1 --lora_alpha 0 --do_predict true")
    text = str(refused.value)
    assert text.startswith("The recipe has 4 problems:")
    assert all(f"`{key}`" in text for key in ("beta", "seed", "lora_alpha", "do_predict"))
    assert "{" not in text


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "flags",
    ["--save_total_limit 1", "--do_train true", "--hub_strategy end", "--data_seed 7"],
)
def test_what_works_is_accepted(root, stage, flags):
    parse(root, stage, flags)


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        ("sft", "--lora_dropout 0.1 --loss_type dft --completion_only_loss true"),
        ("dpo", "--loss_type sft --beta 0"),
        ("dpo", "--loss_type robust --label_smoothing 0.1"),
        ("dpo", "--loss_type sigmoid sft --loss_weights 1 0"),
        ("dpo", "--eval_strategy steps --eval_steps 1 --save_steps 1 --load_best_model_at_end"),
        ("grpo", "--num_iterations 2 --delta 2 --scale_rewards batch"),
        ("grpo", "--top_p 0.9 --top_k 5 --min_p 0.1"),
        ("grpo", "--lora_dropout 0.1 --disable_dropout false"),
        (
            "ppo",
            "--eval_strategy steps --eval_steps 1 --save_strategy best "
            "--metric_for_best_model objective/scores",
        ),
        (
            "ppo",
            "--eval_strategy steps --eval_steps 1 --save_strategy best "
            "--metric_for_best_model eval_rewards/rule",
        ),
        ("reward", "--pad_to_multiple_of 8 --center_rewards_coefficient 0.01"),
    ],
)
def test_the_keys_of_a_method_are_accepted(root, stage, flags):
    parse(root, stage, flags)
