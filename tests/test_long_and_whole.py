"""Two shapes of data that the demo does not have, through all stages: prompts of several turns that
fill the model's context, and completions that end by themselves."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from rlhf_recipes.models.loading import open_tokenizer
from rlhf_recipes.preferences import load_prepared
from rlhf_recipes.prompts import prompt_ids
from tests.stage_in_process import run

pytestmark = pytest.mark.slow

CONTEXT = 2048  # of the tiny base, whose tokens are bytes
POLICIES = ("dpo", "grpo", "ppo")
COMPLETION = {"long": 32, "whole": 256}
"""Longest completion. At 256 tokens the tiny base ends many by itself, and is cut off in others."""

WORDS = "the cat sat on a mat and saw some birds near that old red barn".split()


def messages(size: int, turns: int, seed: str) -> list[dict[str, str]]:
    """A system turn and as many user turns, with answers between: a prompt of `size` tokens."""
    draw = random.Random(seed)
    roles = ["system", *(["user", "assistant"] * turns)[:-1]]
    written = [{"role": role, "content": "."} for role in roles]
    room = size - len(prompt_ids(open_tokenizer("tiny"), written))
    for index, message in enumerate(written):
        share = room // len(roles) + (room % len(roles) if index == 0 else 0)
        words = " ".join(draw.choices(WORDS, k=share))
        message["content"] = f"{words[:share]}."
    return written


def dataset(folder: Path, shape: str) -> Path:
    longest = CONTEXT - COMPLETION["long"]
    for split in ("train", "test"):
        rows = []
        for index in range(8):
            size, turns = (longest - 40 * index, 9) if shape == "long" else (80 + 9 * index, 1)
            prompt = messages(size, turns, seed=f"{split} {index}")
            chosen, rejected = ([{"role": "assistant", "content": t}] for t in ("A cat.", "A mat."))
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module", params=COMPLETION)
def ran(root, request, tmp_path_factory):
    """The shape, the folder of its outputs, and the token ids that each stage's models read."""
    shape = request.param
    out = tmp_path_factory.mktemp(shape) / "outputs"
    source = dataset(tmp_path_factory.mktemp("data"), shape)
    data = {"dataset_name": str(source), "model_name_or_path": "tiny", "max_length": CONTEXT}
    run(root, "prepare_data", data | {"output_dir": str(out)})
    folders = {stage: str(out / f"models/{stage}_model") for stage in ("sft", "reward", *POLICIES)}
    common = {
        "model_name_or_path": "tiny",
        "dataset_name": str(out / "data"),
        "use_peft": True,
        "lora_r": 2,
        "lora_target_modules": ["q_proj"],
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "prefix_sharing": False,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
    }
    scored = {
        "reward_model_path": folders["reward"],
        "max_completion_length": COMPLETION[shape],
    }
    own: dict[str, dict[str, Any]] = {
        "sft": {"max_length": CONTEXT},
        "reward": {"max_length": CONTEXT, "lora_task_type": "SEQ_CLS"},
        "dpo": {"max_length": CONTEXT},
        "grpo": {"num_generations": 2, "beta": 0.1, "disable_dropout": True, **scored},
        "ppo": {"num_mini_batches": 1, "num_ppo_epochs": 1, **scored},
    }
    rows = {
        stage: run(root, stage, common | keys | {"output_dir": folders[stage]})
        for stage, keys in own.items()
    }
    evaluation = {"dataset_name": str(out / "data"), "eval_prompts": 8, "output_dir": str(out)}
    rows["evaluate"] = run(root, "evaluate", evaluation | scored)
    return shape, out, rows


def samples(out: Path, model: str) -> list[dict[str, Any]]:
    return json.loads((out / f"samples/{model}_samples.json").read_text())


def test_every_stage_reads_its_prompts_whole(ran):
    shape, out, rows = ran
    data, tokenizer = load_prepared(out / "data"), open_tokenizer("tiny")
    train, held_out = (
        {tuple(prompt_ids(tokenizer, prompt)) for prompt in data[split]["prompt"]}
        for split in ("train", "validation")
    )
    assert len(train) == len(held_out) == 8
    for stage, padded in rows.items():
        read = [[token for token in row if token != tokenizer.pad_token_id] for row in padded]
        prompts = held_out if stage == "evaluate" else train | held_out
        seen = {p for p in prompts for row in read if tuple(row[: len(p)]) == p}
        assert len(seen) >= (8 if stage == "evaluate" else 2), stage  # GRPO samples two for each
    if shape == "long":
        for prompts in (train, held_out):
            assert max(map(len, prompts)) == CONTEXT - COMPLETION["long"]


def test_no_number_is_missing(ran):
    def refuse(word):
        raise AssertionError(word)

    _, out, _ = ran
    for name in ("reward", *POLICIES):
        file = out / f"models/{name}_model/trainer_state.json"
        log = json.loads(file.read_text(), parse_constant=refuse)["log_history"]
        assert len([entry for entry in log if "loss" in entry or "loss/policy" in entry]) == 2
    json.loads((out / "results/evaluation_results.json").read_text(), parse_constant=refuse)


def test_completions_end_by_themselves_or_are_cut_off_at_their_limit(ran):
    shape, out, _ = ran
    for model in ("base", *POLICIES):
        taken = samples(out, model)
        assert len(taken) == 8
        for sample in taken:
            assert sample["n_tokens"] <= COMPLETION[shape]
            assert (sample["finish"] == "length") == (sample["n_tokens"] == COMPLETION[shape])
            assert len(sample["kl_curve"]) == sample["n_tokens"]
            assert "<|im_end|>" not in sample["response"]
        ends = {sample["finish"] for sample in taken}
        assert len(ends) == 2 or shape == "long", ends
