"""The rules of each method's own keys: see `value_rules`."""

from typing import Any

from rlhf_recipes.rules.kinds import (
    DPO,
    GRPO,
    PAIRS,
    REWARD,
    TRL,
    Rule,
    below,
    not_above_zero,
    outside,
    unknown,
)

LOSSES = {
    "dpo": (
        *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"),
        *("aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
    ),
    "grpo": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
}
SMOOTHED = ("exo_pair", "robust", "aot", "aot_unpaired")
"""Losses of DPO that read `label_smoothing`."""


def _uneven_smoothing(values: Any) -> bool:
    top = 0.5 if "robust" in values.loss_type else 1.0
    return not 0 <= values.label_smoothing < top


PAIR_METHODS = (
    Rule(
        TRL,
        lambda v: isinstance(v.pad_to_multiple_of, int) and v.pad_to_multiple_of < 1,
        "`pad_to_multiple_of` is {pad_to_multiple_of}, of which no length is a multiple. Give at "
        "least 1, or leave it out.",
    ),
    below("dataset_num_proc", 0, PAIRS, "which is no number of processes."),
    below("center_rewards_coefficient", 0, REWARD, "which drives rewards away from 0."),
    unknown("loss_type", LOSSES["dpo"], DPO),
    Rule(
        DPO,
        lambda v: not v.beta > 0 and set(v.loss_type) != {"sft"},
        "`beta` is {beta}, with which the loss does not depend on the policy, or rewards the "
        "rejected answers. Give a number above 0; 0.1 is usual.",
    ),
    Rule(
        DPO,
        lambda v: (
            v.loss_weights is not None
            and not (all(w >= 0 for w in v.loss_weights) and any(v.loss_weights))
        ),
        "`loss_weights` is {loss_weights}, under which nothing is learned, or the opposite of a "
        "loss. Give weights of at least 0, of which one is not 0.",
    ),
    Rule(
        DPO,
        lambda v: v.label_smoothing and not {*v.loss_type} & {*SMOOTHED},
        "`label_smoothing` is {label_smoothing}, and the loss {loss_type} does not look at it. Use "
        "`loss_type: robust`, or leave it out.",
    ),
    Rule(
        DPO,
        _uneven_smoothing,
        "`label_smoothing` is {label_smoothing}, a probability that a pair is the wrong way round. "
        "Give a number from 0 to below 0.5.",
    ),
    Rule(
        DPO,
        lambda v: "exo_pair" in v.loss_type and v.label_smoothing == 0,
        "`loss_type` has exo_pair and `label_smoothing` is 0, of which it takes the logarithm. "
        "Give `label_smoothing: 1e-3`, as its paper does.",
    ),
    Rule(
        DPO,
        lambda v: "discopop" in v.loss_type and not v.discopop_tau > 0,
        "`discopop_tau` is {discopop_tau}, by which the loss divides. Give a number above 0.",
    ),
    unknown(
        "f_divergence_type",
        ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
        DPO,
    ),
    outside("ld_alpha", 0, 1, DPO, "which is no fraction of the log-probabilities."),
    Rule(
        ("dpo", "grpo"),
        lambda v: v.sync_ref_model,
        "`sync_ref_model` is true, and the reference is the base with the adapter off, which does "
        "not change. Leave it out.",
    ),
)

SAMPLING = (
    not_above_zero(
        "temperature",
        GRPO,
        "at which all completions of a prompt are the same and no advantage is left.",
    ),
    Rule(
        GRPO,
        lambda v: v.max_completion_length is None,
        "`max_completion_length` is null, and a completion has to end. Give a number of tokens.",
    ),
    outside("top_p", 1e-6, 1, GRPO, "which is no probability, or leaves one token."),
    outside("min_p", 0, 1, GRPO, "which is no fraction of the best token's probability."),
    below("top_k", 0, GRPO, "which is no number of tokens (0 keeps all)."),
    not_above_zero("repetition_penalty", GRPO, "by which logits are divided."),
    Rule(
        GRPO,
        lambda v: v.use_transformers_continuous_batching and v.prefix_sharing,
        "`use_transformers_continuous_batching` is true, which needs an attention of its own, and "
        "`prefix_sharing` has another. Leave it out, or set `prefix_sharing: false`.",
    ),
    Rule(
        GRPO,
        lambda v: v.log_completions_hub_repo is not None,
        "`log_completions_hub_repo` is {log_completions_hub_repo}, a data set that TRL publishes "
        "during training. Leave it out: completions/*.parquet are in the run folder.",
    ),
)

GROUPS = (
    below("beta", 0, GRPO, "which drives the policy away from the reference."),
    below("num_iterations", 1, GRPO, "and each batch is used that many times."),
    below("steps_per_generation", 1, GRPO, "and each generation serves that many steps."),
    not_above_zero("epsilon", GRPO, "with which every ratio is clipped or none can pass."),
    not_above_zero("epsilon_high", GRPO, "with which every ratio is clipped or none can pass."),
    Rule(
        GRPO,
        lambda v: v.delta is not None and not v.delta > 1,
        "`delta` is {delta}, the largest ratio of new to old probability, which begins at 1, so "
        "that nothing is learned. Give more than 1 + `epsilon`, or leave it out.",
    ),
    outside("top_entropy_quantile", 1e-6, 1, GRPO, "which is no fraction of the tokens."),
    unknown("loss_type", LOSSES["grpo"], GRPO),
    unknown("importance_sampling_level", ("token", "sequence"), GRPO),
    unknown("scale_rewards", ("group", "batch", "none"), GRPO),
    unknown("multi_objective_aggregation", ("sum_then_normalize", "normalize_then_sum"), GRPO),
)

METHODS = (*PAIR_METHODS, *SAMPLING, *GROUPS)
