"""PPO of this project on a benchmark case: `python ppo_ours.py CASE.json`; one line of JSON."""

import sys
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import read_case, report, timed
from rlhf_recipes.models import open_base, open_tokenizer
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.trainer import PPOTrainer
from rlhf_recipes.training import use_all_cores


def main() -> None:
    """Train on the case's prompts, and score its fixed texts."""
    case = read_case(sys.argv[1])
    use_all_cores()
    # Parts of two episodes: exactly the same step in less memory.
    minibatch = case["batch_size"] // case["num_mini_batches"]
    part = min(minibatch, 2)
    args = PPOConfig(
        output_dir=str(Path(case["folder"], "ours")),
        per_device_train_batch_size=part,
        gradient_accumulation_steps=minibatch // part,
        num_mini_batches=case["num_mini_batches"],
        num_ppo_epochs=case["num_ppo_epochs"],
        total_episodes=case["episodes"],
        max_completion_length=case["response_length"],
        temperature=case["temperature"],
        learning_rate=case["learning_rate"],
        activation_checkpointing=False,
        bf16=False,
        log_completions=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = PPOTrainer(
        model=open_base(case["base"]),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": case["prompts"]}),
        processing_class=open_tokenizer(case["base"]),
        peft_config=LoraConfig(**case["lora"]),
        reward_model_path=case["reward_adapter"],
    )
    scores = trainer.worker.scorer.reward_funcs[0](
        prompts=case["prompts"][:4], completions=case["texts"]
    )
    if case["count_flops"]:
        with FlopCounterMode(display=False) as counter:
            trainer.train()
        report(flops=counter.get_total_flops())
        return
    seconds = timed(trainer.train)
    history = trainer.state.log_history
    lengths = [e["completions/mean_length"] for e in history if "completions/mean_length" in e]
    report(seconds=seconds, scores=scores, mean_length=sum(lengths) / len(lengths))


if __name__ == "__main__":
    main()
