"""Checks of a training stage's inputs, the same for `--plan` and for the run. None loads weights.

A check takes the stage's `Inputs` and raises RecipeError. The checks of a group in `GROUPS` run
together, and their messages are shown together. A group runs only if the groups before it found no
problem, so a check may rely on them.

To add a check, write its function and add it to a group with the stages it is for. A rule that
needs only the values of the recipe belongs in `rules.values` instead.
"""

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.folders import REPLACEMENT
from rlhf_recipes.hub.push import check_push, repo_name
from rlhf_recipes.inputs import Inputs
from rlhf_recipes.models.adapters import Adapter
from rlhf_recipes.models.architectures import check_dropout, check_router_loss, check_sampler
from rlhf_recipes.models.chat_templates import kwargs_differences
from rlhf_recipes.models.loading import Base, Precision, check_generation_config, classifier_config
from rlhf_recipes.models.lora import lora_config
from rlhf_recipes.models.optimizers import check_optimizer, check_warmup
from rlhf_recipes.models.starting import check_same_lora
from rlhf_recipes.models.weight_files import check_weight_files
from rlhf_recipes.preferences.truncation import check_context
from rlhf_recipes.reward_functions import REWARD_MODEL, check_functions, function_name
from rlhf_recipes.rules.kinds import ALL, GRPO, OFFLINE, ONLINE, POLICIES, PPO, REWARD
from rlhf_recipes.rules.packages import package_problems
from rlhf_recipes.runs.checkpoints import last_checkpoint
from rlhf_recipes.runs.locks import check_free
from rlhf_recipes.runs.run_folder import (
    RECORD,
    RunFolder,
    changes_since,
    check_continuation,
    finished,
)
from rlhf_recipes.sharding import check_unsharded
from rlhf_recipes.steps import check_held_out

Check = Callable[[Inputs], None]


def check_training(inputs: Inputs) -> None:
    """Run every check of the stage; raise RecipeError with all problems of the first bad group."""
    for group in GROUPS:
        run_checks(check for check, stages in group if inputs.stage in stages)(inputs)


def run_checks(checks: Iterable[Callable[[Any], None]]) -> Callable[[Any], None]:
    """Return one check that runs all of them and raises their messages as one RecipeError."""

    def check_all(subject: Any) -> None:
        problems = []
        for check in checks:
            try:
                check(subject)
            except RecipeError as error:
                if str(error) not in problems:  # several checks may open the same file
                    problems.append(str(error))
        if len(problems) == 1:
            raise RecipeError(problems[0])
        if problems:
            raise RecipeError("\n- ".join([f"There are {len(problems)} problems:", *problems]))

    return check_all


def check_adapters(inputs: Inputs) -> None:
    """Refuse full fine-tuning: every later stage opens the run folder as an adapter."""
    if not inputs.model.use_peft:
        raise RecipeError(
            "`use_peft` is false, but every stage trains LoRA adapters on a frozen base, and the "
            "later stages and the evaluation open adapters only. Set `use_peft: true`."
        )


def check_sharding(inputs: Inputs) -> None:
    """Refuse PPO under DeepSpeed and FSDP."""
    check_unsharded(inputs.training)


def check_processes(inputs: Inputs) -> None:
    """Refuse launched processes that are not connected: all would train alone in one folder."""
    started, world_size = int(os.getenv("WORLD_SIZE", "1")), inputs.training.world_size
    if started != world_size:
        raise RecipeError(
            f"{started} processes were started, but the world size of this one is {world_size}: "
            "each would train alone and write the same folder. On CPUs add the flag `--use_cpu`, "
            "as `make` does."
        )


def check_finished(inputs: Inputs) -> None:
    """Refuse to replace a finished run without `--overwrite`."""
    final = Path(inputs.training.output_dir)
    if not (final / REPLACEMENT / RECORD).is_file():  # else the new run only has to be moved
        RunFolder(final, inputs.recipe.overwrite)


