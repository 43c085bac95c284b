"""`chat_template_kwargs` reach the text of every stage: what its models read is the same prompt."""

import json
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from rlhf_recipes.models.chat_templates import template_kwargs
from rlhf_recipes.models.loading import base_path, open_base, open_tokenizer
from rlhf_recipes.preferences import load_prepared
from rlhf_recipes.prompts import prompt_ids
from tests.stage_in_process import run

# As Qwen3's, with a system turn that says whether the model may think: so an argument that a stage
# leaves out changes the beginning of everything that it reads.
TEMPLATE = """\
{%- set thinks = not (enable_thinking is defined and enable_thinking is false) %}
{{- '<|im_start|>system\\n' + ('think' if thinks else 'answer') + '<|im_end|>\\n' }}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.last %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if not thinks %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
KWARGS = {"enable_thinking": False}
TRAINED = ("sft", "reward", "dpo", "grpo", "grpo_trl", "ppo")
LOGITS_PROBE = [1, 2, 3, 4]
STAGES = (*TRAINED, "evaluate")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The tiny base with a template that has the variable `enable_thinking`."""
    folder = tmp_path_factory.mktemp("base")
    open_base("tiny").save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base_path("tiny"))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def out(root, base, tmp_path_factory):
    """Folder of prepared data."""
    out = tmp_path_factory.mktemp("text") / "outputs"
    pairs = {
        "dataset_name": "recipes/demo/preferences",
        "model_name_or_path": str(base),
        "chat_template_kwargs": KWARGS,
        "max_train_samples": 4,
        "max_eval_samples": 4,
        "output_dir": str(out),
    }
    assert not run(root, "prepare_data", pairs)
    return out


@pytest.fixture(scope="module")
def fed(root, base, out):
    """What the models of each stage read, at one step, without prefix sharing."""
    run_keys = {"max_steps": 1, "use_cpu": True, "bf16": False, "activation_checkpointing": False}
    common = {
        "model_name_or_path": str(base),
        "chat_template_kwargs": KWARGS,
        "dataset_name": str(out / "data"),
        "use_peft": True,
        "lora_r": 2,
        "lora_target_modules": ["q_proj"],
        "per_device_train_batch_size": 2,
        "prefix_sharing": False,
        **run_keys,
    }
    folders = {stage: str(out / "models" / f"{stage}_model") for stage in TRAINED}
    scored = {"reward_model_path": folders["reward"], "max_completion_length": 4}
    grpo = {"num_generations": 2, "beta": 0.1, "disable_dropout": True, **scored}
    recipes: dict[str, dict[str, Any]] = {
        "sft": {},
        "reward": {"lora_task_type": "SEQ_CLS"},
        "dpo": {},
        "grpo": grpo,
        "grpo_trl": {**grpo, "top_k": 5},  # then TRL's own sampler is used
        "ppo": {"num_mini_batches": 1, "num_ppo_epochs": 1, **scored},
    }
    rows = {
        stage: run(
            root, stage.removesuffix("_trl"), {**common, **keys, "output_dir": folders[stage]}
        )
        for stage, keys in recipes.items()
    }
    evaluation = {
        "dataset_name": str(out / "data"),
        "chat_template_kwargs": KWARGS,
        "eval_prompts": 4,
        "output_dir": str(out),
        **scored,
    }
    return rows | {"evaluate": run(root, "evaluate", evaluation)}


def expected(base, out) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of the prompts with the arguments, and without."""
    data = load_prepared(out / "data")
    prompts = [prompt for split in ("train", "validation") for prompt in data[split]["prompt"]]
    tokenizers = [open_tokenizer(str(base), chat_template_kwargs=k) for k in (KWARGS, None)]
    right, wrong = ([prompt_ids(t, prompt) for prompt in prompts] for t in tokenizers)
    return right, wrong


def begins_with(row, prompts):
    return any(row[: len(prompt)] == prompt for prompt in prompts)


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_reads_begins_with_the_same_prompt(stage, fed, base, out):
    right, wrong = expected(base, out)
    pad = open_tokenizer(str(base)).pad_token_id
    texts = [[token for token in row if token != pad] for row in fed[stage]]
    # A sampled token alone continues a cache; PPO and evaluation compare logits on four tokens.
    texts = [row for row in texts if len(row) > 1 and row != LOGITS_PROBE]
    assert texts
    assert [row for row in texts if not begins_with(row, right)] == []
    assert not begins_with(wrong[0], right)


def test_tokens_are_counted_with_the_arguments(out, base):
    right, wrong = expected(base, out)
    stats = json.loads((out / "dataset_stats.json").read_text())
    mean = stats["splits"]["train"]["lengths"]["prompt"]["mean"]
    assert mean == sum(map(len, right[:4])) / 4 != sum(map(len, wrong[:4])) / 4


@pytest.mark.parametrize("stage", TRAINED)
def test_an_adapter_says_which_arguments_it_was_trained_with(stage, fed, out):
    folder = out / "models" / f"{stage}_model"
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["chat_template_kwargs"] == KWARGS
    assert json.loads((folder / "run.json").read_text())["recipe"]["chat_template_kwargs"] == KWARGS
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert template_kwargs(tokenizer) == KWARGS
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "answer" in text
    assert '`{"enable_thinking": false}`' in (folder / "README.md").read_text()


def test_an_evaluation_says_which_arguments_it_sampled_with(fed, out):
    facts = json.loads((out / "samples" / "collection.json").read_text())
    assert facts["chat_template_kwargs"] == KWARGS
    assert facts["thinks_from_start"] is False
    assert "| chat template arguments | enable_thinking False |" in (
        out / "ANALYSIS.md"
    ).read_text().replace("\\_", "_")
