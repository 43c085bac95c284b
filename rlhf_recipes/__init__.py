"""The RLHF loop as thin recipes: preference data, reward model, PPO, GRPO, DPO, evaluation."""

__version__ = "0.1.0"
