"""Rules for the keys that the stages share, and the check of a recipe against all rules.

A value of the right type can still crash a run later, be ignored, or teach nothing. `parse_recipe`
checks every training recipe against `RULES` as it is read, so that `--plan` and the run refuse it
in the same words, together with all other problems of the recipe.

To add a rule, add a line under the heading of its key, here or in `methods`, such as

    at_least("weight_decay", 0, ALL, "which makes every weight grow without limit."),

with one of the `kinds`, or a `Rule` with a condition of its own. Then add a case to REFUSED in
tests/rules/test_values.py; a test fails for a rule that has none.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from math import isfinite
from typing import Any

from rlhf_recipes.rules.kinds import (
    ALL,
    GRPO,
    OFFLINE,
    ONLINE,
    POLICIES,
    PPO,
    REWARD,
    TRL,
    Rule,
    above_zero,
    at_least,
    between,
    broken_rule_messages,
    unused,
)
from rlhf_recipes.rules.methods import METHODS

EVALUATION_METRICS = {
    "sft": ("loss", "entropy", "mean_token_accuracy"),
    "reward": ("loss", "accuracy", "margin", "mean_reward", "min_reward", "max_reward"),
    "dpo": (
        *("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected"),
        *("logps/chosen", "logps/rejected", "logits/chosen", "logits/rejected"),
        *("entropy", "mean_token_accuracy"),
    ),
    "ppo": (
        *("objective/scores", "objective/rlhf_reward", "objective/kl", "objective/entropy"),
        *("objective/non_score_reward", "policy/entropy_avg", "val/num_eos_tokens"),
        *("completions/mean_length", "rewards/..."),
    ),
}
"""Metrics of the evaluations during training, of which one can select the best checkpoint.

