"""Every architecture in every stage: it starts with the right values, or is refused."""

import re
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForSequenceClassification
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    ModelConfig,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from rlhf_recipes.arguments import RecipeArguments, RewardArguments
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.collect.measuring import KLSampler
from rlhf_recipes.generation.grpo import rollout_func_for
from rlhf_recipes.generation.sampling import sample
from rlhf_recipes.inputs import Inputs
from rlhf_recipes.models.adapters import read_adapter
from rlhf_recipes.models.loading import (
    classifier_config,
    open_base,
    open_classifier,
    open_language_model,
    open_tokenizer,
)
from rlhf_recipes.models.logits import check_logits
from rlhf_recipes.models.lora import lora_config
from rlhf_recipes.planning.plan import training_plan
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.trainer import PPOTrainer
from rlhf_recipes.preferences import chosen_completions
from rlhf_recipes.prefix_sharing.forward import share_prefixes
from rlhf_recipes.prompts import prompt_ids, template_ids
from rlhf_recipes.rewards import RewardModel, scored_ids
from rlhf_recipes.roles import Roles
from tests.tiny_architectures import ARCHITECTURES, NO_CACHE, STAGES, Tiny, as_markdown

# PEFT warns that GPT-2's Conv1D stores its weight transposed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
    # PEFT warns that the ranks it has itself set for tensors of experts match no module.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match"),
]

PROMPTS = ["a", "what is a name?", "tell me all of it, and slowly please", "so so", "bb bb bb bb"]
ANSWERS = ["yes it is", "no", "well then", "hm", "it is not so"]
CONFIGS: dict[str, Any] = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "grpo": GRPOConfig,
    "ppo": PPOConfig,
}
SAMPLING = {"num_generations": 2, "max_completion_length": 6}
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {},
    "reward": {},
    "dpo": {},
    "grpo": {**SAMPLING, "beta": 0.1, "disable_dropout": True},
    "ppo": {**SAMPLING, "num_mini_batches": 1, "num_ppo_epochs": 1},
}
TRAINED_ONLINE = {
    *("llama", "mistral", "qwen3_moe", "qwen3_5", "gemma2", "gpt2", "opt", "granitemoe", "lfm2"),
    *("jamba", "falcon_h1", "deepseek_v3"),
}
"""One architecture per kind of cache, head and LoRA, which PPO and GRPO train for one step."""

SAMPLED = [tiny for tiny in ARCHITECTURES if NO_CACHE not in tiny.refused.values()]


def titles(architectures):
    return {"argvalues": architectures, "ids": [tiny.title for tiny in architectures]}


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer("tiny")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Return a function that writes an architecture's base once and returns its folder."""
    folders: dict[str, str] = {}

    def folder_of(tiny: Tiny) -> str:
        if tiny.title not in folders:
            folders[tiny.title] = tiny.save(tmp_path_factory.mktemp("base"))
        return folders[tiny.title]

    return folder_of


@pytest.fixture(scope="module")
def reward_of(folder_of, tmp_path_factory):
    """Return a function that trains an architecture's reward adapter for one step; None if refused.

    Its weights are drawn at random afterwards, because one step leaves all scores nearly equal.
    """
    folders: dict[str, str | None] = {}

    def train(tiny: Tiny) -> str:
        out = str(tmp_path_factory.mktemp("reward"))
        recipe = inputs("reward", folder_of(tiny), out)
        trainer = RewardTrainer(
            model=open_classifier(recipe.model, recipe.training.seed, dropout=False),
            args=recipe.training,
            train_dataset=recipe.dataset["train"],
            processing_class=recipe.tokenizer,
            peft_config=lora_config(recipe.model),
        )
        one_step(trainer)
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if "lora_B" in name and parameter.any():  # only weights that had a gradient
                    parameter.normal_(0, 0.1)
        trainer.save_model()
        return out

    def reward_of(tiny: Tiny) -> str | None:
        if tiny.title not in folders:
            folders[tiny.title] = None if "reward" in tiny.refused else train(tiny)
        return folders[tiny.title]

    return reward_of


