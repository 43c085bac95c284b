"""Proximal policy optimization with every role a LoRA adapter on one frozen base."""