def check_begun(inputs: Inputs) -> None:
    """Refuse a folder in use, or with checkpoints of other settings or inputs, in a plan only.

    The run makes the same checks once it holds the folder's lock.
    """
    final, recipe = Path(inputs.training.output_dir), inputs.recipe
    if not recipe.plan:
        return
    check_free(final)
    made_from = inputs.resolved, inputs.fingerprints
    if (final / REPLACEMENT / RECORD).is_file():
        if changes_since(final / REPLACEMENT, *made_from) and not recipe.overwrite:
            raise finished(final)
        return
    folder = RunFolder(final, overwrite=True).path
    if last_checkpoint(folder) is not None:
        check_continuation(folder, *made_from)


def check_packages(inputs: Inputs) -> None:
    """Refuse a recipe that needs a package that is not installed."""
    problems = list(package_problems((inputs.recipe, inputs.training, inputs.model)))
    if problems:
        raise RecipeError("\n- ".join(problems))


def check_tokenizer_opens(inputs: Inputs) -> None:
    """Refuse a tokenizer or a chat template that cannot be opened."""
    _ = inputs.tokenizer


def check_weights(inputs: Inputs) -> None:
    """Refuse missing or truncated weight files, and missing or misshapen tensors."""
    check_weight_files(inputs.language_model, Base.of(inputs.model))


def check_optimization(inputs: Inputs) -> None:
    """Refuse an optimizer or a learning-rate schedule that cannot be built."""
    check_optimizer(inputs.training, inputs.language_model)


def check_tokens(inputs: Inputs) -> None:
    """Refuse a `pad_token` or `eos_token` that is not in the vocabulary."""
    vocabulary = inputs.tokenizer.get_vocab()
    for key in ("pad_token", "eos_token"):
        token = getattr(inputs.training, key, None)
        if token is not None and token not in vocabulary:
            raise RecipeError(
                f"`{key}` is {token!r}, which is not a token of `{inputs.base}`. Leave it out, or "
                "give one of its tokens, spelled as in its vocabulary."
            )


def check_pushing(inputs: Inputs) -> None:
    """Refuse `push_to_hub` where the push at the end is known to fail."""
    training = inputs.training
    if training.push_to_hub:
        repo_id = training.hub_model_id or repo_name(Path(training.output_dir))
        check_push(repo_id, training.hub_token)


def check_reward_model(inputs: Inputs) -> None:
    """Refuse a reward model without a score, or trained on other text than it would score.

    PPO's adapter has the policy's base, tokenizer and template. GRPO's may have others of its own,
    but an argument that both templates have must have one value. A whole classifier has all of its
    own.
    """
    if (classifier := inputs.reward_classifier) is not None:
        check_weight_files(classifier.meta_model(), classifier.checkpoint)
        return
    adapter = inputs.reward_adapter
    if adapter is None:
        return
    _warn_of_precision(inputs.reward_precision, adapter, "reward_model_path")
    if inputs.stage == "ppo":
        _check_role(inputs, adapter, "reward_model_path")
    elif differences := kwargs_differences(inputs.tokenizer, adapter.tokenizer):
        raise RecipeError(
            f"The chat templates of `{inputs.base}` and `reward_model_path` ({adapter.folder}) "
            f"have other arguments: {'; '.join(differences)}. The reward model would score other "
            "text than it was trained on. Train both with the same `chat_template_kwargs`."
        )


def check_reward_functions(inputs: Inputs) -> None:
    """Refuse reward functions that cannot be imported, share a name, or do not fit the weights."""
    if inputs.reward is None:
        return
    names = [function_name(function) for function in inputs.reward_funcs]
    if inputs.reward.reward_model_path is not None:
        names.insert(0, REWARD_MODEL)
    check_functions(names, inputs.training.reward_weights)


def check_start(inputs: Inputs) -> None:
    """Refuse a start of another base or LoRA, or one that is not a language model's adapter."""
    if inputs.start is not None:
        inputs.start.check_policy()
        _warn_of_precision(Precision.read(vars(inputs.model)), inputs.start, "sft_model_path")
        _check_role(inputs, inputs.start, "sft_model_path")
        check_same_lora(inputs.start, lora_config(inputs.model), inputs.language_model)


