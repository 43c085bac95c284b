"""Proximal policy optimisation with LoRA roles on one frozen base."""