A name that ends in `...` stands for all names that begin so.
"""


def value_problems(instances: Sequence[Any], keys: Collection[str]) -> Iterator[str]:
    """Yield the message of every rule that the values of a training recipe break.

    Args:
        keys: The keys that the recipe itself sets.
    """
    return broken_rule_messages(RULES, instances, keys)


def _no_step_is_taken(values: Any) -> bool:
    if values.max_steps >= 0:
        return bool(values.max_steps == 0)
    return getattr(values, "total_episodes", None) is None and not values.num_train_epochs > 0


# Length of the run and learning rate.
LENGTH = (
    above_zero("learning_rate", ALL, "with which nothing is learned."),
    Rule(
        ALL,
        lambda v: not isfinite(v.learning_rate),
        "`learning_rate` is {learning_rate}, which makes every weight NaN. Give about 1e-5.",
    ),
    Rule(
        ALL,
        _no_step_is_taken,
        "`max_steps` is {max_steps} and `num_train_epochs` {num_train_epochs}, so no step is "
        "taken and nothing is learned. Give a number above 0 for one of them.",
    ),
)

# Optimizer, seeds and the order of the rows.
OPTIMIZER = (
    at_least("weight_decay", 0, ALL, "which makes every weight grow without limit."),
    above_zero("adam_epsilon", ALL, "with which Adam divides by zero where a gradient is 0."),
    between("adam_beta1", 0, 0.99999, ALL, "which is not the decay rate of a running average."),
    between("adam_beta2", 0, 0.999999, ALL, "which is not the decay rate of a running average."),
    at_least("max_grad_norm", 0, ALL, "which is not a norm (0 turns clipping off)."),
    between("seed", 0, 2**32 - 1, ALL, "which numpy does not accept as a seed."),
    between("data_seed", 0, 2**32 - 1, ALL, "which numpy does not accept as a seed."),
    Rule(
        ALL,
        lambda v: v.optim_args is not None and not all("=" in a for a in v.optim_args.split(",")),
        "`optim_args` is {optim_args}, which is not of the form `name=value,name=value`.",
    ),
    Rule(
        ALL,
        lambda v: v.train_sampling_strategy == "group_by_length",
        "`train_sampling_strategy` is group_by_length, which needs a column of lengths that TRL's "
        "rows do not have. Leave it out: with `prefix_sharing` batches have no padding to save.",
    ),
    Rule(
        ALL,
        lambda v: v.train_sampling_strategy == "batch_rebalance",
        "`train_sampling_strategy` is batch_rebalance, which makes micro-batches of unequal size. "
        "The loss is a mean over a micro-batch, so rows in a small one would count for more. Leave "
        "it out.",
    ),
)


def _follows_a_metric(values: Any) -> bool:
    return (
        values.load_best_model_at_end
        or values.save_strategy == "best"
        or values.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
    )


def _follows_an_unknown_metric(names: Sequence[str], values: Any) -> bool:
    if not _follows_a_metric(values) or values.metric_for_best_model is None:
        return False
    metric = values.metric_for_best_model.removeprefix("eval_")
    prefixes = tuple(name.removesuffix("...") for name in names if name.endswith("..."))
    return metric not in {"loss", *names} and not (prefixes and metric.startswith(prefixes))


# Evaluations during training, checkpoints and logs.
EVALUATIONS = (
    at_least("eval_accumulation_steps", 1, ALL, "the number of batches to accumulate."),
    Rule(
        GRPO,
        lambda v: v.eval_strategy != "no" or v.eval_on_start,
        "`eval_strategy` is {eval_strategy.value} and `eval_on_start` {eval_on_start}, but GRPO "
        "has no held-out prompts during training: evaluate.py compares the policies on them. Leave "
        "both out.",
    ),
    Rule(
        ALL,
        lambda v: _follows_a_metric(v) and v.eval_strategy == "no",
        "`save_strategy` is {save_strategy.value}, `lr_scheduler_type` {lr_scheduler_type.value} "
        "and `load_best_model_at_end` {load_best_model_at_end}. One of them needs a metric of "
        "evaluations, and `eval_strategy` is no. Set `eval_strategy: steps` and `eval_steps`, or "
        "leave them out (GRPO has no evaluations).",
    ),
    Rule(
        PPO,
        lambda v: _follows_a_metric(v) and v.metric_for_best_model in (None, "loss", "eval_loss"),
        "`metric_for_best_model` is {metric_for_best_model}, and PPO's evaluations measure no "
        "loss. Name one of their metrics, such as `objective/scores`, with "
        "`greater_is_better: true`.",
    ),
    *(
        Rule(
            (stage,),
            partial(_follows_an_unknown_metric, names),
            "`metric_for_best_model` is {metric_for_best_model}, which the evaluations of the "
            f"stage {{stage}} do not measure. Name one of {', '.join(names)}.",
        )
        for stage, names in EVALUATION_METRICS.items()
    ),
    Rule(
        ALL,
        lambda v: v.save_strategy == "best" and v.metric_for_best_model is None,
        "`save_strategy` is best and `metric_for_best_model` is not set, so no checkpoint is the "
        "best. Name a metric of the evaluations, such as `eval_loss`.",
    ),
    Rule(
        ALL,
        lambda v: v.eval_strategy == "steps" and v.eval_steps < 0,
        "`eval_steps` is {eval_steps}, which is not a number of steps. Give a number above 0.",
    ),
    Rule(
        ALL,
        lambda v: v.save_strategy == "steps" and not v.save_steps > 0,
        "`save_steps` is {save_steps}, which is not a number of steps. Give a number above 0, or "
        "`save_strategy: no`.",
    ),
    Rule(
        ALL,
        lambda v: v.logging_strategy == "steps" and v.logging_steps < 0,
        "`logging_steps` is {logging_steps}, which is not a number of steps. Give a number above "
        "0.",
    ),
)

# Keys of transformers and TRL that a stage ignores.
UNUSED = (
    unused("label_smoothing_factor", ALL, "DPO has `label_smoothing`; leave it out elsewhere."),
    unused("model_init_kwargs", TRL, "Use `dtype`, `attn_implementation`, `model_revision`."),
    unused(
        "chat_template_path", ("sft", "reward"), "Use `chat_template`, the path of a Jinja file."
    ),
    unused("resume_from_checkpoint", ALL, "A run continues from its last checkpoint by itself."),
    unused("do_train", ALL, "The stage trains; `--plan` prints without training.", (True,)),
    unused("do_predict", ALL, "evaluate.py samples from the trained models.", (False,)),
    unused("local_rank", ALL, "Leave it out: `accelerate launch` sets it."),
    unused("hub_strategy", ALL, "The finished adapter is pushed, once.", ("end", "every_save")),
    unused("hub_always_push", ALL, "The finished adapter is pushed, once.", (False,)),
    unused("hub_revision", ALL, "Leave it out: the adapter is pushed to the main branch."),
    unused("num_generations_eval", GRPO, "Leave it out: GRPO has no evaluations in training."),
    unused("max_tool_calling_iterations", GRPO, "Leave it out: there are no tools."),
    Rule(
        TRL,
        lambda v: v.trust_remote_code,
        "`trust_remote_code` is true, but no code from the Hub is run here, and the later stages "
        "could not open the model. Leave it out, and use a base that transformers has a class for.",
    ),
    Rule(
        ALL,
        lambda v: v.optim_target_modules and not ("galore" in v.optim or "apollo" in v.optim),
        "`optim_target_modules` is {optim_target_modules}, and the optimizer {optim.value} does "
        "not use it. Leave it out.",
    ),
    Rule(
        ALL,
        lambda v: (
            {"bnb_4bit_quant_storage", "use_bnb_nested_quant"} & v.given_keys and not v.load_in_4bit
        ),
        "Keys that begin with `bnb_4bit` or `use_bnb` are set, but `load_in_4bit` is false, so "
        "nothing is quantized to 4 bits. Set `load_in_4bit: true`, or leave them out.",
    ),
)

# Features of transformers, TRL and accelerate that a stage cannot combine with its own.
FEATURES = (
    at_least("dataloader_num_workers", 0, ALL, "which is not a number of processes."),
    Rule(
        ALL,
        lambda v: v.dataloader_persistent_workers and v.dataloader_num_workers == 0,
        "`dataloader_persistent_workers` is true and `dataloader_num_workers` is 0, so there is no "
        "worker to keep. Raise `dataloader_num_workers`, or leave it out.",
    ),
    Rule(
        TRL,
        lambda v: v.ignore_data_skip,
        "`ignore_data_skip` is true, with which a resumed run starts its epoch again: some rows "
        "would be used twice and others never. Leave it out.",
    ),
    Rule(
        OFFLINE,
        lambda v: not v.accelerator_config.use_seedable_sampler,
        "`accelerator_config` has use_seedable_sampler false, with which a resumed run draws "
        "another order of the rows: some would be used twice and others never. Leave it out.",
    ),
    Rule(
        ONLINE,
        lambda v: v.accelerator_config.dispatch_batches,
        "`accelerator_config` has dispatch_batches, which needs tensors, and a batch of prompts is "
        "text. Leave it out.",
    ),
    Rule(
        TRL,
        lambda v: v.neftune_noise_alpha is not None and v.prefix_sharing,
        "`neftune_noise_alpha` is {neftune_noise_alpha}, which adds different noise to each row, "
        "and `prefix_sharing` computes what rows have in common once. Leave it out, or set "
        "`prefix_sharing: false`.",
    ),
    Rule(
        ALL,
        lambda v: v.use_liger_kernel and v.prefix_sharing,
        "`use_liger_kernel` is true, and it replaces the same layers as `prefix_sharing`. Leave it "
        "out, or set `prefix_sharing: false`.",
    ),
    Rule(
        PPO,
        lambda v: v.neftune_noise_alpha is not None,
        "`neftune_noise_alpha` is {neftune_noise_alpha}, and it would add noise to the embeddings "
        "that all roles of PPO share. Leave it out.",
    ),
    Rule(
        PPO,
        lambda v: bool(v.debug),
        "`debug` is {debug}, whose hooks cannot read the inputs of PPO's roles. Leave it out.",
    ),
    Rule(
        OFFLINE,
        lambda v: v.activation_offloading and v.use_cpu,
        "`activation_offloading` is true and `use_cpu` too, so there is no accelerator to offload "
        "from. Leave one of them out.",
    ),
)

# LoRA.
ADAPTER = (
    between("lora_dropout", 0, 0.99, ALL, "which is not a probability, or drops every input."),
    Rule(
        ALL,
        lambda v: v.lora_alpha == 0,
        "`lora_alpha` is 0, and the adapter's output is multiplied by it, so nothing is learned. "
        "Give about twice `lora_r`.",
    ),
    Rule(
        ("reward", "dpo", "grpo", "ppo"),
        lambda v: (
            "lora_dropout" in v.given_keys
            and v.lora_dropout > 0
            and getattr(v, "disable_dropout", True)
        ),
        "`lora_dropout` is {lora_dropout}, but the stage {stage} turns dropout off, LoRA's "
        "included (`disable_dropout`; always in PPO). Give 0, or leave it out.",
    ),
    Rule(
        REWARD,
        lambda v: v.lora_task_type != "SEQ_CLS",
        "`lora_task_type` is {lora_task_type}, with which the reward model's head is not saved. "
        "Set `lora_task_type: SEQ_CLS`.",
    ),
    Rule(
        ("sft", *POLICIES),
        lambda v: v.lora_task_type != "CAUSAL_LM",
        "`lora_task_type` is {lora_task_type}, but a policy is a causal language model. Set "
        "`lora_task_type: CAUSAL_LM`, or leave it out.",
    ),
)

RULES = (*LENGTH, *OPTIMIZER, *EVALUATIONS, *UNUSED, *FEATURES, *ADAPTER, *METHODS)