def pairs() -> Dataset:
    def turns(role, texts):
        return [[{"role": role, "content": text}] for text in texts]

    return Dataset.from_dict(
        {
            "prompt": turns("user", PROMPTS),
            "chosen": turns("assistant", ANSWERS),
            "rejected": turns("assistant", ANSWERS[::-1]),
            "source": ["test"] * len(PROMPTS),
            "turns": [1] * len(PROMPTS),
        }
    )


def inputs(stage, folder, out, reward_model=None, **settings):
    """Make the inputs of `training_plan` for a stage."""
    lora = {n: settings.pop(n) for n in ("lora_target_modules", "lora_dropout") if n in settings}
    fields = CONFIGS[stage].__dataclass_fields__
    training = CONFIGS[stage](
        output_dir=str(out),
        per_device_train_batch_size=2 if stage == "ppo" else 4,
        max_steps=1,
        logging_steps=1,
        learning_rate=1e-3,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
        activation_checkpointing=False,
        **SETTINGS[stage],
        **{name: value for name, value in settings.items() if name in fields},
    )
    model = ModelConfig(
        model_name_or_path=folder,
        use_peft=True,
        lora_r=2,
        lora_task_type="SEQ_CLS" if stage == "reward" else "CAUSAL_LM",
        **{"lora_target_modules": ["all-linear"], "lora_dropout": 0.0, **lora},
    )
    function = [f"{__file__}:length"]
    scores = RewardArguments(reward_model, None if reward_model else function)
    data = {"train": pairs(), "validation": pairs()}
    return Inputs(stage, RecipeArguments(), training, model, data, scores)


def one_step(trainer) -> dict[str, float]:
    """Train one step and return what the trainer logs."""
    if not isinstance(trainer, PPOTrainer):
        share_prefixes(trainer.model)
    trainer.train()
    return trainer.state.log_history[0]


