"""Summarize a gradient in two numbers, so that many of them fit into a small file."""

import torch


def summary(gradient: torch.Tensor) -> list[float]:
    """Return the norm of a gradient and its projection on a fixed random direction."""
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))
    return [gradient.norm().item(), (gradient * direction).sum().item()]
