"""Values of the right type that crash later, are not looked at, or teach nothing: one table.

A recipe is checked against it as it is read, so that `--plan` and the run refuse it in the same
words, together with every other problem of the recipe.
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from math import isfinite
from types import SimpleNamespace
from typing import Any

from rlhf_recipes.rules.kinds import (
    ALL,
    GRPO,
    ONLINE,
    PAIRS,
    PPO,
    REWARD,
    TRL,
    Rule,
    below,
    not_above_zero,
    outside,
    unread,
)
from rlhf_recipes.rules.methods import METHODS

STAGES = {"RewardConfig": "reward", "DPOConfig": "dpo", "GRPOConfig": "grpo", "PPOConfig": "ppo"}
"""Stage of each class of trainer arguments."""

MEASURED = {
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
"""Metrics of each stage's evaluations, that a best checkpoint can be told by."""


def value_problems(instances: Sequence[Any], keys: Collection[str]) -> Iterator[str]:
    """Yield the sentence of each rule that a training recipe breaks.

    Args:
        keys: The keys that the recipe itself sets.
    """
    return _broken(RULES, instances, keys)


def package_problems(instances: Sequence[Any]) -> Iterator[str]:
    """Yield the sentence of each rule on packages that a recipe breaks on this machine."""
    return _broken(PACKAGES, instances, ())


def _broken(
    rules: Sequence[Rule], instances: Sequence[Any], keys: Collection[str]
) -> Iterator[str]:
    stage = next((STAGES[n] for i in instances if (n := type(i).__name__) in STAGES), None)
    values: dict[str, Any] = {}
    for instance in instances:
        values |= {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance)}
    if stage is None or not values.keys() >= {"prefix_sharing", "use_peft"}:
        return  # an evaluation, data, or a part of a recipe
    values["keys"] = set(keys)
    for rule in rules:
        if stage in rule.stages and rule.wrong(SimpleNamespace(**values)):
            yield rule.sentence.format(stage=stage, **values)


def _follows_a_metric(values: Any) -> bool:
    return (
        values.load_best_model_at_end
        or values.save_strategy == "best"
        or values.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
    )


def _follows_another(names: Sequence[str], values: Any) -> bool:
    if not _follows_a_metric(values) or values.metric_for_best_model is None:
        return False
    name = values.metric_for_best_model.removeprefix("eval_")
    parts = tuple(known.removesuffix("...") for known in names if known.endswith("..."))
    return name not in {"loss", *names} and not (parts and name.startswith(parts))


# Imported when called: these libraries look for a GPU, which `--help` need not wait for.
def _without_tracker(values: Any) -> bool:
    from transformers.integrations.integration_utils import get_available_reporting_integrations

    return not set(values.report_to) <= {*get_available_reporting_integrations()}


def _without_bitsandbytes(values: Any) -> bool:
    from transformers.utils.import_utils import is_bitsandbytes_available

    return (values.load_in_4bit or values.load_in_8bit) and not is_bitsandbytes_available()


def _without_liger(values: Any) -> bool:
    from transformers.utils.import_utils import is_liger_kernel_available

    unknown_model = hasattr(values, "num_ppo_epochs")
    return values.use_liger_kernel and (unknown_model or not is_liger_kernel_available())


def _without_flash_attention(values: Any) -> bool:
    from transformers.utils.import_utils import is_flash_attn_2_available

    wanted = values.attn_implementation == "flash_attention_2"
    return wanted and not is_flash_attn_2_available()


def _length_is_zero(values: Any) -> bool:
    if values.max_steps >= 0:
        return bool(values.max_steps == 0)
    return getattr(values, "total_episodes", None) is None and not values.num_train_epochs > 0


LENGTH = (
    Rule(
        ALL,
        _length_is_zero,
        "`max_steps` is {max_steps} and `num_train_epochs` {num_train_epochs}, so that no step is "
        "taken and nothing is learned. Give one of them above 0.",
    ),
    not_above_zero("learning_rate", ALL, "with which nothing is learned."),
    Rule(
        ALL,
        lambda v: not isfinite(v.learning_rate),
        "`learning_rate` is {learning_rate}, after which no weight is a number. Give about 1e-5.",
    ),
)