def plain_logps(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Compute log-probabilities of a completion in one pass over its row, unpadded and uncached."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
    logps = logits.float().log_softmax(-1)[-len(completion) - 1 : -1]
    return logps.gather(-1, torch.tensor(completion)[:, None]).squeeze(-1)


def length(prompts, completions, **_):
    return [float(len(str(completion))) for completion in completions]


def assert_scores_are_the_classifiers(folder, reward_model, tokenizer):
    """Compare scores computed with the language model's decoder to the trained classifier's."""
    classifier = AutoModelForSequenceClassification.from_pretrained(
        folder, config=classifier_config(folder), dtype="float32"
    )
    classifier = PeftModel.from_pretrained(classifier, reward_model).eval()
    prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    scores = RewardModel.load(read_adapter(reward_model))(prompts, ANSWERS)
    rows = [scored_ids(tokenizer, p, a) for p, a in zip(prompts, ANSWERS, strict=True)]
    with torch.no_grad():
        expected = [float(classifier(input_ids=torch.tensor([row])).logits) for row in rows]
    assert len(set(scores)) == len(scores)
    assert scores == pytest.approx(expected, rel=1e-4, abs=1e-4)


def grpo_begins_at_its_reference(recipe):
    trainer = GRPOTrainer(
        model=open_language_model(recipe.model, dropout=False),
        reward_funcs=length,
        args=recipe.training,
        train_dataset=recipe.dataset["train"].select_columns("prompt"),
        processing_class=recipe.tokenizer,
        peft_config=lora_config(recipe.model),
        rollout_func=rollout_func_for(recipe.training),
    )
    assert one_step(trainer)["kl"] == pytest.approx(0, abs=1e-6)
    return trainer


def dpo_begins_at_ln_2(recipe):
    trainer = DPOTrainer(
        model=open_language_model(recipe.model, dropout=False),
        args=recipe.training,
        train_dataset=recipe.dataset["train"],
        processing_class=recipe.tokenizer,
        peft_config=lora_config(recipe.model),
    )
    logged = one_step(trainer)
    # TRL adds the router loss of a mixture of experts, as it documents.
    router = trainer.router_aux_loss_coef * logged.get("aux_loss", 0.0)
    assert logged["loss"] - router == pytest.approx(0.693147, abs=1e-5)
    return trainer


def ppo_begins_at_ratio_1(recipe):
    trainer = PPOTrainer(
        model=open_language_model(recipe.model),
        args=recipe.training,
        train_dataset=recipe.dataset["train"].select_columns("prompt"),
        processing_class=recipe.tokenizer,
        peft_config=lora_config(recipe.model),
        reward_model_path=recipe.reward_model,
        reward_funcs=[] if recipe.reward_model else [length],
    )
    logged = one_step(trainer)
    assert logged["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert logged["val/ratio"] == pytest.approx(1, abs=1e-4)
    assert logged["policy/approxkl_avg"] == pytest.approx(0, abs=1e-8)
    return trainer


def sft_begins_at_the_base_s_loss(recipe):
    """The loss is the mean over the completion's tokens, as plain passes of the base have it."""
    base = open_language_model(recipe.model, dropout=False)
    logps = []
    for prompt, completion in zip(PROMPTS[:4], ANSWERS[:4], strict=True):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        ids, row = (
            prompt_ids(recipe.tokenizer, turns[:1]),
            template_ids(recipe.tokenizer, turns, add_generation_prompt=False),
        )
        assert row[: len(ids)] == ids
        logps.append(plain_logps(base, ids, row[len(ids) :]))
    rows = chosen_completions(recipe.dataset["train"], range(4))
    trainer = SFTTrainer(
        model=open_language_model(recipe.model, dropout=False),
        args=recipe.training,
        train_dataset=rows,
        processing_class=recipe.tokenizer,
        peft_config=lora_config(recipe.model),
    )
    logged = one_step(trainer)
    router = trainer.router_aux_loss_coef * logged.get("aux_loss", 0.0)
    assert logged["loss"] - router == pytest.approx(-float(torch.cat(logps).mean()), abs=1e-4)
    return trainer


TRAINED = {
    "sft": sft_begins_at_the_base_s_loss,
    "grpo": grpo_begins_at_its_reference,
    "dpo": dpo_begins_at_ln_2,
    "ppo": ppo_begins_at_ratio_1,
}


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "grpo", "dpo"])
@pytest.mark.parametrize("tiny", **titles(ARCHITECTURES))
def test_a_stage_begins_with_the_right_values_or_is_refused(
    tiny, stage, folder_of, reward_of, tokenizer, tmp_path
):
    folder, settings = folder_of(tiny), {}
    if stage in tiny.refused:
        with pytest.raises(RecipeError, match=re.escape(tiny.refused[stage])):
            training_plan(inputs(stage, folder, tmp_path))
        settings = tiny.settings
        if not settings or stage == "reward":
            return
    reward_model = reward_of(tiny)
    recipe = inputs(stage, folder, tmp_path, reward_model, **settings)
    training_plan(recipe)
    if stage == "reward":
        assert_scores_are_the_classifiers(folder, reward_model, tokenizer)
    elif stage in ("sft", "dpo") or tiny.model_type in TRAINED_ONLINE:
        trainer = TRAINED[stage](recipe)
        trainer.save_model()
        # Evaluation attaches the adapter to a base that it shares with other models.
        Roles(open_base(folder)).attach_saved("policy", read_adapter(tmp_path), trainable=False)


