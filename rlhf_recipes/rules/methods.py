"""Rules for the keys of one training method; `values` has those that the stages share.

To add one, put it under the heading of its method: see `values`.
"""

from typing import Any

from rlhf_recipes.rules.kinds import (
    DPO,
    GRPO,
    OFFLINE,
    REWARD,
    SFT,
    TRL,
    Rule,
    above_zero,
    at_least,
    between,
    one_of,
    unused,
)

LOSSES = {
    "dpo": (
        *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"),
        *("aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
    ),
    "grpo": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
}
SMOOTHED = ("exo_pair", "robust", "aot", "aot_unpaired")
"""Losses of DPO that use `label_smoothing`."""


def _is_no_smoothing(values: Any) -> bool:
    limit = 0.5 if "robust" in values.loss_type else 1.0
    return not 0 <= values.label_smoothing < limit


DATA_TRAINERS = (
    at_least("dataset_num_proc", 0, OFFLINE, "which is not a number of processes."),
    Rule(
        TRL,
        lambda v: isinstance(v.pad_to_multiple_of, int) and v.pad_to_multiple_of < 1,
        "`pad_to_multiple_of` is {pad_to_multiple_of}, and no length is a multiple of it. Give at "
        "least 1, or leave it out.",
    ),
)

SFT_RULES = (
    Rule(
        SFT,
        lambda v: v.packing or v.eval_packing or v.padding_free,
        "`packing` is {packing}, `eval_packing` {eval_packing} and `padding_free` {padding_free}, "
        "which lay rows out in one sequence, as only FlashAttention can read them. Leave them out.",
    ),
    Rule(
        SFT,
        lambda v: v.completion_only_loss is False,
        "`completion_only_loss` is false, with which the prompts are learned too, but a policy "
        "writes completions only. Leave it out.",
    ),
    unused(
        "assistant_only_loss",
        SFT,
        "Leave it out: the loss covers the completion, the assistant's last turn.",
        (False,),
    ),
    unused("dataset_text_field", SFT, "Leave it out: prepared data has a prompt and completions."),
    unused("dataset_kwargs", SFT, "Leave it out: the prepared data is tokenized here."),
)

REWARD_MODEL = (
    at_least("center_rewards_coefficient", 0, REWARD, "which drives rewards away from 0."),
)

DPO_LOSS = (
    one_of("loss_type", LOSSES["dpo"], DPO),
    one_of(
        "f_divergence_type",
        ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
        DPO,
    ),
    between("ld_alpha", 0, 1, DPO, "which is not a fraction of the log-probabilities."),
    Rule(
        DPO,
        lambda v: not v.beta > 0 and set(v.loss_type) != {"sft"},
        "`beta` is {beta}. At 0 the loss does not depend on the policy, and below 0 it rewards "
        "the rejected completions. Give a number above 0; 0.1 is usual.",
    ),
    Rule(
        DPO,
        lambda v: (
            v.loss_weights is not None
            and not (all(w >= 0 for w in v.loss_weights) and any(v.loss_weights))
        ),
        "`loss_weights` is {loss_weights}, with which nothing is learned or a loss is maximized. "
        "Give weights of at least 0, not all of them 0.",
    ),
    Rule(
        DPO,
        lambda v: v.label_smoothing and not {*v.loss_type} & {*SMOOTHED},
        "`label_smoothing` is {label_smoothing}, and the loss {loss_type} does not use it. Set "
        "`loss_type: robust`, or leave it out.",
    ),
    Rule(
        DPO,
        _is_no_smoothing,
        "`label_smoothing` is {label_smoothing}, which must be a probability that a pair is "
        "mislabeled. Give a number from 0 to below 0.5.",
    ),
    Rule(
        DPO,
        lambda v: "exo_pair" in v.loss_type and v.label_smoothing == 0,
        "`loss_type` includes exo_pair and `label_smoothing` is 0, of which that loss takes the "
        "logarithm. Set `label_smoothing: 1e-3`, as in its paper.",
    ),
    Rule(
        DPO,
        lambda v: "discopop" in v.loss_type and not v.discopop_tau > 0,
        "`discopop_tau` is {discopop_tau}, and the loss divides by it. Give a number above 0.",
    ),
    Rule(
        ("dpo", "grpo"),
        lambda v: v.sync_ref_model,
        "`sync_ref_model` is true, but the reference is frozen: the base without the adapter, or a "
        "copy of the one in `sft_model_path`. Leave it out.",
    ),
)

GRPO_SAMPLING = (
    above_zero(
        "temperature",
        GRPO,
        "with which all completions of a prompt are the same and every advantage is 0.",
    ),
    above_zero("repetition_penalty", GRPO, "and logits are divided by it."),
    at_least("top_k", 0, GRPO, "which is not a number of tokens (0 keeps all)."),
    between("top_p", 1e-6, 1, GRPO, "which is not a probability, or keeps a single token."),
    between("min_p", 0, 1, GRPO, "which is not a fraction of the highest probability."),
    Rule(
        GRPO,
        lambda v: v.max_completion_length is None,
        "`max_completion_length` is null, and completions need a limit. Give a number of tokens.",
    ),
    Rule(
        GRPO,
        lambda v: v.use_transformers_continuous_batching and v.prefix_sharing,
        "`use_transformers_continuous_batching` is true, which needs another attention "
        "implementation than `prefix_sharing`. Leave it out, or set `prefix_sharing: false`.",
    ),
    Rule(
        GRPO,
        lambda v: v.log_completions_hub_repo is not None,
        "`log_completions_hub_repo` is {log_completions_hub_repo}, a dataset that TRL publishes "
        "during training. Leave it out: completions/*.parquet are in the run folder.",
    ),
)

GRPO_LOSS = (
    one_of("loss_type", LOSSES["grpo"], GRPO),
    one_of("importance_sampling_level", ("token", "sequence"), GRPO),
    one_of("scale_rewards", ("group", "batch", "none"), GRPO),
    one_of("multi_objective_aggregation", ("sum_then_normalize", "normalize_then_sum"), GRPO),
    at_least("beta", 0, GRPO, "which drives the policy away from the reference."),
    at_least("num_iterations", 1, GRPO, "the number of times that a batch is used."),
    at_least("steps_per_generation", 1, GRPO, "the number of steps that a generation is used for."),
    above_zero("epsilon", GRPO, "with which every ratio is clipped, or none is allowed."),
    above_zero("epsilon_high", GRPO, "with which every ratio is clipped, or none is allowed."),
    between("top_entropy_quantile", 1e-6, 1, GRPO, "which is not a fraction of the tokens."),
    Rule(
        GRPO,
        lambda v: v.delta is not None and not v.delta > 1,
        "`delta` is {delta}, the upper limit of the probability ratio, which starts at 1, so that "
        "nothing is learned. Give more than 1 + `epsilon`, or leave it out.",
    ),
)

METHODS = (*DATA_TRAINERS, *SFT_RULES, *REWARD_MODEL, *DPO_LOSS, *GRPO_SAMPLING, *GRPO_LOSS)
