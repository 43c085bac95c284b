"""Proximal policy optimization of this project: `python -m benchmarks.ppo CASE.json`.

The peer is `ppo_trl112.py`, in an environment of its own.
"""

import sys
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForSequenceClassification

from benchmarks.cases import COMPLETION_LENGTH, Setting, settle
from benchmarks.measure import Case, measured, read_case, report
from rlhf_recipes.models.loading import base_path, open_base, open_tokenizer
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.trainer import PPOTrainer

PEER = "trl 1.12.0 PPOTrainer"
UNIT = "episode"
EQUAL = "scores of four texts by the reward model"


def cases(setting: Setting) -> list[Case]:
    """Return cases of one rollout and its update, and write the files that both sides need.

    "One epoch" is one step of 16 episodes in a single micro-batch on the peer's side, which is its
    default.
    """
    adapter = setting.adapter("reward", head=True)
    texts = ["Yes, of course.", "I do not know.", "Ask a doctor.", "Because it rains a lot."]
    prompts = setting.prompts(16)
    shared = {
        "scored": list(zip(prompts, texts, strict=False)),
        "reward_adapter": adapter,
        "merged_reward_model": _merged_classifier(setting, adapter),
        "response_length": COMPLETION_LENGTH,
        "temperature": 1.0,
        "learning_rate": 1e-5,
    }
    one_step = {
        "batch_size": 16,
        "num_ppo_epochs": 1,
        "num_mini_batches": 1,
        "peer_micro_batch": 16,
    }
    sixteen_steps = {
        "batch_size": 8,
        "num_ppo_epochs": 4,
        "num_mini_batches": 4,
        "peer_micro_batch": 2,
    }
    settings = {
        "one epoch, four completions a prompt": {"num_generations": 4, **one_step},
        "one epoch, distinct prompts": {"num_generations": 1, **one_step},
        "four by four": {"num_generations": 4, **sixteen_steps},
    }
    return [
        # Exactly as many prompts as a rollout takes, so both sides get the same ones.
        setting.case(
            name,
            units=case["batch_size"],
            prompts=prompts[: case["batch_size"] // case["num_generations"]],
            **shared,
            **case,
        )
        for name, case in settings.items()
    ]


def _merged_classifier(setting: Setting, adapter: str) -> str:
    """Merge the reward adapter into a classifier for the peer, and return its folder."""
    folder = setting.folder / "reward_model"
    classifier = AutoModelForSequenceClassification.from_pretrained(
        base_path(setting.base), num_labels=1, dtype="float32"
    )
    classifier.config.pad_token_id = open_tokenizer(setting.base).pad_token_id
    PeftModel.from_pretrained(classifier, adapter).merge_and_unload().save_pretrained(folder)
    return str(folder)


def build(case: Case) -> PPOTrainer:
    """Make our trainer. Micro-batches of 4 take the same step in less memory."""
    minibatch = case["batch_size"] // case["num_mini_batches"]
    micro_batch = min(minibatch, 4)
    args = PPOConfig(
        output_dir=str(Path(case["folder"], "ours")),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=minibatch // micro_batch,
        num_mini_batches=case["num_mini_batches"],
        num_ppo_epochs=case["num_ppo_epochs"],
        total_episodes=case["batch_size"],
        num_generations=case["num_generations"],
        max_completion_length=case["response_length"],
        temperature=case["temperature"],
        learning_rate=case["learning_rate"],
        activation_checkpointing=False,
        bf16=case["dtype"] == "bfloat16",
        log_completions=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return PPOTrainer(
        model=open_base(case["base"], dtype=case["dtype"]),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": case["prompts"]}),
        processing_class=open_tokenizer(case["base"]),
        peft_config=LoraConfig(**case["lora"]),
        reward_model_path=case["reward_adapter"],
    )


def scores(case: Case, trainer: PPOTrainer) -> list[float]:
    """Score the fixed texts by the reward model."""
    prompts, texts = zip(*case["scored"], strict=True)
    return list(trainer.worker.scorer.reward_funcs[0](prompts=prompts, completions=texts))


def main() -> None:
    """Train on the case's prompts, and score its fixed texts."""
    case = read_case(sys.argv[1])
    settle(case)
    trainer = build(case)
    values = scores(case, trainer)
    measurement = measured(trainer.train, case["count_flops"])
    history = trainer.state.log_history
    lengths = [e["completions/mean_length"] for e in history if "completions/mean_length" in e]
    report(**measurement, values=values, mean_length=sum(lengths) / len(lengths))


if __name__ == "__main__":
    main()