def _check_role(inputs: Inputs, adapter: Adapter, key: str) -> None:
    """Refuse an adapter that was trained with another base, tokenizer or chat template."""
    adapter.check_base(Base.of(inputs.model))
    adapter.check_tokenizer(inputs.tokenizer, key)


def _warn_of_precision(precision: Precision, adapter: Adapter, key: str) -> None:
    if adapter.precision not in (None, precision):
        logging.getLogger(__name__).warning(
            "The base is held in %s, and `%s` (%s) was trained on one in %s: its outputs will "
            "differ slightly from those in its training.",
            precision,
            key,
            adapter.folder,
            adapter.precision,
        )


def check_sampled(inputs: Inputs) -> None:
    """Refuse a base that cannot generate with a key-value cache."""
    check_sampler(inputs.language_model)


def check_generation(inputs: Inputs) -> None:
    """Refuse a base whose generation_config.json cannot be read."""
    check_generation_config(Base.of(inputs.model))


def check_reward_class(inputs: Inputs) -> None:
    """Refuse a base whose architecture has no sequence classifier."""
    classifier_config(inputs.base, inputs.model.model_revision)


def check_experts(inputs: Inputs) -> None:
    """Refuse a mixture of experts whose router loss TRL would add but cannot compute."""
    check_router_loss(inputs.language_model, inputs.training.router_aux_loss_coef)


def check_dropout_off(inputs: Inputs) -> None:
    """Refuse a base with dropout if the recipe leaves dropout on."""
    if not inputs.training.disable_dropout:
        check_dropout(inputs.language_model)


def check_rows(inputs: Inputs) -> None:
    """Refuse data of which the stage can use no row."""
    _ = inputs.rows


def check_scored_prompts(inputs: Inputs) -> None:
    """Refuse prompts that a whole reward model cannot read, or that fill its context."""
    if (classifier := inputs.reward_classifier) is not None:
        for split in inputs.prompts:
            for prompt in [] if split is None else split["prompt"]:
                classifier.check_prompt(prompt)


def check_evaluated(inputs: Inputs) -> None:
    """Refuse evaluations during training with fewer prompts than processes."""
    if (held_out := inputs.prompts[1]) is not None:
        check_held_out(len(held_out), inputs.training.world_size)


def check_longest(inputs: Inputs) -> None:
    """Refuse rows that are longer than the base's maximum number of positions."""
    check_context(inputs.language_model.config, inputs.rows)


def check_steps(inputs: Inputs) -> None:
    """Refuse too few rows for one batch, and a run that ends during its warm-up."""
    check_warmup(inputs.training, inputs.steps)


GROUPS: tuple[tuple[tuple[Check, tuple[str, ...]], ...], ...] = (
    (  # the recipe
        (check_processes, ALL),
        (check_finished, ALL),
        (check_adapters, ALL),
        (check_packages, ALL),
        (check_sharding, PPO),
    ),
    (  # the files of the base
        (check_tokenizer_opens, ALL),
        (check_weights, ALL),
        (check_pushing, ALL),
        (check_sampled, ALL),
        (check_optimization, ALL),
        (check_generation, ONLINE),
        (check_reward_class, REWARD),
        (check_experts, ("sft", "dpo", "grpo")),
        (check_dropout_off, GRPO),
    ),
    (  # adapters and reward functions
        (check_tokens, OFFLINE),
        (check_reward_model, ONLINE),
        (check_reward_functions, ONLINE),
        (check_start, POLICIES),
    ),
    (  # the data
        (check_rows, ALL),
        (check_evaluated, PPO),
        (check_scored_prompts, ONLINE),
    ),
    (  # what follows from the data
        (check_longest, ALL),
        (check_steps, ALL),
    ),
    (  # the output folder
        (check_begun, ALL),
    ),
)
"""Checks and the stages they are for, in the order in which the groups run."""
