"""Run TRL 1.12's PPOTrainer on a given rollout, and record its losses and gradients.

`python -m benchmarks.ppo_trl112_rollout FOLDER`, in the environment of requirements-trl112.txt: the
package is not imported. The folder holds a base, a policy adapter, a classifier (reward and value
model) and `case.json`. The loss and the gradients of each optimizer step go to `found.json` there.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from benchmarks.gradients import summary


def steps(folder: Path, case: dict, settings: dict) -> list[dict]:
    """Record loss and gradients of every optimizer step of one update."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "base", padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="float32")
    classifiers = [
        AutoModelForSequenceClassification.from_pretrained(
            folder / "classifier", num_labels=1, dtype="float32"
        )
        for _ in range(2)
    ]
    queries = torch.tensor(case["queries"])
    responses = torch.tensor(case["responses"])
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=len(queries),
            total_episodes=len(queries),
            response_length=responses.shape[1],
            gradient_checkpointing=False,
            num_sample_generations=0,
            stop_token="eos",
            missing_eos_penalty=None,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            **{**case["settings"], **settings},
        ),
        processing_class=tokenizer,
        model=PeftModel.from_pretrained(base, folder / "policy", is_trainable=True),
        ref_model=None,
        reward_model=classifiers[0],
        value_model=classifiers[1],
        train_dataset=Dataset.from_dict({"input_ids": case["queries"]}),
        eval_dataset=Dataset.from_dict({"input_ids": case["queries"]}),
    )

    def given_completions(model, *_):
        ids = torch.cat([queries, responses], 1)
        output = ppo_trainer.forward(model, ids, tokenizer.pad_token_id)
        logits = output.logits[:, queries.shape[1] - 1 : -1]
        return ids, logits / (case["settings"]["temperature"] + 1e-7)

    ppo_trainer.batch_generation = given_completions
    # The dataset is shuffled, and the completions are given: keep the order.
    trainer.dataloader = [{"input_ids": queries}]
    records = []
    backward = trainer.accelerator.backward

    def recorded(loss):
        backward(loss)
        gradients = {
            name: summary(parameter.grad)
            for name, parameter in trainer.model.named_parameters()
            if parameter.grad is not None and ("lora_" in name or name.endswith("score.weight"))
        }
        records.append({"loss": loss.item(), "gradients": gradients})

    trainer.accelerator.backward = recorded
    trainer.train()
    return records


def main() -> None:
    """Run every case with the value loss and without it."""
    folder = Path(sys.argv[1])
    cases = json.loads((folder / "case.json").read_text())
    records = {
        name: {
            "both": steps(folder, case, {"vf_coef": 0.1, "num_ppo_epochs": 1}),
            "policy": steps(folder, case, {"vf_coef": 0.0, "num_ppo_epochs": 2}),
        }
        for name, case in cases.items()
    }
    (folder / "found.json").write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