OPTIMIZER = (
    below("weight_decay", 0, ALL, "which grows every weight without end."),
    not_above_zero("adam_epsilon", ALL, "with which Adam divides by zero where gradients are 0."),
    outside("adam_beta1", 0, 0.99999, ALL, "which is no decay of an average."),
    outside("adam_beta2", 0, 0.999999, ALL, "which is no decay of an average."),
    below("max_grad_norm", 0, ALL, "which is no length of a gradient (0 leaves it as it is)."),
    Rule(
        ALL,
        lambda v: v.optim_args is not None and not all("=" in a for a in v.optim_args.split(",")),
        "`optim_args` is {optim_args}, which is not of the form `name=value,name=value`.",
    ),
    Rule(
        ALL,
        lambda v: v.train_sampling_strategy == "group_by_length",
        "`train_sampling_strategy` is group_by_length, which looks for lengths that TRL's rows do "
        "not have. Leave it out: with `prefix_sharing` batches have no padding that an order of "
        "the rows could save.",
    ),
    Rule(
        ALL,
        lambda v: v.train_sampling_strategy == "batch_rebalance",
        "`train_sampling_strategy` is batch_rebalance, which makes micro-batches of unequal size; "
        "a loss is a mean over its micro-batch, so that rows in a small one would count for more. "
        "Leave it out.",
    ),
    outside("seed", 0, 2**32 - 1, ALL, "which numpy takes for no seed."),
    outside("data_seed", 0, 2**32 - 1, ALL, "which numpy takes for no seed."),
)

METRICS = (
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
        "and `load_best_model_at_end` {load_best_model_at_end}, which follow a metric of "
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
            partial(_follows_another, names),
            "`metric_for_best_model` is {metric_for_best_model}, which the evaluations of the "
            f"stage {{stage}} do not measure. Name one of {', '.join(names)}.",
        )
        for stage, names in MEASURED.items()
    ),
    Rule(
        ALL,
        lambda v: v.save_strategy == "best" and v.metric_for_best_model is None,
        "`save_strategy` is best and `metric_for_best_model` is not given, so there is no best. "
        "Name a metric of the evaluations, such as `eval_loss`.",
    ),
    Rule(
        ALL,
        lambda v: v.eval_strategy == "steps" and v.eval_steps < 0,
        "`eval_steps` is {eval_steps}, which is no number of steps. Give a number above 0.",
    ),
    below("eval_accumulation_steps", 1, ALL, "by which batches are counted."),
    Rule(
        ALL,
        lambda v: v.save_strategy == "steps" and not v.save_steps > 0,
        "`save_steps` is {save_steps}, after which no checkpoint is due. Give a number above 0, or "
        "`save_strategy: no`.",
    ),
    Rule(
        ALL,
        lambda v: v.logging_strategy == "steps" and v.logging_steps < 0,
        "`logging_steps` is {logging_steps}, which is no number of steps. Give a number above 0.",
    ),
)

UNREAD = (
    unread("label_smoothing_factor", ALL, "DPO has `label_smoothing`; leave it out elsewhere."),
    unread("model_init_kwargs", TRL, "Use `dtype`, `attn_implementation`, `model_revision`."),
    Rule(
        TRL,
        lambda v: v.trust_remote_code,
        "`trust_remote_code` is true, but no code from the Hub is run here, and the later stages "
        "could not open the model. Leave it out, and take a base that transformers has a class of.",
    ),
    unread("chat_template_path", REWARD, "Use `chat_template`, the path of a Jinja file."),
    unread("resume_from_checkpoint", ALL, "A run goes on from its last checkpoint by itself."),
    unread("do_train", ALL, "The stage trains; `--plan` prints without training.", (True,)),
    unread("do_predict", ALL, "evaluate.py samples from the trained models.", (False,)),
    unread("local_rank", ALL, "Leave it out: `accelerate launch` numbers the processes."),
    Rule(
        ALL,
        lambda v: v.optim_target_modules and not ("galore" in v.optim or "apollo" in v.optim),
        "`optim_target_modules` is {optim_target_modules}, and the optimizer {optim.value} does "
        "not look at it. Leave it out.",
    ),
    unread("hub_strategy", ALL, "The finished adapter is pushed, once.", ("end", "every_save")),
    unread("hub_always_push", ALL, "The finished adapter is pushed, once.", (False,)),
    unread("hub_revision", ALL, "Leave it out: the adapter is pushed to the main branch."),
    unread("num_generations_eval", GRPO, "Leave it out: GRPO has no evaluations in training."),
    unread("max_tool_calling_iterations", GRPO, "Leave it out: there are no tools."),
    Rule(
        ALL,
        lambda v: (
            {"bnb_4bit_quant_storage", "use_bnb_nested_quant"} & v.keys and not v.load_in_4bit
        ),
        "Keys that begin with `bnb_4bit` or `use_bnb` are given, and `load_in_4bit` is false, so "
        "that nothing is quantized to 4 bits. Set `load_in_4bit: true`, or leave them out.",
    ),
)

