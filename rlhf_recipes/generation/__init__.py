"""Sampling of completions, token by token, for PPO, GRPO and evaluation."""
