"""TRL 1.12's PPOTrainer on a benchmark case: `python -m benchmarks.ppo_trl112 CASE.json`.

It runs in an environment of its own, so it imports nothing of this project but `measure.py`.
"""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer

from benchmarks.measure import measured, read_case, report


def main() -> None:
    """Train on the case's prompts as TRL's PPO example does, and score the fixed texts."""
    case = read_case(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(case["base"], padding_side="left")
    encoded = [
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
        for prompt in case["prompts"]
        for _ in range(case["num_generations"])
    ]
    classifiers = [
        AutoModelForSequenceClassification.from_pretrained(
            case["merged_reward_model"], num_labels=1, dtype=case["dtype"]
        )
        for _ in range(2)
    ]
    args = PPOConfig(
        output_dir=str(Path(case["folder"], "trl")),
        per_device_train_batch_size=case["peer_micro_batch"],
        gradient_accumulation_steps=case["batch_size"] // case["peer_micro_batch"],
        num_mini_batches=case["num_mini_batches"],
        num_ppo_epochs=case["num_ppo_epochs"],
        total_episodes=case["batch_size"],
        response_length=case["response_length"],
        temperature=case["temperature"],
        learning_rate=case["learning_rate"],
        stop_token="eos",
        missing_eos_penalty=1.0,
        num_sample_generations=0,
        bf16=case["dtype"] == "bfloat16",
        save_strategy="no",
        report_to="none",
    )
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(case["base"], dtype=case["dtype"]),
        ref_model=None,
        reward_model=classifiers[0],
        value_model=classifiers[1],
        train_dataset=Dataset.from_dict({"input_ids": [e["input_ids"] for e in encoded]}),
        eval_dataset=Dataset.from_dict({"input_ids": [e["input_ids"] for e in encoded[:1]]}),
        peft_config=LoraConfig(**case["lora"], task_type="CAUSAL_LM"),
    )
    values = [
        score(classifiers[0], tokenizer, [*prompt, {"role": "assistant", "content": text}])
        for prompt, text in case["scored"]
    ]
    report(**measured(trainer.train, case["count_flops"]), values=values)


@torch.no_grad()
def score(classifier, tokenizer, messages):
    """Score one conversation, alone in its batch."""
    ids = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")
    return classifier(**ids).logits.item()


if __name__ == "__main__":
    main()