@pytest.mark.parametrize("tiny", **titles(SAMPLED))
def test_samples_scores_and_divergences_are_those_of_plain_passes(tiny, folder_of, tokenizer):
    """Prompts of different lengths are padded, and sampling goes past every sliding window."""
    model = open_base(folder_of(tiny))
    check_logits(model)
    roles = Roles(model)
    assert roles.shares_prefixes == tiny.shares
    targets = tiny.settings.get("lora_target_modules", "all-linear")
    roles.attach("policy", LoraConfig(r=2, target_modules=targets), trainable=False)
    roles.eval()
    sampler = KLSampler(roles, tokenizer, None, 20, 1.0, 8)
    encoded = [prompt_ids(tokenizer, prompt) for prompt in PROMPTS]
    rows = sample(model, tokenizer, PROMPTS, max_completion_length=20, num_completions=2)
    flat = [(p, c) for p, row in zip(PROMPTS, rows, strict=True) for c in row]
    facts = sampler.divergences("policy", flat)
    for (prompt, completion), measured in zip(flat, facts, strict=True):
        expected = plain_logps(model, encoded[PROMPTS.index(prompt)], completion.ids)
        logps = torch.tensor(completion.logps)
        torch.testing.assert_close(logps, expected, rtol=1e-4, atol=1e-4)
        assert measured["logp_ref"] == pytest.approx(float(expected.sum()), abs=1e-3)
        assert measured["kl"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("tiny", [tiny for tiny in ARCHITECTURES if tiny not in SAMPLED])
def test_a_model_that_would_ignore_the_cache_is_not_sampled(tiny, folder_of, tokenizer):
    with pytest.raises(RecipeError, match=re.escape(NO_CACHE)):
        sample(open_base(folder_of(tiny)), tokenizer, PROMPTS, max_completion_length=2)


def test_the_page_has_the_table(root):
    assert as_markdown() in (root / "docs" / "architectures.md").read_text(encoding="utf-8")


def test_every_stage_has_a_column():
    assert {stage for tiny in ARCHITECTURES for stage in tiny.refused} <= {*STAGES}


def test_dropout_in_grpo_is_refused(folder_of, tmp_path):
    """Sampling has no dropout, so GPT-2's KL would be 0.3 nats per token before any step."""
    gpt2 = next(tiny for tiny in ARCHITECTURES if tiny.model_type == "gpt2")
    recipe = inputs("grpo", folder_of(gpt2), tmp_path)
    training_plan(recipe)
    recipe = inputs("grpo", folder_of(gpt2), tmp_path)
    recipe.training.disable_dropout = False
    with pytest.raises(RecipeError, match="has dropout and `disable_dropout` is false"):
        training_plan(recipe)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_dropout_on_experts_is_refused_with_the_remedy(stage, folder_of, tmp_path):
    """PEFT adapts a tensor of experts only without dropout, which a role does not have anyway."""
    moe = next(tiny for tiny in ARCHITECTURES if tiny.model_type == "qwen3_moe")
    experts = {"lora_target_modules": ["gate_proj", "up_proj", "down_proj"]}
    training_plan(inputs(stage, folder_of(moe), tmp_path, **experts))
    recipe = inputs(stage, folder_of(moe), tmp_path, **experts, lora_dropout=0.05)
    with pytest.raises(RecipeError, match="Set `lora_dropout: 0`"):
        training_plan(recipe)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "deepseek_v3"])
def test_roles_on_experts_compute_what_separate_models_compute(model_type, folder_of, tmp_path):
    moe = next(tiny for tiny in ARCHITECTURES if tiny.model_type == model_type)
    roles = Roles(open_base(folder_of(moe)))
    ids, mask = torch.arange(5, 29).view(2, 12), torch.ones(2, 12, dtype=torch.bool)
    for role in ("policy", "value"):
        targets = ["gate_proj", "up_proj", "down_proj"]
        roles.attach(role, LoraConfig(r=2, target_modules=targets), trainable=False)
    with torch.no_grad():
        for name, parameter in roles.base.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    outputs = {role: roles(role, ids, mask, 5).logps for role in ("policy", "value")}
    assert not torch.allclose(outputs["policy"], outputs["value"], rtol=1e-3, atol=1e-3)
    for role, logps in outputs.items():
        roles.save_role(role, tmp_path / role)
        alone = PeftModel.from_pretrained(open_base(folder_of(moe)), tmp_path / role).eval()
        for row, row_logps in zip(ids.tolist(), logps, strict=True):
            torch.testing.assert_close(row_logps, plain_logps(alone, row[:7], row[7:]))


def test_a_value_without_a_reward_model_has_the_width_of_the_last_hidden_states(
    folder_of, tmp_path
):
    """OPT-350m projects them to a width below `hidden_size`."""
    projected = next(tiny for tiny in ARCHITECTURES if "projected" in tiny.title)
    recipe = inputs("ppo", folder_of(projected), tmp_path)
    training_plan(recipe)
    assert ppo_begins_at_ratio_1(recipe).roles.head("value").in_features == 16