LIBRARIES = (
    Rule(
        TRL,
        lambda v: v.ignore_data_skip,
        "`ignore_data_skip` is true, with which a run that goes on from a checkpoint begins its "
        "epoch again: some rows would be seen twice and others never. Leave it out.",
    ),
    Rule(
        PAIRS,
        lambda v: not v.accelerator_config.use_seedable_sampler,
        "`accelerator_config` has use_seedable_sampler false, with which the order of the rows is "
        "drawn otherwise when a run goes on from a checkpoint: some would be seen twice and others "
        "never. Leave it out.",
    ),
    Rule(
        PPO,
        lambda v: v.neftune_noise_alpha is not None,
        "`neftune_noise_alpha` is {neftune_noise_alpha}, and PPO's roles share the embeddings "
        "that it would add noise to. Leave it out.",
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
        "`use_liger_kernel` is true, and it replaces the layers that `prefix_sharing` replaces "
        "too. Leave it out, or set `prefix_sharing: false`.",
    ),
    Rule(
        PPO,
        lambda v: bool(v.debug),
        "`debug` is {debug}, whose hooks cannot read the inputs of PPO's roles. Leave it out.",
    ),
    Rule(
        ONLINE,
        lambda v: v.accelerator_config.dispatch_batches,
        "`accelerator_config` has dispatch_batches, which wants tensors, and a batch of prompts is "
        "text. Leave it out.",
    ),
    below("dataloader_num_workers", 0, ALL, "which is no number of processes."),
    Rule(
        ALL,
        lambda v: v.dataloader_persistent_workers and v.dataloader_num_workers == 0,
        "`dataloader_persistent_workers` is true and `dataloader_num_workers` 0, so there is none "
        "to keep. Give workers, or leave it out.",
    ),
    Rule(
        PAIRS,
        lambda v: v.activation_offloading and v.use_cpu,
        "`activation_offloading` is true, and there is no accelerator to offload from. Leave it "
        "out on a CPU.",
    ),
)

ADAPTER = (
    Rule(
        ALL,
        lambda v: v.lora_alpha == 0,
        "`lora_alpha` is 0, by which the adapter's output is multiplied, so that nothing is "
        "learned. Give about twice `lora_r`.",
    ),
    Rule(
        ALL,
        lambda v: (
            "lora_dropout" in v.keys and v.lora_dropout > 0 and getattr(v, "disable_dropout", True)
        ),
        "`lora_dropout` is {lora_dropout}, and dropout is off in the stage {stage} "
        "(`disable_dropout`, always in PPO), LoRA's too. Give 0, or leave it out.",
    ),
    outside("lora_dropout", 0, 0.99, ALL, "which is no probability, or drops every input."),
    Rule(
        REWARD,
        lambda v: v.lora_task_type != "SEQ_CLS",
        "`lora_task_type` is {lora_task_type}, with which the reward model's head is not saved. "
        "Set `lora_task_type: SEQ_CLS`.",
    ),
    Rule(
        ("dpo", "grpo", "ppo"),
        lambda v: v.lora_task_type != "CAUSAL_LM",
        "`lora_task_type` is {lora_task_type}, and a policy is a language model. Set "
        "`lora_task_type: CAUSAL_LM`, or leave it out.",
    ),
)

PACKAGES = (
    Rule(
        ALL,
        _without_tracker,
        "`report_to` names {report_to}, of which not all are installed. Install the packages, or "
        "leave the key out: training_<stage>.log and training_curves.png are written without.",
    ),
    Rule(
        ALL,
        _without_bitsandbytes,
        "`load_in_4bit` is {load_in_4bit} and `load_in_8bit` {load_in_8bit}, for which "
        "bitsandbytes is needed and not installed. `pip install bitsandbytes`, or leave them out.",
    ),
    Rule(
        ALL,
        _without_flash_attention,
        "`attn_implementation` is flash_attention_2, and the package flash-attn is not installed "
        "or there is no GPU for it. Leave the key out: `sdpa` is the default.",
    ),
    Rule(
        ALL,
        _without_liger,
        "`use_liger_kernel` is true, and the package liger-kernel is not installed, or the stage "
        "{stage} has no model that it knows. Leave it out.",
    ),
)
"""Rules that other machines may keep: a recipe for them can be read here."""

RULES = (
    *LENGTH,
    *OPTIMIZER,
    *METRICS,
    *UNREAD,
    *LIBRARIES,
    *ADAPTER,
    *METHODS,
)
